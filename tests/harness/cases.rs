// SPDX-License-Identifier: Apache-2.0
//! Packets for any settings: a fixed list that takes every step of the rules in one configuration or another.

use std::net::IpAddr;

use crate::check::Case;
use crate::matrix::Settings;
use crate::oracle;
use crate::packet::{APP, Ids, Packet, Protocol, ROOT, Verdict, Way};

/// Destinations of the pod's own packets, and the interface that each leaves by.
pub(crate) const DESTINATIONS: [(&str, &str); 21] = [
    ("203.0.113.10", "eth0"),
    ("2001:db8:1::10", "eth0"),
    ("10.77.0.2", "lo"),
    ("fd00:77::2", "lo"),
    ("127.0.0.1", "lo"),
    ("::1", "lo"),
    ("127.0.0.2", "lo"),
    ("127.0.0.53", "lo"),
    ("10.78.0.2", "lo"),
    ("fd00:78::2", "lo"),
    ("10.96.9.9", "lo"),
    ("2001:db8:96:9::9", "lo"),
    ("10.96.1.1", "eth0"),
    ("2001:db8:96::7", "eth0"),
    ("10.96.5.1", "eth0"),
    ("2001:db8:96:5::1", "eth0"),
    ("2001:db8:5::1", "eth0"),
    ("169.254.169.254", "eth0"),
    ("198.18.0.5", "net1"),
    ("10.97.0.1", "net1"),
    ("2001:db8:18::5", "net1"),
];
/// How many of them get packets to all of [`PORTS`].
const MAIN: usize = 6;
const PORTS: [u16; 10] = [8080, 53, 80, 443, 3306, 9090, 9999, 15008, 15020, 15021];
const FEW_PORTS: [u16; 4] = [8080, 53, 3306, 15008];
const UDP_PORTS: [u16; 3] = [53, 8080, 15020];
/// Arriving packets: source, destination, interface.
const ARRIVING: [(&str, &str, &str); 10] = [
    ("10.77.0.1", "10.77.0.2", "eth0"),
    ("fd00:77::1", "fd00:77::2", "eth0"),
    ("10.78.0.1", "10.78.0.2", "net1"),
    ("fd00:78::1", "fd00:78::2", "net1"),
    ("10.79.0.2", "10.79.0.1", "vm0"),
    ("fd00:79::2", "fd00:79::1", "vm0"),
    ("10.79.0.2", "203.0.113.10", "vm0"),
    ("fd00:79::2", "2001:db8:1::10", "vm0"),
    ("10.79.0.2", "10.96.1.1", "vm0"),
    ("fd00:79::2", "2001:db8:96::7", "vm0"),
];
/// Addresses that the proxy binds for connections to the application.
const PASSTHROUGH: [&str; 2] = ["127.0.0.6", "::6"];

/// Who sends: the application, the proxy by both, one or the other id or with another group, root, members of groups.
fn senders(settings: &Settings) -> Vec<Ids> {
    let proxy = settings.proxy();
    let gid = |gid| Ids { gid, ..APP };
    let proxies = [proxy, Ids { gid: 0, ..proxy }, Ids { gid: 2000, ..proxy }, Ids { uid: 0, ..proxy }];
    [APP].into_iter().chain(proxies).chain([ROOT, gid(2000), gid(2001), gid(3000)]).collect()
}

/// The packets with what the oracle says about each, and the steps that they take.
#[must_use]
pub fn generate(settings: &Settings) -> Vec<(Case, oracle::Trace)> {
    let packets = sent(settings).into_iter().chain(marked(settings)).chain(arriving());
    packets
        .enumerate()
        .map(|(number, packet)| {
            let (expected, trace) = oracle::read(settings, &packet);
            (Case { id: format!("G{number:04}"), packet, expected }, trace)
        })
        // Silence takes long to notice: of what arrives and gets none, one port shows as much as all.
        .filter(|(case, _)| {
            let silent = case.expected.verdict == Verdict::Drop && matches!(case.packet.way, Way::In(_));
            !silent || case.packet.port == 15020
        })
        .collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn sent(settings: &Settings) -> Vec<Packet> {
    let mut packets = Vec::new();
    for ids in senders(settings) {
        for (index, (to, oif)) in DESTINATIONS.into_iter().enumerate() {
            let packet = |protocol, from, port| Packet {
                way: Way::Out(ids, oif),
                protocol,
                from,
                to: address(to),
                port,
                mark: 0,
            };
            let ports = if index < MAIN { &PORTS[..] } else { &FEW_PORTS };
            packets.extend(ports.iter().map(|port| packet(Protocol::Tcp, None, *port)));
            packets.extend(UDP_PORTS.map(|port| packet(Protocol::Udp, None, port)));
            let passthrough = address(PASSTHROUGH[usize::from(address(to).is_ipv6())]);
            if oif == "lo" && (settings.value("ipv6") == "true" || passthrough.is_ipv4()) {
                packets.extend(
                    FEW_PORTS[..2].iter().map(|port| packet(Protocol::Tcp, Some(passthrough), *port)),
                );
            }
        }
    }
    packets
}

/// Packets of sockets that already bear a mark, which only TPROXY looks at.
fn marked(settings: &Settings) -> Vec<Packet> {
    let senders = if settings.value("mode") == "TPROXY" { senders(settings) } else { Vec::new() };
    let packet = |ids, mark, to| Packet {
        way: Way::Out(ids, "lo"),
        protocol: Protocol::Tcp,
        from: None,
        to: address(to),
        port: 8080,
        mark,
    };
    let own = ["10.77.0.2", "fd00:77::2", "127.0.0.1", "::1"];
    let marks = |ids: &Ids| {
        let ids = *ids;
        [1337, 1338].into_iter().flat_map(move |mark| own.map(|to| packet(ids, mark, to)))
    };
    let mut packets: Vec<Packet> = senders.iter().flat_map(marks).collect();
    if !senders.is_empty() {
        // The proxy calls the application with its client's address.
        let proxy = Ids { uid: 0, ..settings.proxy() };
        let captured =
            ARRIVING[..4].iter().filter(|(to, ..)| settings.value("ipv6") == "true" || address(to).is_ipv4());
        packets.extend(
            captured.map(|(client, to, _)| Packet { from: Some(address(client)), ..packet(proxy, 1337, to) }),
        );
    }
    packets
}

fn arriving() -> Vec<Packet> {
    let mut packets = Vec::new();
    for (from, to, iif) in ARRIVING {
        let packet = |protocol, port| Packet {
            way: Way::In(iif),
            protocol,
            from: Some(address(from)),
            to: address(to),
            port,
            mark: 0,
        };
        packets.extend(PORTS.map(|port| packet(Protocol::Tcp, port)));
        packets.extend(UDP_PORTS.map(|port| packet(Protocol::Udp, port)));
    }
    packets
}
