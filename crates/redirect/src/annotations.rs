// SPDX-License-Identifier: Apache-2.0
//! The grammar of annotation values: text to types, and errors that say what is accepted.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ruleset::{IfName, Prefix};

use crate::config::{InboundPorts, Mode, OutboundCidrs, Prefixes};
use crate::families::{Ipv6Policy, NoPolicy};

/// `true` or `false`; the label of the same name replaces it.
pub const INJECT: &str = "sidecar.istio.io/inject";
/// Written by the injector; its presence alone counts.
pub const STATUS: &str = "sidecar.istio.io/status";
/// `REDIRECT`, `TPROXY` or `NONE`.
pub const INTERCEPTION_MODE: &str = "sidecar.istio.io/interceptionMode";
/// Outbound destinations to capture.
pub const INCLUDE_OUTBOUND_CIDRS: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// Outbound destinations to leave alone.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// Inbound ports to capture.
pub const INCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeInboundPorts";
/// Inbound ports to leave alone.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// Outbound ports to capture whatever the destination.
pub const INCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/includeOutboundPorts";
/// Outbound ports to leave alone.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// Interfaces to leave alone.
pub const EXCLUDE_INTERFACES: &str = "traffic.sidecar.istio.io/excludeInterfaces";
/// Interfaces whose arriving traffic counts as outbound.
pub const REROUTE_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// Its deprecated name, read only where the new one is absent.
pub const KUBEVIRT_INTERFACES: &str = "traffic.sidecar.istio.io/kubevirtInterfaces";

/// What happens to IPv6 that the proxy does not serve: `auto`, `capture` or `drop`. Ours; Istio knows no such thing.
pub const IPV6_POLICY: &str = "traffic.waylay.io/ipv6-policy";

/// All that are read.
pub const ALL: [&str; 13] = [
    INJECT,
    STATUS,
    INTERCEPTION_MODE,
    INCLUDE_OUTBOUND_CIDRS,
    EXCLUDE_OUTBOUND_CIDRS,
    INCLUDE_INBOUND_PORTS,
    EXCLUDE_INBOUND_PORTS,
    INCLUDE_OUTBOUND_PORTS,
    EXCLUDE_OUTBOUND_PORTS,
    EXCLUDE_INTERFACES,
    REROUTE_INTERFACES,
    KUBEVIRT_INTERFACES,
    IPV6_POLICY,
];

/// Why a value is refused: what is wrong with it, and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrammarError {
    /// The fault, naming the item.
    pub fault: String,
    /// The accepted form.
    pub accepted: &'static str,
}

const PORTS: &str = "a comma-separated list of ports from 0 to 65535, or nothing";
const PORTS_OR_ALL: &str = "\"*\", a comma-separated list of ports from 0 to 65535, or nothing";
const CIDRS: &str =
    "a comma-separated list of prefixes such as 10.96.0.0/12 or 2001:db8::/32 without blanks, or nothing";
const CIDRS_OR_ALL: &str = "\"*\", a comma-separated list of prefixes such as 10.96.0.0/12 or 2001:db8::/32 without blanks, or nothing";
const INTERFACES: &str = "a comma-separated list of interface names (1 to 15 characters: a letter, then letters, digits, \
                          '_', '.' or '-'), or nothing";

fn refuse<T>(fault: impl Into<String>, accepted: &'static str) -> Result<T, GrammarError> {
    Err(GrammarError { fault: fault.into(), accepted })
}

/// An interception mode. `NONE` is not one: such a pod is not programmed at all.
///
/// # Errors
/// [`GrammarError`] for anything but the two words, which are case-sensitive.
pub fn parse_mode(text: &str) -> Result<Mode, GrammarError> {
    match text {
        "REDIRECT" => Ok(Mode::Redirect),
        "TPROXY" => Ok(Mode::Tproxy),
        _ => refuse("no such mode", "REDIRECT, TPROXY or NONE, in capitals"),
    }
}

/// What is done with IPv6 that the proxy does not serve.
///
/// # Errors
/// [`GrammarError`] for anything but the three words.
pub fn parse_ipv6_policy(text: &str) -> Result<Option<Ipv6Policy>, GrammarError> {
    text.parse().map(Some).or_else(|NoPolicy| refuse("no such policy", "auto, capture or drop"))
}

/// A list of ports; a leading zero is decimal all the same.
///
/// # Errors
/// [`GrammarError`] for an empty item, a sign, a range, a name or a number over 65535.
pub fn parse_ports(text: &str) -> Result<BTreeSet<u16>, GrammarError> {
    ports(text, PORTS)
}

/// A list of ports, or `*` for all.
///
/// # Errors
/// As [`parse_ports`]; `*` must be the whole value.
pub fn parse_inbound_ports(text: &str) -> Result<InboundPorts, GrammarError> {
    if text == "*" { Ok(InboundPorts::All) } else { ports(text, PORTS_OR_ALL).map(InboundPorts::Only) }
}

fn ports(text: &str, accepted: &'static str) -> Result<BTreeSet<u16>, GrammarError> {
    if text.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    let port = |item: &str| {
        let item = item.trim();
        match item.parse() {
            _ if item.is_empty() => refuse("an item is empty", accepted),
            Ok(port) if item.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
            _ => refuse(format!("{} is not a port", shown(item)), accepted),
        }
    };
    text.split(',').map(port).collect()
}

/// A list of CIDR prefixes; host bits may be set.
///
/// # Errors
/// [`GrammarError`] for an empty item, a blank, a bare address or a length beyond the address.
pub fn parse_cidrs(text: &str) -> Result<Prefixes, GrammarError> {
    cidrs(text, CIDRS)
}

/// A list of CIDR prefixes, or `*` for all destinations.
///
/// # Errors
/// As [`parse_cidrs`]; `*` must be the whole value.
pub fn parse_outbound_cidrs(text: &str) -> Result<OutboundCidrs, GrammarError> {
    if text == "*" { Ok(OutboundCidrs::All) } else { cidrs(text, CIDRS_OR_ALL).map(OutboundCidrs::Only) }
}

fn cidrs(text: &str, accepted: &'static str) -> Result<Prefixes, GrammarError> {
    if text.is_empty() {
        return Ok(Prefixes::default());
    }
    let (mut v4, mut v6, mut loopback) = (Vec::new(), Vec::new(), false);
    for item in text.split(',') {
        match parse_cidr(item) {
            Some(Cidr::V4(address, prefix)) => {
                loopback |= address.is_loopback();
                v4.push(prefix);
            }
            Some(Cidr::V6(address, prefix)) => {
                loopback |= address.is_loopback();
                v6.push(prefix);
            }
            None if item.is_empty() => return refuse("an item is empty", accepted),
            None => return refuse(format!("{} is not a prefix", shown(item)), accepted),
        }
    }
    Ok(Prefixes { v4: v4.into_iter().collect(), v6: v6.into_iter().collect(), loopback })
}

/// A prefix with the address as it was written, host bits included.
enum Cidr {
    V4(Ipv4Addr, Prefix<u32>),
    V6(Ipv6Addr, Prefix<u128>),
}

fn parse_cidr(item: &str) -> Option<Cidr> {
    let (address, len) = item.split_once('/')?;
    let plain = len.bytes().all(|b| b.is_ascii_digit()) && (len == "0" || !len.starts_with('0'));
    let len: u8 = if plain { len.parse().ok()? } else { return None };
    match address.parse().ok()? {
        IpAddr::V4(a) => Some(Cidr::V4(a, Prefix::new(a.to_bits(), len).ok()?)),
        IpAddr::V6(a) => Some(Cidr::V6(a, Prefix::new(a.to_bits(), len).ok()?)),
    }
}

/// An IPv4 prefix of loopback addresses.
///
/// # Errors
/// [`GrammarError`] for anything outside 127.0.0.0/8.
pub fn parse_loopback(text: &str) -> Result<Prefix<u32>, GrammarError> {
    match parse_cidr(text) {
        Some(Cidr::V4(address, prefix)) if address.is_loopback() && prefix.prefix_len() >= 8 => Ok(prefix),
        _ => refuse("not a loopback prefix", "one prefix inside 127.0.0.0/8, such as 127.0.0.1/32"),
    }
}

/// A list of interface names.
///
/// # Errors
/// [`GrammarError`] for an empty item or one that is not a name ([`IfName::parse`]).
pub fn parse_interfaces(text: &str) -> Result<BTreeSet<IfName>, GrammarError> {
    if text.is_empty() {
        return Ok(BTreeSet::new());
    }
    let name = |item: &str| match item.trim() {
        "" => refuse("an item is empty", INTERFACES),
        item => IfName::parse(item)
            .or_else(|_| refuse(format!("{} is not an interface name", shown(item)), INTERFACES)),
    };
    text.split(',').map(name).collect()
}

/// A list of numeric group ids; empty items do not count. Names are refused: they would be looked up on whatever
/// machine happens to run the look-up.
///
/// # Errors
/// [`GrammarError`] for an item that is not a number below 2^32.
pub fn parse_groups(text: &str) -> Result<BTreeSet<u32>, GrammarError> {
    let group = |item: &str| match item.parse() {
        Ok(gid) if item.bytes().all(|b| b.is_ascii_digit()) => Ok(gid),
        _ => refuse(
            format!("{} is not a numeric group id", shown(item)),
            "a comma-separated list of numeric group ids",
        ),
    };
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(group).collect()
}

/// A piece of user text, quoted and short enough for one line of an event.
pub(crate) fn shown(text: &str) -> String {
    const MAX: usize = 60;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn port_lists_are_decimal_and_trimmed() {
        for (text, expected) in [
            ("", vec![]),
            (" \t", vec![]),
            ("80", vec![80]),
            (" 80, 90 ", vec![80, 90]),
            ("010,080", vec![10, 80]),
            ("0,65535,80,80", vec![0, 80, 65535]),
        ] {
            assert_eq!(parse_ports(text).unwrap().into_iter().collect::<Vec<_>>(), expected, "{text:?}");
        }
    }

    #[test]
    fn refused_port_lists_name_the_item() {
        for (text, fault) in [
            ("80,,443", "an item is empty"),
            ("80,", "an item is empty"),
            (",", "an item is empty"),
            ("+80", "\"+80\" is not a port"),
            ("-1", "\"-1\" is not a port"),
            ("65536", "\"65536\" is not a port"),
            ("80-90", "\"80-90\" is not a port"),
            ("0x50", "\"0x50\" is not a port"),
            ("http", "\"http\" is not a port"),
            ("*", "\"*\" is not a port"),
            ("80 90", "\"80 90\" is not a port"),
        ] {
            assert_eq!(parse_ports(text), refuse(fault, PORTS), "{text:?}");
        }
        assert_eq!(parse_inbound_ports("*"), Ok(InboundPorts::All));
        assert_eq!(parse_inbound_ports("*,80"), refuse("\"*\" is not a port", PORTS_OR_ALL));
    }

    #[test]
    fn prefixes_may_have_host_bits_and_both_families() {
        let prefixes = parse_cidrs("10.1.2.3/8,2001:db8::1/32,10.0.0.0/9").unwrap();
        assert_eq!(prefixes.v4.ranges()[0].prefix(), Prefix::new(0x0a00_0000, 8).ok());
        assert_eq!((prefixes.v4.ranges().len(), prefixes.v6.ranges().len()), (1, 1));
        assert!(!prefixes.loopback);
        assert_eq!(parse_outbound_cidrs("*"), Ok(OutboundCidrs::All));
        assert_eq!(parse_outbound_cidrs(""), Ok(OutboundCidrs::Only(Prefixes::default())));
    }

    #[test]
    fn a_loopback_prefix_is_one_whose_written_address_is_loopback() {
        for (text, expected) in
            [("127.0.0.0/8", true), ("127.9.9.9/4", true), ("::1/128", true), ("::1/0", true)]
        {
            assert_eq!(parse_cidrs(text).unwrap().loopback, expected, "{text}");
        }
        for text in ["0.0.0.0/0", "::/0", "126.0.0.0/7", "::/64"] {
            assert!(!parse_cidrs(text).unwrap().loopback, "{text}");
        }
    }

    #[test]
    fn refused_prefix_lists_name_the_item() {
        for (text, fault) in [
            ("10.0.0.1", "\"10.0.0.1\" is not a prefix"),
            ("10.0.0.0/33", "\"10.0.0.0/33\" is not a prefix"),
            ("10.0.0.0/08", "\"10.0.0.0/08\" is not a prefix"),
            ("10.0.0.0/+8", "\"10.0.0.0/+8\" is not a prefix"),
            ("10.0.0.0/", "\"10.0.0.0/\" is not a prefix"),
            ("010.0.0.0/8", "\"010.0.0.0/8\" is not a prefix"),
            ("10.0.0.0/8, 11.0.0.0/8", "\" 11.0.0.0/8\" is not a prefix"),
            ("10.0.0.0/8,", "an item is empty"),
            ("fe80::1%eth0/64", "\"fe80::1%eth0/64\" is not a prefix"),
            ("2001:db8::/129", "\"2001:db8::/129\" is not a prefix"),
            ("*", "\"*\" is not a prefix"),
            (" ", "\" \" is not a prefix"),
        ] {
            assert_eq!(parse_cidrs(text), refuse(fault, CIDRS), "{text:?}");
        }
    }

    #[test]
    fn interface_lists_allow_no_wildcards() {
        assert_eq!(parse_interfaces("net1, eth0.5").unwrap().len(), 2);
        assert!(parse_interfaces("").unwrap().is_empty());
        for text in ["net+", "1net", "a,", " ", "abcdefghijklmnop", "a:b", "a@b"] {
            assert!(parse_interfaces(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn groups_are_numbers() {
        assert_eq!(parse_groups("2000,,2001 ").unwrap(), [2000, 2001].into());
        assert!(parse_groups("wheel").is_err());
        assert!(parse_groups("4294967296").is_err());
    }

    #[test]
    fn long_values_are_cut_for_one_line() {
        let long = "é".repeat(100);
        assert_eq!(shown(&long), format!("\"{}\"… (200 bytes)", "é".repeat(60)));
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}", listy in "[0-9a-f.:/,* -]{0,40}") {
            for text in [&text, &listy] {
                let _ = (parse_mode(text), parse_ports(text), parse_inbound_ports(text), parse_cidrs(text));
                let _ = (parse_interfaces(text), parse_groups(text), parse_loopback(text), shown(text));
            }
        }
    }
}
