// SPDX-License-Identifier: Apache-2.0
//! The redirect model: from a pod to the rules in its network namespace.
//!
//! Owns what is read of a pod ([`Pod`]), whether it is redirected and why not ([`decide`]), the grammar of the
//! annotations and their errors, the resolved settings ([`Config`]) and the compiler ([`compile`]). Pure: no I/O, no
//! clock, no logging.
//!
//! It must never know sockets, files or how a rule is encoded.

pub mod annotations;
mod compile;
mod config;
mod decide;
mod families;
mod pod;
mod resolve;

pub use annotations::ALL as ANNOTATIONS;
pub use compile::{TABLE, compile, nothing};
pub use config::{
    Config, Dns, InboundPorts, Ipv6, Mode, OutboundCidrs, OwnerGroups, Prefixes, Proxy, TPROXY_MARK,
    TPROXY_TABLE, ports,
};
pub use decide::{Decision, Reason, decide};
pub use families::{Ipv6Decision, Ipv6Policy, NoAddress, NoPolicy, decide_ipv6};
pub use pod::{Container, EnvVar, Metadata, Pod, SecurityContext, Spec};
pub use resolve::SettingError;
