// SPDX-License-Identifier: Apache-2.0
//! What is read of a Kubernetes Pod (core/v1), and nothing else of it.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The container that is the proxy.
pub(crate) const PROXY_CONTAINER: &str = "istio-proxy";

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec`.
    pub spec: Spec,
}

/// A pod's `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Name.
    pub name: String,
    /// Namespace; empty in a manifest means `default`.
    pub namespace: String,
    /// UID given by the API server; absent in a plain manifest.
    pub uid: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "map_or_null")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "map_or_null")]
    pub annotations: BTreeMap<String, String>,
}

/// A pod's `spec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    /// Init containers; a native sidecar is one of them.
    pub init_containers: Vec<Container>,
    /// Containers.
    pub containers: Vec<Container>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    /// Name.
    pub name: String,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<EnvVar>,
    /// Security context of the container; the pod's own is not consulted.
    pub security_context: Option<SecurityContext>,
}

/// One variable of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Literal value; empty when it comes from elsewhere (`valueFrom`).
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

/// YAML writes an empty map as nothing, that is null.
fn map_or_null<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Pod {
    /// The pod with `annotations` laid over its own: those that the runtime handed over are the ones the pod was
    /// created with, whatever a cache says.
    #[must_use]
    pub fn with_annotations(mut self, annotations: BTreeMap<String, String>) -> Self {
        self.metadata.annotations.extend(annotations);
        self
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
