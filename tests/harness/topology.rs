// SPDX-License-Identifier: Apache-2.0
//! What the routes of the lab (`crate::lab`) do with addresses; no I/O.

use std::net::IpAddr;

/// Addresses of the pod on its interfaces, with the interface.
const LINKS: [(&str, &str); 6] = [
    ("10.77.0.2", "eth0"),
    ("10.78.0.2", "net1"),
    ("10.79.0.1", "vm0"),
    ("fd00:77::2", "eth0"),
    ("fd00:78::2", "net1"),
    ("fd00:79::1", "vm0"),
];
/// Its addresses on `lo` besides 127.0.0.0/8.
const LOOPBACK: [&str; 4] = ["10.96.9.9", "::1", "::6", "2001:db8:96:9::9"];
/// What `net1` leads to, its link included.
const NET1: [&str; 5] = ["198.18.0.0/24", "10.97.0.0/24", "10.78.0.0/24", "2001:db8:18::/64", "fd00:78::/64"];
/// Networks of the links, where only the hosts of the lab answer.
const LINK_NETWORKS: [&str; 6] =
    ["10.77.0.0/24", "10.78.0.0/24", "10.79.0.0/24", "fd00:77::/64", "fd00:78::/64", "fd00:79::/64"];
/// Addresses of the peer.
const PEER: [&str; 4] = ["10.77.0.1", "10.78.0.1", "fd00:77::1", "fd00:78::1"];
/// The machine behind `vm0`.
const VM: [&str; 2] = ["10.79.0.2", "fd00:79::2"];
/// Where unicast that anybody could be asked for lies. No IPv4 network with a meaning of its own.
const UNICAST: [&str; 6] = ["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "2000::/3", "fc00::/7", "127.0.0.0/8"];
const NOT_UNICAST: [&str; 3] = ["0.0.0.0/8", "127.0.0.0/32", "127.255.255.255/32"];

/// Whether `address` is in `prefix`; never in one of the other family, nor in `*`.
#[must_use]
pub fn within(prefix: &str, address: IpAddr) -> bool {
    let Some((network, len)) = prefix.split_once('/') else { return false };
    let len: u32 = len.parse().unwrap();
    let differing = match (network.parse().unwrap(), address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= len
}

fn one_of(list: &[&str], address: IpAddr) -> bool {
    list.iter().any(|item| item.parse() == Ok(address))
}

/// Whether the pod has `address`.
#[must_use]
pub fn is_local(address: IpAddr) -> bool {
    within("127.0.0.0/8", address)
        || one_of(&LOOPBACK, address)
        || LINKS.iter().any(|(own, _)| own.parse() == Ok(address))
}

/// The interface by which the pod sends to `address`.
#[must_use]
pub fn interface_to(address: IpAddr) -> &'static str {
    let within = |prefix: &&str| within(prefix, address);
    match () {
        () if is_local(address) => "lo",
        () if NET1.iter().any(within) => "net1",
        () if one_of(&VM, address) => "vm0",
        () => "eth0",
    }
}

/// The address that the kernel gives to what the pod sends to `address`.
#[must_use]
pub fn source_for(address: IpAddr) -> IpAddr {
    if within("127.0.0.0/8", address) {
        return IpAddr::from([127, 0, 0, 1]);
    }
    let interface = interface_to(address);
    if interface == "lo" {
        return address;
    }
    let own = |(own, on): &(&str, &str)| {
        own.parse().ok().filter(|own: &IpAddr| *on == interface && own.is_ipv4() == address.is_ipv4())
    };
    LINKS.iter().find_map(own).expect("each interface has an address of each family")
}

/// Whether something answers at `address` when the pod sends to it.
#[must_use]
pub fn answers(address: IpAddr) -> bool {
    let within = |prefix: &&str| within(prefix, address);
    is_local(address) && !NOT_UNICAST.iter().any(within)
        || one_of(&PEER, address)
        || UNICAST.iter().any(within) && !LINK_NETWORKS.iter().any(within) && !NOT_UNICAST.iter().any(within)
}
