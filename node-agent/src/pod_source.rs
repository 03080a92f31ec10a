// SPDX-License-Identifier: Apache-2.0
//! Where this agent knows pods from, as its settings say, and what it says of its own accord: about pods that run without
//! redirection, and about the node.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kube::Client;
use redirect::Metadata;
use tokio::runtime::Handle;

use crate::lookout::{Lookout, Since};
use crate::observability::events::{Events, Said};
use crate::observability::view::View;
use crate::pods::{self, Cluster, Directory, PodSource, Seen, Watching};
use crate::settings::{PodPlace, Settings};

/// Where pods are known from, and what comes with it.
pub(crate) struct Source {
    /// The pods.
    pub(crate) pods: Arc<dyn PodSource>,
    /// Where to say something about them.
    pub(crate) events: Events,
    /// The API server, if there is one.
    pub(crate) client: Option<Client>,
    /// The agent's own pod.
    pub(crate) own: Arc<OwnPod>,
    /// Since when pods have records, where that is of use.
    pub(crate) since: Option<Since>,
}

/// Start it; `synced` is called once, when all pods of the node are known.
///
/// # Errors
/// Those of the directory, of the ServiceAccount's files and of the run directory.
pub(crate) fn pod_source(
    settings: &Settings,
    was_installed: impl FnOnce() -> bool,
    runtime: &Handle,
    view: &View,
    synced: impl FnOnce() + Send + 'static,
) -> io::Result<Source> {
    let (metrics, own) = (&view.metrics, Arc::new(OwnPod::new(settings)));
    let node = match &settings.pods {
        PodPlace::Directory(path) => {
            let pods = Arc::new(Directory::watch(path.clone(), metrics.bad_manifests.clone(), synced)?);
            return Ok(Source {
                pods,
                events: Events::none(Arc::clone(metrics)),
                client: None,
                own,
                since: None,
            });
        }
        PodPlace::Node(node) => node.clone(),
    };
    // The client's connections belong to the event loop.
    let _entered = runtime.enter();
    let client = pods::client(metrics)?;
    let events = Events::start(client.clone(), node.clone(), runtime, Arc::clone(metrics));
    let since = Since::load(&settings.run_dir, was_installed)?;
    let watching = Watching {
        node,
        namespaces: !settings.policy.excluded_namespaces.is_empty(),
        seen: Box::new(look_out(settings, since, view, (Arc::clone(&own), events.clone()))),
        synced: Box::new(synced),
    };
    let pods = Arc::new(Cluster::watch(client.clone(), runtime, Arc::clone(metrics), watching));
    Ok(Source { pods, events, client: Some(client), own, since: Some(since) })
}

/// The agent's own pod, where people look when the node is not as it should be.
pub(crate) struct OwnPod {
    namespace: String,
    name: String,
    /// Known once the pods of the node are: the environment does not have it.
    uid: Mutex<Option<String>>,
}

impl OwnPod {
    fn new(settings: &Settings) -> Self {
        let (namespace, name) = (settings.leave.namespace.clone(), settings.pod_name.clone());
        Self { namespace, name, uid: Mutex::default() }
    }

    fn see(&self, Metadata { namespace, name, uid, .. }: &Metadata) {
        if (namespace, name) == (&self.namespace, &self.name) {
            self.uid.lock().unwrap_or_else(PoisonError::into_inner).clone_from(uid);
        }
    }

    /// Say something about the node, as an event on this pod.
    pub(crate) fn say(&self, events: &Events, reason: &'static str, message: String) {
        let Some(uid) = self.uid.lock().unwrap_or_else(PoisonError::into_inner).clone() else { return };
        events.say(Said { namespace: self.namespace.clone(), name: self.name.clone(), uid, reason, message });
    }
}

/// Tells of pods that run without redirection, and drops the records of those that are gone.
fn look_out(
    settings: &Settings,
    since: Since,
    view: &View,
    (own, events): (Arc<OwnPod>, Events),
) -> impl FnMut(Seen<'_>) + Send + use<> {
    let excluded = settings.install.entry.exclude_namespaces.clone();
    let mut lookout = Lookout::new(since, settings.policy.clone(), excluded);
    let (records, metrics) = (Arc::clone(&view.records), Arc::clone(&view.metrics));
    move |seen: Seen<'_>| {
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let (entry, labels) = match seen {
            Seen::List(uids) => return records.sweep(|uid| uids.contains(uid)),
            Seen::Pod(entry, labels) => (entry, labels),
        };
        own.see(&entry.pod.metadata);
        let Metadata { namespace, name, uid, .. } = &entry.pod.metadata;
        let known = |uid: &str| {
            let name = (namespace.as_str(), name.as_str());
            records.has_pod(uid, name) || records.has_ended(uid, name, entry.last_container)
        };
        if !lookout.see(entry, labels, known) {
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
    }
}
