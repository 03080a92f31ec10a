// SPDX-License-Identifier: Apache-2.0
//! The messages, as JSON, and how two releases understand each other.
//!
//! # Versions
//! The plugin on the node and the agent may be one release apart, in either direction. Each message says the protocol
//! version that its sender speaks and the oldest whose meaning it still has. Fields are only ever added; a receiver
//! ignores those it does not know and has a default for those that are missing. A peer is served when both ranges
//! overlap.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What this release speaks.
pub const PROTOCOL: Versions = Versions { current: 1, oldest: 1 };

/// A range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The version that the sender speaks.
    pub current: u32,
    /// The oldest version that it still understands and whose meaning its messages keep.
    pub oldest: u32,
}

impl Versions {
    /// Whether a peer that speaks `other` is understood, and understands us.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.oldest <= other.current && other.oldest <= self.current
    }
}

/// The pod annotations that decide or set something; the plugin sends these and no others, because a pod may carry
/// 256 KiB of them.
pub const DECISIVE_ANNOTATIONS: &[&str] = &[
    "istio.io/reroute-virtual-interfaces",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/interceptionMode",
    "sidecar.istio.io/status",
    "traffic.sidecar.istio.io/excludeInboundPorts",
    "traffic.sidecar.istio.io/excludeInterfaces",
    "traffic.sidecar.istio.io/excludeOutboundIPRanges",
    "traffic.sidecar.istio.io/excludeOutboundPorts",
    "traffic.sidecar.istio.io/includeInboundPorts",
    "traffic.sidecar.istio.io/includeOutboundIPRanges",
    "traffic.sidecar.istio.io/includeOutboundPorts",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
    "traffic.waylay.io/ipv6-policy",
];

/// The variables of the plugin's own environment that change the rules.
pub const ENVIRONMENT: &[&str] = &[
    "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
    "ISTIO_OUTBOUND_OWNER_GROUPS",
    "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
];

/// What the plugin asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Make the pod's netns ready. Idempotent.
    Add,
    /// Compare the rules in the netns with the fingerprint that ADD left there.
    Check,
    /// Answer: used by agents to learn whether the holder of the socket is alive. Carries no descriptors.
    Ping,
    /// An operation of a newer release.
    #[serde(other)]
    Unknown,
}

/// One attachment, as the runtime names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, which old runtimes do not send.
    pub uid: Option<String>,
}

/// A question to the agent. ADD and CHECK come with four descriptors: the pod's netns, the plugin's own netns, a
/// `NETLINK_NETFILTER` and a `NETLINK_ROUTE` socket made in the pod's netns, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What the sender speaks.
    pub protocol: Versions,
    /// What is asked.
    pub operation: Operation,
    /// About which attachment.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// The decisive annotations, if the runtime handed over the pod's annotations at all.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    /// Variables of the plugin's environment that change the rules ([`ENVIRONMENT`]).
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// The addresses that the plugins before this one gave the pod (prevResult); none when they did not say.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// How long the sender waits for the answer, in milliseconds.
    #[serde(default)]
    pub wait_ms: u64,
}

/// What the plugin is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Succeed: programmed, or nothing to program.
    Done,
    /// Ask again within the deadline, then fail with code 11.
    Retry,
    /// Fail with this CNI error code.
    Fail(u32),
}

/// The agent's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What the agent speaks.
    pub protocol: Versions,
    /// What the plugin is to do.
    pub outcome: Outcome,
    /// Reason code, spelled as in logs and metrics.
    pub reason: String,
    /// One line for the user, when the outcome is not [`Outcome::Done`].
    #[serde(default)]
    pub message: String,
}

/// What a [`Notice`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticeKind {
    /// ADD passed without the agent, for the reason given.
    Pass,
    /// DEL.
    Del,
    /// Something of a newer release.
    #[serde(other)]
    Unknown,
}

/// Why the plugin passes an ADD without asking the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassReason {
    /// No pod name or namespace in `CNI_ARGS`.
    NotKubernetes,
    /// The namespace is listed in `exclude_namespaces`.
    ExcludedNamespace,
    /// A pod of our own DaemonSet.
    AgentPod,
    /// The runtime handed over the annotations, and the sidecar status is not among them.
    NoSidecar,
    /// The runtime handed over the annotations, and by them the pod is a manifest on the node's own disk.
    StaticPod,
    /// The agent observes only, and could not be asked, or failed.
    Observed,
}

impl PassReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::NotKubernetes,
        Self::ExcludedNamespace,
        Self::AgentPod,
        Self::NoSidecar,
        Self::StaticPod,
        Self::Observed,
    ];

    /// The reason code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::NotKubernetes => "not_kubernetes",
            Self::ExcludedNamespace => "excluded_namespace",
            Self::AgentPod => "agent_pod",
            Self::NoSidecar => "no_sidecar",
            Self::StaticPod => "static_pod",
            Self::Observed => "observed",
        }
    }
}

/// One datagram that tells the agent what the plugin did without it; lost when the agent is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What the sender speaks.
    pub protocol: Versions,
    /// What happened.
    pub kind: NoticeKind,
    /// Reason code of a pass, empty for DEL.
    #[serde(default)]
    pub reason: String,
    /// Which attachment.
    #[serde(default)]
    pub sandbox: Sandbox,
}

/// Bytes that are not the expected message.
#[derive(Debug, thiserror::Error)]
#[error("malformed message: {0}")]
pub struct DecodeError(#[from] serde_json::Error);

macro_rules! wire {
    ($message:ty) => {
        impl $message {
            /// The message as JSON.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                serde_json::to_vec(self).expect("strings, numbers and string-keyed maps always serialise")
            }

            /// Read the message from JSON.
            ///
            /// # Errors
            /// [`DecodeError`] when `bytes` are not such a message.
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                Ok(serde_json::from_slice(bytes)?)
            }
        }
    };
}
wire!(Request);
wire!(Answer);
wire!(Notice);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_encoding() {
        let request = Request {
            protocol: PROTOCOL,
            operation: Operation::Add,
            sandbox: Sandbox { name: "a".into(), uid: Some("u".into()), ..Sandbox::default() },
            annotations: Some(BTreeMap::from([("k".into(), "v".into())])),
            environment: BTreeMap::new(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            wait_ms: 5000,
        };
        assert_eq!(Request::decode(&request.encode()).unwrap(), request);
    }

    #[test]
    fn fields_and_operations_of_a_newer_release_are_tolerated() {
        let newer = br#"{"protocol":{"current":2,"oldest":1},"operation":"repair","new_field":[1,2]}"#;
        let request = Request::decode(newer).unwrap();
        assert_eq!(request.operation, Operation::Unknown);
        assert!(PROTOCOL.overlaps(request.protocol));
    }

    #[test]
    fn releases_further_apart_do_not_overlap() {
        let at = |current, oldest| Versions { current, oldest };
        assert!(at(3, 2).overlaps(at(2, 1)));
        assert!(at(2, 1).overlaps(at(3, 2)));
        assert!(!at(3, 2).overlaps(at(1, 1)));
        assert!(!at(1, 1).overlaps(at(3, 2)));
    }
}
