// SPDX-License-Identifier: Apache-2.0
//! What is read of a Kubernetes Pod (core/v1), and nothing else of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::annotations::{ALL, STATUS};

/// The container that is the proxy.
pub(crate) const PROXY_CONTAINER: &str = "istio-proxy";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`.
    #[serde(deserialize_with = "or_null")]
    pub metadata: Metadata,
    /// `spec`.
    #[serde(deserialize_with = "or_null")]
    pub spec: Spec,
}

/// A pod's `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Name.
    #[serde(deserialize_with = "or_null")]
    pub name: String,
    /// Namespace; empty in a manifest means `default`.
    #[serde(deserialize_with = "or_null")]
    pub namespace: String,
    /// UID given by the API server; absent in a plain manifest.
    pub uid: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "or_null")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "or_null")]
    pub annotations: BTreeMap<String, String>,
}

/// A pod's `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// Init containers; a native sidecar is one of them.
    #[serde(deserialize_with = "or_null")]
    pub init_containers: Vec<Container>,
    /// Containers.
    #[serde(deserialize_with = "or_null")]
    pub containers: Vec<Container>,
    /// The class of runtime that it runs under, if not the node's own.
    pub runtime_class_name: Option<String>,
}

impl Spec {
    /// The same without what is read of the proxy's container only: of other containers the name is enough.
    #[must_use]
    pub fn without_unread(mut self) -> Self {
        for container in self.init_containers.iter_mut().chain(&mut self.containers) {
            if container.name != PROXY_CONTAINER {
                let name = std::mem::take(&mut container.name);
                *container = Container { name, ..Container::default() };
            }
        }
        self
    }
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Name.
    #[serde(deserialize_with = "or_null")]
    pub name: String,
    /// Arguments.
    #[serde(deserialize_with = "or_null")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(deserialize_with = "or_null")]
    pub env: Vec<EnvVar>,
    /// Security context of the container; the pod's own is not consulted.
    pub security_context: Option<SecurityContext>,
}

/// One variable of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EnvVar {
    /// Name.
    #[serde(deserialize_with = "or_null")]
    pub name: String,
    /// Literal value; empty when it comes from elsewhere (`valueFrom`).
    #[serde(deserialize_with = "or_null")]
    pub value: String,
}

/// A container's `securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    /// Uid of the container's process.
    pub run_as_user: Option<u32>,
    /// Its gid.
    pub run_as_group: Option<u32>,
}

/// A key with nothing after it is null in YAML, and the same as an absent key to Kubernetes.
fn or_null<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Pod {
    /// The pod with `annotations` in place of all of its own that are read here: those that the runtime handed over are
    /// what the pod was created with, whatever a cache says, and one that is not among them is not there.
    #[must_use]
    pub fn with_annotations(mut self, annotations: BTreeMap<String, String>) -> Self {
        self.metadata.annotations.retain(|key, _| !ALL.contains(&key.as_str()));
        self.metadata.annotations.extend(annotations);
        self
    }

    /// Whether `annotations` are not the pod's own, as far as they are read here. Of the status only its presence counts.
    #[must_use]
    pub fn differs(&self, annotations: &BTreeMap<String, String>) -> bool {
        ALL.iter().any(|key| match (self.metadata.annotations.get(*key), annotations.get(*key)) {
            (Some(_), Some(_)) if *key == STATUS => false,
            (own, given) => own != given,
        })
    }

    /// An annotation's value; present and empty is not the same as absent.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }

    /// All containers in the order in which they are read: init containers first.
    pub(crate) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.spec.init_containers.iter().chain(&self.spec.containers)
    }

    /// The containers that are the proxy; more than one only in a malformed pod, where later ones win.
    pub(crate) fn proxies(&self) -> impl Iterator<Item = &Container> {
        self.containers().filter(|c| c.name == PROXY_CONTAINER)
    }

    /// A variable of the proxy container; the last of that name wins.
    pub(crate) fn proxy_env(&self, name: &str) -> Option<&str> {
        self.proxies().flat_map(|c| &c.env).filter(|e| e.name == name).last().map(|e| e.value.as_str())
    }

    /// The type in `proxy <type>`, the proxy's arguments; nothing when they say something else.
    pub(crate) fn proxy_type(&self) -> Option<&str> {
        self.proxies()
            .filter_map(|c| match c.args.as_slice() {
                [first, kind, ..] if first == "proxy" => Some(kind.as_str()),
                _ => None,
            })
            .last()
    }

    /// The proxy's uid and gid as written, of the last proxy container that has a security context.
    pub(crate) fn proxy_ids(&self) -> (Option<u32>, Option<u32>) {
        let context = self.proxies().filter_map(|c| c.security_context.as_ref()).last();
        (context.and_then(|c| c.run_as_user), context.and_then(|c| c.run_as_group))
    }
}

/// A boolean as Go spells it (`strconv.ParseBool`): the only form that Istio's own components read.
#[must_use]
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn null_is_the_same_as_absent() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": null, "namespace": null, "uid": null, "labels": null, "annotations": null},
            "spec": {"initContainers": null, "containers": [
                {"name": "istio-proxy", "args": null, "env": null, "securityContext": null},
                {"name": null, "env": [{"name": "A", "value": null}],
                 "securityContext": {"runAsUser": null, "runAsGroup": null}},
            ]},
        }))
        .unwrap();
        assert_eq!((pod.spec.containers.len(), pod.spec.containers[1].env.len()), (2, 1));
        let empty: Pod = serde_json::from_value(json!({"metadata": null, "spec": null})).unwrap();
        assert_eq!(empty, Pod::default());
    }

    #[test]
    fn annotations_that_the_runtime_did_not_hand_over_are_not_there() {
        let own = [("sidecar.istio.io/interceptionMode", "NONE"), ("mine", "stays")];
        let pod = Pod {
            metadata: Metadata {
                annotations: own.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ..Metadata::default()
            },
            ..Pod::default()
        };
        let given = BTreeMap::from([("sidecar.istio.io/status".to_owned(), String::new())]);
        assert!(pod.differs(&given));
        let mut pod = pod.with_annotations(given.clone());
        assert!(!pod.differs(&given));
        pod.metadata.annotations.insert("sidecar.istio.io/status".into(), "{}".into());
        assert!(!pod.differs(&given) && pod.differs(&BTreeMap::new()));
        assert_eq!(pod.metadata.annotations.keys().collect::<Vec<_>>(), ["mine", "sidecar.istio.io/status"]);
    }
}
