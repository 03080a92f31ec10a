// SPDX-License-Identifier: Apache-2.0
//! Events on pods (core/v1): what whoever looks at a pod must know of its redirection. A pod that is redirected is no event.
//!
//! Owns the queue, and how often the same is said; must never hold up whoever has something to say.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::metrics::Metrics;
use crate::pods::chain;
use std::sync::Arc;

/// The same is said of a pod once in this time.
const QUIET: Duration = Duration::from_secs(300);
/// Pods and reasons remembered for that.
const REMEMBERED: usize = 1024;
/// Events that wait for the API server, one for each pod that a node may have; what does not fit is counted.
const QUEUE: usize = 512;
/// How long the API server may take for one.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest message, as the API server has it.
const MESSAGE: usize = 1024;

/// Something to say about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Namespace.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
    /// UID; without one `kubectl describe` does not find the event.
    pub(crate) uid: String,
    /// The reason code.
    pub(crate) reason: &'static str,
    /// For people, on one line.
    pub(crate) message: String,
}

/// Where to say it.
#[derive(Clone)]
pub(crate) struct Events {
    queue: Option<mpsc::Sender<Said>>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// Events go to the API server of `client`; `node` is where they come from.
    pub(crate) fn start(
        client: Client,
        node: String,
        runtime: &tokio::runtime::Handle,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        runtime.spawn(post(client, node, queued, Arc::clone(&metrics)));
        Self { queue: Some(queue), metrics }
    }

    /// There is no API server: events go nowhere.
    pub(crate) fn none(metrics: Arc<Metrics>) -> Self {
        Self { queue: None, metrics }
    }

    /// Say it, some time soon.
    pub(crate) fn say(&self, said: Said) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(said).is_err() {
            self.metrics.event("dropped");
        }
    }
}

async fn post(client: Client, node: String, mut queued: mpsc::Receiver<Said>, metrics: Arc<Metrics>) {
    let mut quiet = Quiet::default();
    let mut failing = false;
    while let Some(said) = queued.recv().await {
        if !quiet.allows(&said, Instant::now()) {
            metrics.event("repeated");
            continue;
        }
        let api: Api<Event> = Api::namespaced(client.clone(), &said.namespace);
        let event = event(&said, &node, SystemTime::now());
        let error = match timeout(DEADLINE, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {
                failing = false;
                metrics.event("sent");
                continue;
            }
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
        };
        metrics.event("failed");
        // Once, however long it lasts.
        if !std::mem::replace(&mut failing, true) {
            tracing::warn!(reason = said.reason, error, "send an event");
        }
    }
}

/// What was said lately.
#[derive(Default)]
struct Quiet(HashMap<(String, &'static str), Instant>);

impl Quiet {
    fn allows(&mut self, said: &Said, now: Instant) -> bool {
        self.0.retain(|_, since| now.duration_since(*since) < QUIET);
        let key = (format!("{}/{}/{}", said.namespace, said.name, said.uid), said.reason);
        if self.0.contains_key(&key) {
            return false;
        }
        if self.0.len() < REMEMBERED {
            self.0.insert(key, now);
        }
        true
    }
}

fn event(said: &Said, node: &str, now: SystemTime) -> Event {
    let time = Timestamp::try_from(now).ok().map(Time);
    let message = &said.message[..said.message.floor_char_boundary(MESSAGE)];
    Event {
        // A name of the pod and the time, as the client libraries make it.
        metadata: ObjectMeta {
            name: Some(format!(
                "{}.{:x}",
                said.name,
                now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos()
            )),
            namespace: Some(said.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(said.namespace.clone()),
            name: Some(said.name.clone()),
            uid: Some(said.uid.clone()).filter(|uid| !uid.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some("Warning".into()),
        reason: Some(said.reason.into()),
        message: Some(message.into()),
        count: Some(1),
        first_timestamp: time.clone(),
        last_timestamp: time,
        source: Some(EventSource { component: Some("waylay".into()), host: Some(node.into()) }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, reason: &'static str) -> Said {
        Said { namespace: "n".into(), name: name.into(), uid: "u".into(), reason, message: "ä".repeat(2000) }
    }

    #[test]
    fn the_same_is_said_of_a_pod_once_in_five_minutes() {
        let mut quiet = Quiet::default();
        let now = Instant::now();
        assert!(quiet.allows(&said("a", "ipv6_bypass"), now));
        assert!(!quiet.allows(&said("a", "ipv6_bypass"), now + QUIET / 2));
        assert!(quiet.allows(&said("a", "invalid_annotation"), now));
        assert!(quiet.allows(&said("b", "ipv6_bypass"), now));
        assert!(quiet.allows(&said("a", "ipv6_bypass"), now + QUIET));
        assert_eq!(quiet.0.len(), 1);
    }

    #[test]
    fn an_event_names_its_pod_and_is_short_enough() {
        let event = event(&said("a", "ipv6_bypass"), "node-1", SystemTime::now());
        assert_eq!(event.reason.as_deref(), Some("ipv6_bypass"));
        assert_eq!(event.message.unwrap().len(), MESSAGE);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert!(event.metadata.name.unwrap().starts_with("a."));
    }
}
