// SPDX-License-Identifier: Apache-2.0
//! A Pod object of the API (core/v1), as far as it is read. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use redirect::{Metadata, Pod, Spec};
use serde::Deserialize;

/// Marks the API's mirror of a static pod; its value is the hash that the kubelet uses as the pod's UID.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is decoded of a Pod, and dropped again once it is an [`Entry`].
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct PodObject {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    #[serde(rename = "hostNetwork")]
    host_network: bool,
    #[serde(flatten)]
    read: Spec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    start_time: Option<Time>,
    init_container_statuses: Vec<ContainerStatus>,
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    state: ContainerState,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    running: Option<Running>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Running {
    started_at: Option<Time>,
}

/// A pod that the API server has, and what tells it from another one of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The pod.
    pub(crate) pod: Pod,
    /// Whether it is being deleted.
    pub(crate) terminating: bool,
    /// Whether it has ended for good: its sandbox goes before it does.
    pub(crate) finished: bool,
    /// Whether it has an address: a sandbox was made for it already.
    pub(crate) addressed: bool,
    /// Whether it lives in the node's own network namespace, for which no plugin is called.
    pub(crate) host_network: bool,
    /// When the kubelet first saw it, in seconds since 1970.
    pub(crate) started: Option<i64>,
    /// When the container of it that runs since the shortest time was started, in seconds since 1970.
    pub(crate) last_container: Option<i64>,
    /// The UID by which the runtime knows it, when it is a mirror of a static pod.
    pub(crate) mirror_of: Option<String>,
}

impl Resource for PodObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl From<PodObject> for Entry {
    fn from(object: PodObject) -> Self {
        let PodObject { metadata, spec, status } = object;
        let PodSpec { host_network, read: spec } = spec;
        let statuses = status.init_container_statuses.iter().chain(&status.container_statuses);
        let seconds = |time: &Time| time.0.as_second();
        let mut annotations: BTreeMap<_, _> = metadata.annotations.unwrap_or_default();
        let mirror_of = annotations.get(MIRROR).cloned();
        // A pod may carry 256 KiB of them, and a node has hundreds of pods.
        annotations.retain(|key, _| redirect::ANNOTATIONS.contains(&key.as_str()));
        Self {
            pod: Pod {
                metadata: Metadata {
                    name: metadata.name.unwrap_or_default(),
                    namespace: metadata.namespace.unwrap_or_default(),
                    uid: metadata.uid,
                    labels: metadata.labels.unwrap_or_default(),
                    annotations,
                },
                spec: spec.without_unread(),
            },
            terminating: metadata.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            addressed: status.pod_ip.is_some_and(|address| !address.is_empty()),
            host_network,
            started: status.start_time.as_ref().map(seconds),
            last_container: statuses
                .filter_map(|container| container.state.running.as_ref()?.started_at.as_ref())
                .map(seconds)
                .max(),
            mirror_of,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_decides_is_kept_and_what_does_not_is_dropped() {
        let object: PodObject = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "a", "namespace": "n", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"app": "a"},
                "annotations": {
                    "sidecar.istio.io/status": "{}", "kubectl.kubernetes.io/last-applied-configuration": "{}",
                    "kubernetes.io/config.mirror": "hash",
                },
                "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {"runtimeClassName": "gvisor", "containers": [
                {"name": "app", "env": [{"name": "SECRET", "value": "x"}], "args": ["--long"]},
                {"name": "istio-proxy", "args": ["proxy", "sidecar"], "env": [{"name": "A", "value": "b"}]},
            ]},
            "status": {
                "podIP": "10.0.0.1", "phase": "Running", "startTime": "2026-01-01T00:00:00Z",
                "containerStatuses": [
                    {"state": {"running": {"startedAt": "2026-01-01T00:00:02Z"}}}, {"state": {"waiting": {}}},
                    {"state": {"running": {"startedAt": "2026-01-01T00:00:05Z"}}},
                ],
            },
        }))
        .unwrap();
        let entry = Entry::from(object);
        assert!(entry.terminating && entry.addressed && !entry.finished);
        assert_eq!(entry.mirror_of.as_deref(), Some("hash"));
        let begin = entry.started.unwrap();
        assert_eq!((entry.last_container, entry.host_network), (Some(begin + 5), false));
        assert_eq!(entry.pod.metadata.annotations.keys().collect::<Vec<_>>(), ["sidecar.istio.io/status"]);
        assert_eq!(entry.pod.metadata.labels["app"], "a");
        assert_eq!(entry.pod.spec.runtime_class_name.as_deref(), Some("gvisor"));
        let [app, proxy] = entry.pod.spec.containers.as_slice() else { panic!("{:?}", entry.pod.spec) };
        assert_eq!((app.name.as_str(), app.args.len(), app.env.len()), ("app", 0, 0));
        assert_eq!((proxy.args.len(), proxy.env.len()), (2, 1));
    }

    #[test]
    fn a_pod_without_status_and_spec_is_a_pod() {
        let object: PodObject =
            serde_json::from_value(json!({"metadata": {"name": "a", "namespace": "n"}})).unwrap();
        let entry = Entry::from(object);
        assert!(!entry.terminating && !entry.addressed && !entry.finished && entry.mirror_of.is_none());
    }

    #[test]
    fn a_pod_that_succeeded_or_failed_is_finished() {
        let finished = |phase| {
            Entry::from(
                serde_json::from_value::<PodObject>(json!({"metadata": {}, "status": {"phase": phase}}))
                    .unwrap(),
            )
            .finished
        };
        assert_eq!(
            ["Pending", "Running", "Unknown", "Succeeded", "Failed"].map(finished),
            [false, false, false, true, true]
        );
    }
}
