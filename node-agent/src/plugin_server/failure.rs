// SPDX-License-Identifier: Apache-2.0
//! Why an exchange does not end in success, and the one place that maps this to reason codes and CNI error codes.

use agent_api::frame::FrameError;
use agent_api::{Operation, Outcome, Versions};
use cni::Code;
use redirect::{NoAddress, SettingError};
use ruleset::FingerprintError;

use super::descriptors::DescriptorError;
use crate::pods::Absent;

/// Why the plugin must not report success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Plugin and agent are more than one release apart.
    #[error(
        "plugin and agent are too far apart: the plugin speaks protocol {} (understands {} and later), the agent {} \
         (understands {} and later); update the older of the two",
        theirs.current, theirs.oldest, ours.current, ours.oldest
    )]
    Versions {
        /// The agent's.
        ours: Versions,
        /// The plugin's.
        theirs: Versions,
    },
    /// The plugin asks for something that this release does not know.
    #[error(
        "the agent does not know what the plugin asks for: the plugin speaks protocol {}, the agent {}; update the agent",
        theirs.current, ours.current
    )]
    Operation {
        /// The agent's.
        ours: Versions,
        /// The plugin's.
        theirs: Versions,
    },
    /// The descriptors were lost on the way.
    #[error("receive the pod's network namespace: {0}")]
    Frame(#[source] FrameError),
    /// The descriptors are not those of a pod.
    #[error("{0}")]
    Descriptors(#[from] DescriptorError),
    /// The pod is not known.
    #[error("pod {pod}: {absent}; the pod source may be behind or stopped")]
    Pod {
        /// Namespace and name.
        pod: String,
        /// Why.
        absent: Absent,
    },
    /// The pod's runtime goes past the rules, and the settings refuse such pods.
    #[error(
        "runtime class {class} does not heed the rules of the pod's network namespace, so that its traffic would go past \
         its proxy; take the pod out of the mesh or use another runtime class"
    )]
    RuntimeClass {
        /// Its name.
        class: String,
    },
    /// A setting of the pod or of the node.
    #[error("{0}")]
    Setting(#[from] SettingError),
    /// The pod has no address.
    #[error("{0}")]
    NoAddress(#[from] NoAddress),
    /// The kernel refused.
    #[error("{attempt} in the pod's network namespace: {source}")]
    Kernel {
        /// What was tried.
        attempt: &'static str,
        /// Cause.
        source: kernel::Error,
    },
    /// The kernel refuses this agent, whatever the pod.
    #[error("{attempt} in the agent's own network namespace: {source}")]
    SelfTest {
        /// What was tried.
        attempt: &'static str,
        /// Cause.
        source: kernel::Error,
    },
    /// CHECK: a table is not as written.
    #[error("check the rules in the pod's network namespace: {0}; delete the pod to have them written anew")]
    Differ(#[from] FingerprintError),
    /// CHECK: a table cannot be read back, so that it is not what a release wrote.
    #[error("check the rules in the pod's network namespace: {0}; delete the pod to have them written anew")]
    Unreadable(#[source] kernel::Error),
    /// CHECK: ADD wrote rules, and they are gone.
    #[error(
        "check the rules in the pod's network namespace: they are gone; delete the pod to have them written anew"
    )]
    Gone,
    /// The queue is full.
    #[error("the agent has too much to do at this moment")]
    Busy,
    /// A defect.
    #[error("a defect in the agent; its log has the place")]
    Internal,
}

impl Failure {
    /// The reason code, as in logs, metrics and the answer.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Versions { .. } => "protocol_versions",
            Self::Operation { .. } => "unknown_operation",
            Self::Frame(_) => "descriptors_denied",
            Self::Descriptors(error) => error.reason(),
            Self::Pod { absent: Absent::Unreachable { .. }, .. } => "api_unreachable",
            Self::Pod { .. } => "pod_unknown",
            Self::RuntimeClass { .. } => "runtime_class_bypass",
            Self::Setting(SettingError::Annotation { .. }) => "invalid_annotation",
            Self::Setting(SettingError::Node { .. }) => "invalid_node_setting",
            Self::NoAddress(_) => "no_address",
            Self::Kernel { source, .. } | Self::SelfTest { source, .. } if source.transient() => {
                "kernel_busy"
            }
            Self::Kernel { .. } | Self::SelfTest { .. } => "kernel_refused",
            Self::Differ(_) | Self::Unreadable(_) => "rules_differ",
            Self::Gone => "rules_gone",
            Self::Busy => "busy",
            Self::Internal => "internal",
        }
    }

    /// What the plugin is to do.
    pub(crate) fn outcome(&self) -> Outcome {
        let code = match self {
            Self::Kernel { source, .. } | Self::SelfTest { source, .. } if source.transient() => {
                return Outcome::Retry;
            }
            // A limit of open files may be free again in a moment; a security module makes it code 11 in the end.
            Self::Busy | Self::Frame(_) => return Outcome::Retry,
            Self::Versions { .. } | Self::Operation { .. } | Self::Descriptors(_) => Code::Refused,
            Self::Setting(SettingError::Node { .. }) => Code::NodeSettings,
            Self::NoAddress(_) => Code::NoAddress,
            Self::Setting(SettingError::Annotation { .. }) => Code::PodSettings,
            Self::Pod { .. } => Code::TryAgain,
            Self::RuntimeClass { .. } => Code::Bypassed,
            Self::Kernel { .. } | Self::SelfTest { .. } => Code::RulesNotApplied,
            Self::Differ(_) | Self::Unreadable(_) | Self::Gone => Code::RulesDiffer,
            Self::Internal => Code::Internal,
        };
        Outcome::Fail(code.number())
    }

    /// Whether the peer itself is at fault: such exchanges count as refused peers, too.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Versions { .. } | Self::Operation { .. } | Self::Frame(_) | Self::Descriptors(_))
    }
}

/// The name of an operation in logs.
pub(crate) fn op(operation: Operation) -> &'static str {
    match operation {
        Operation::Add => "add",
        Operation::Check => "check",
        Operation::Ping => "ping",
        Operation::Unknown => "unknown",
    }
}
