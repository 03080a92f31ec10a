// SPDX-License-Identifier: Apache-2.0
//! What happens to a pod's IPv6 traffic, and the reason why.

use std::net::IpAddr;
use std::str::FromStr;

use crate::config::{Ipv6, PASSTHROUGH_V6};

/// What is done with IPv6 that the proxy does not serve: a proxy that does not say that it is dual-stack listens on
/// IPv4 only, wherever the pod has an IPv4 address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6Policy {
    /// As Istio does: leave it alone, so that it bypasses the proxy.
    #[default]
    Auto,
    /// Send it to the proxy, which refuses it unless it listens there all the same.
    Capture,
    /// Drop what would be captured in IPv4; addresses that the pod gets later included.
    Drop,
}

/// Text that is no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such policy: use auto, capture or drop")]
pub struct NoPolicy;

impl FromStr for Ipv6Policy {
    type Err = NoPolicy;

    fn from_str(text: &str) -> Result<Self, NoPolicy> {
        match text {
            "auto" => Ok(Self::Auto),
            "capture" => Ok(Self::Capture),
            "drop" => Ok(Self::Drop),
            _ => Err(NoPolicy),
        }
    }
}

/// What is done with a pod's IPv6, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ipv6Decision {
    /// The pod has no IPv6 address.
    Absent,
    /// The proxy serves it.
    Served,
    /// The pod has IPv6, the proxy does not serve it, and it is left alone: a way past the proxy.
    Bypass,
    /// The proxy does not say that it serves it; the policy sends it there.
    Captured,
    /// The proxy does not say that it serves it; the policy drops it.
    Dropped,
}

impl Ipv6Decision {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Absent, Self::Served, Self::Bypass, Self::Captured, Self::Dropped];

    /// The reason code, as in logs, metrics and events.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Absent => "ipv6_absent",
            Self::Served => "ipv6_served",
            Self::Bypass => "ipv6_bypass",
            Self::Captured => "ipv6_captured",
            Self::Dropped => "ipv6_dropped",
        }
    }

    /// What it comes to in the rules.
    #[must_use]
    pub fn treatment(self) -> Ipv6 {
        match self {
            Self::Absent | Self::Bypass => Ipv6::Leave,
            Self::Served | Self::Captured => Ipv6::Capture,
            Self::Dropped => Ipv6::Drop,
        }
    }
}

/// The pod has no address that could decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod has no IP address besides loopback and link-local ones; the network plugins before this one must give it one"
)]
pub struct NoAddress;

/// Decide about IPv6 in a pod whose network plugins `reported` these addresses and whose interfaces bear those `present`.
///
/// A pod with IPv4 is an IPv4 pod unless its proxy says that it is `dual_stack`; one with IPv6 only is served in IPv6.
/// What was reported decides what the pod is, since addresses may still be on their way; where nothing was, what is
/// present does. Either shows that there is IPv6 at all.
///
/// # Errors
/// [`NoAddress`] when nothing but loopback and link-local addresses is there.
pub fn decide_ipv6(
    policy: Ipv6Policy,
    dual_stack: bool,
    reported: &[IpAddr],
    present: &[IpAddr],
) -> Result<Ipv6Decision, NoAddress> {
    let usable = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().map(IpAddr::to_canonical).filter(|a| !ignored(*a)).collect()
    };
    let (reported, present) = (usable(reported), usable(present));
    let pod = if reported.is_empty() { &present } else { &reported };
    if pod.is_empty() {
        return Err(NoAddress);
    }
    let ipv4 = pod.iter().any(IpAddr::is_ipv4);
    let ipv6 = reported.iter().chain(&present).any(IpAddr::is_ipv6);
    Ok(match policy {
        _ if ipv6 && (dual_stack || !ipv4) => Ipv6Decision::Served,
        Ipv6Policy::Drop => Ipv6Decision::Dropped,
        _ if !ipv6 => Ipv6Decision::Absent,
        Ipv6Policy::Auto => Ipv6Decision::Bypass,
        Ipv6Policy::Capture => Ipv6Decision::Captured,
    })
}

/// Loopback, link-local unicast and link-local multicast addresses say nothing about the pod's network, nor does the
/// address that an earlier ADD put there.
fn ignored(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => a.is_loopback() || a.is_link_local() || a.octets()[..3] == [224, 0, 0],
        IpAddr::V6(a) => {
            a == PASSTHROUGH_V6
                || a.is_loopback()
                || a.is_unicast_link_local()
                || a.segments()[0] & 0xff0f == 0xff02
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &[&str] = &["10.0.0.1"];
    const V6: &[&str] = &["fd00::1"];
    const BOTH: &[&str] = &["10.0.0.1", "fd00::1"];
    const NONE: &[&str] = &["127.0.0.1", "169.254.9.9", "224.0.0.5", "::1", "::6", "fe80::1", "ff02::1"];

    fn decided(policy: &str, dual_stack: bool, reported: &[&str], present: &[&str]) -> &'static str {
        let parsed = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let decision = decide_ipv6(policy.parse().unwrap(), dual_stack, &parsed(reported), &parsed(present));
        decision.map_or("no_address", Ipv6Decision::code)
    }

    #[test]
    fn a_pod_with_ipv4_is_served_in_ipv6_only_when_its_proxy_is_dual_stack() {
        for (present, single, dual) in [
            (V4, "ipv6_absent", "ipv6_absent"),
            (V6, "ipv6_served", "ipv6_served"),
            (BOTH, "ipv6_bypass", "ipv6_served"),
            (&["fd00::1", "10.0.0.1"], "ipv6_bypass", "ipv6_served"),
            (&["169.254.1.1", "fd00::1"], "ipv6_served", "ipv6_served"),
            (&["::ffff:10.0.0.1"], "ipv6_absent", "ipv6_absent"),
            (NONE, "no_address", "no_address"),
            (&[], "no_address", "no_address"),
        ] {
            assert_eq!(decided("auto", false, &[], present), single, "{present:?}");
            assert_eq!(decided("auto", true, &[], present), dual, "{present:?} dual stack");
        }
    }

    #[test]
    fn the_policy_decides_what_the_proxy_does_not_serve() {
        assert_eq!(decided("capture", false, &[], BOTH), "ipv6_captured");
        assert_eq!(decided("drop", false, &[], BOTH), "ipv6_dropped");
        assert_eq!(decided("capture", false, &[], V4), "ipv6_absent");
        assert_eq!(decided("drop", false, &[], V4), "ipv6_dropped", "an address may come later");
        for policy in ["capture", "drop"] {
            assert_eq!(decided(policy, true, &[], BOTH), "ipv6_served");
            assert_eq!(decided(policy, false, &[], V6), "ipv6_served");
            assert_eq!(decided(policy, false, &[], NONE), "no_address");
        }
    }

    #[test]
    fn what_the_network_plugins_reported_says_what_the_pod_is() {
        assert_eq!(decided("auto", false, V6, BOTH), "ipv6_served", "IPv4 on an interface of its own");
        assert_eq!(decided("auto", false, V4, BOTH), "ipv6_bypass", "IPv6 is there all the same");
        assert_eq!(decided("auto", true, BOTH, V4), "ipv6_served", "on its way");
        assert_eq!(decided("auto", false, NONE, V6), "ipv6_served", "nothing usable was reported");
        assert_eq!(decided("auto", false, V4, &[]), "ipv6_absent");
    }

    #[test]
    fn a_policy_is_one_of_three_words() {
        for text in ["", "Auto", "DROP", "capture ", "none"] {
            assert_eq!(text.parse::<Ipv6Policy>(), Err(NoPolicy), "{text:?}");
        }
    }
}
