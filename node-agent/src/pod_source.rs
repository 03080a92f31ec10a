// SPDX-License-Identifier: Apache-2.0
//! Where this agent knows pods from, as its settings say, and what it says of its own accord: about pods that run without
//! redirection, and about the node.

use std::io;
use std::sync::{Arc, PoisonError};

use kube::Client;
use redirect::Metadata;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::lookout::{Lookout, Since};
use crate::observability::events::{Events, Said};
use crate::observability::view::View;
use crate::pods::{self, Cluster, Directory, Key, Known, PodSource, Seen, Watching};
use crate::settings::{PodPlace, Settings};

/// Where pods are known from, and what comes with it.
pub(crate) struct Source {
    /// The pods.
    pub(crate) pods: Arc<dyn PodSource>,
    /// Where to say something about them.
    pub(crate) events: Events,
    /// The API server, if there is one.
    pub(crate) client: Option<Client>,
}

/// Start it; `synced` is called once, when all pods of the node are known.
///
/// # Errors
/// Those of the directory, of the ServiceAccount's files and of the run directory.
pub(crate) fn pod_source(
    settings: &Settings,
    was_installed: bool,
    runtime: &Handle,
    view: &View,
    synced: impl FnOnce() + Send + 'static,
) -> io::Result<Source> {
    let metrics = &view.metrics;
    let node = match &settings.pods {
        PodPlace::Directory(path) => {
            let pods = Arc::new(Directory::watch(path.clone(), metrics.bad_manifests.clone(), synced)?);
            return Ok(Source { pods, events: Events::none(Arc::clone(metrics)), client: None });
        }
        PodPlace::Node(node) => node.clone(),
    };
    // The client's connections belong to the event loop.
    let _entered = runtime.enter();
    let client = pods::client(metrics)?;
    let events = Events::start(client.clone(), node.clone(), runtime, Arc::clone(metrics));
    let watching = Watching {
        node,
        namespaces: !settings.policy.excluded_namespaces.is_empty(),
        seen: Box::new(look_out(settings, was_installed, view, events.clone())?),
        synced: Box::new(synced),
    };
    let pods = Arc::new(Cluster::watch(client.clone(), runtime, Arc::clone(metrics), watching));
    Ok(Source { pods, events, client: Some(client) })
}

/// Says things about the node as events on the agent's own pod, where people look when the node is not as it should be.
pub(crate) fn alarm(
    settings: &Settings,
    runtime: &Handle,
    pods: Arc<dyn PodSource>,
    events: Events,
) -> impl Fn(&'static str, String) + Send + use<> {
    let (namespace, name) = (settings.leave.namespace.clone(), settings.pod_name.clone());
    let runtime = runtime.clone();
    move |reason, message| {
        let (namespace, name, pods, events) =
            (namespace.clone(), name.clone(), Arc::clone(&pods), events.clone());
        // Its uid is known from the pods of the node: the environment does not have it.
        runtime.spawn(async move {
            let key = Key { namespace: &namespace, name: &name, uid: None };
            if let Ok(Known::Pod(pod)) = pods.find(key, Instant::now()).await {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                events.say(Said { namespace, name, uid, reason, message });
            }
        });
    }
}

/// Tells of pods that run without redirection, and drops the records of those that are gone.
fn look_out(
    settings: &Settings,
    was_installed: bool,
    view: &View,
    events: Events,
) -> io::Result<impl FnMut(Seen<'_>) + Send + use<>> {
    let since = Since::load(&settings.run_dir, was_installed)?;
    let excluded = settings.install.entry.exclude_namespaces.clone();
    let mut lookout = Lookout::new(since, settings.policy.clone(), excluded);
    let (records, metrics) = (Arc::clone(&view.records), Arc::clone(&view.metrics));
    Ok(move |seen: Seen<'_>| {
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match seen {
            Seen::List(uids) => return records.sweep(|uid| uids.contains(uid)),
            Seen::Pod(entry) => entry,
        };
        let Metadata { namespace, name, uid, .. } = &entry.pod.metadata;
        let known = |uid: &str| {
            records.has_pod(uid, (namespace, name)) || records.has_ended(uid, entry.last_container)
        };
        if !lookout.see(entry, known) {
            return;
        }
        let (reason, uid) = ("started_unredirected", uid.clone().unwrap_or_default());
        let message = "the pod is of the mesh and was started without the agent: its traffic goes past its proxy; delete \
                       the pod to have it started anew";
        metrics.bypass(reason);
        tracing::error!(reason, pod.namespace = namespace, pod.name = name, pod.uid = uid, "{message}");
        events.say(Said {
            namespace: namespace.clone(),
            name: name.clone(),
            uid,
            reason,
            message: message.to_owned(),
        });
    })
}
