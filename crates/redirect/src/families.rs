// SPDX-License-Identifier: Apache-2.0
//! Whether a pod's IPv6 traffic is captured.

use std::net::IpAddr;

use crate::config::PASSTHROUGH_V6;

/// The pod has no address that could decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod has no IP address besides loopback and link-local ones; the network plugins before this one must give it one"
)]
pub struct NoAddress;

/// Whether IPv6 is captured in a pod with these `addresses`, in the order in which the kernel lists them.
///
/// A proxy that does not say that it is dual-stack listens on the family of the pod's first address only, so that
/// address decides; the other family is left alone.
///
/// # Errors
/// [`NoAddress`] when nothing but loopback and link-local addresses is there.
pub fn wants_ipv6(dual_stack: bool, addresses: impl IntoIterator<Item = IpAddr>) -> Result<bool, NoAddress> {
    let mut usable = addresses.into_iter().map(|a| a.to_canonical()).filter(|a| !ignored(*a)).peekable();
    let first = usable.peek().ok_or(NoAddress)?.is_ipv6();
    Ok(if dual_stack { usable.any(|a| a.is_ipv6()) } else { first })
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

    #[test]
    fn the_first_usable_address_decides_unless_the_proxy_is_dual_stack() {
        let (v4, v6) = ("10.0.0.1", "fd00::1");
        // addresses, dual stack -> IPv6?
        let cases: &[(&[&str], bool, Option<bool>)] = &[
            (&[v4], false, Some(false)),
            (&[v4], true, Some(false)),
            (&[v6], false, Some(true)),
            (&[v4, v6], false, Some(false)),
            (&[v4, v6], true, Some(true)),
            (&["127.0.0.1", "169.254.1.1", v6], false, Some(true)),
            (&["127.0.0.1", "::1", "fe80::1", "169.254.9.9", "::6"], false, None),
            (&["::ffff:10.0.0.1"], false, Some(false)),
            (&["224.0.0.5", "ff02::1"], true, None),
            (&["127.0.0.1", "::1", "fe80::1"], true, None),
            (&[], false, None),
        ];
        for (addresses, dual_stack, expected) in cases {
            let parsed = addresses.iter().map(|a| a.parse().unwrap());
            assert_eq!(wants_ipv6(*dual_stack, parsed).ok(), *expected, "{addresses:?} {dual_stack}");
        }
    }
}
