// SPDX-License-Identifier: Apache-2.0
//! Settings and packets by chance: packets near what the settings name, since most of what is elsewhere is alike.

use std::net::IpAddr;

use crate::cases;
use crate::matrix::Settings;
use crate::packet::{Ids, Packet, Protocol, Way};
use crate::topology;

/// Values of each setting, for combinations that nobody wrote down.
const POOLS: [(&str, &[&str]); 18] = [
    ("mode", &["REDIRECT", "TPROXY"]),
    ("in_include", &["*", "*", "", "8080", "8080,9090,15008"]),
    ("in_exclude", &["15020,15021,15090", "8080,15020,15021,15090"]),
    (
        "out_cidr_include",
        &[
            "*",
            "*",
            "",
            "10.96.0.0/12,192.168.0.0/16,2001:db8:96::/48",
            "127.0.0.0/8",
            "::1/128",
            "0.0.0.0/0",
            "::/0",
        ],
    ),
    ("out_cidr_exclude", &["", "10.96.5.0/24", "0.0.0.0/0", "203.0.113.0/24,2001:db8:1::/48"]),
    ("out_port_include", &["", "3306,5432", "80"]),
    ("out_port_exclude", &["15020", "", "53,443", "80"]),
    ("exclude_ifaces", &["", "net1", "net1,vm0"]),
    ("reroute_ifaces", &["", "vm0"]),
    ("owner_include", &["*", "*", "2000,2001", "", "1000,0", "1337"]),
    ("owner_exclude", &["", "2000,2001"]),
    ("dns", &["off", "all", "nameservers"]),
    ("nameservers", &["", "203.0.113.10,127.0.0.53,2001:db8:1::10", "203.0.113.10"]),
    ("drop_invalid", &["false", "true"]),
    ("ipv6", &["true", "true", "false", "drop"]),
    ("proxy_uid", &["1337", "5000"]),
    ("proxy_gid", &["1337", "6000"]),
    ("loopback4", &["127.0.0.1/32", "127.0.0.0/8"]),
];
/// Settings that are lists of ports, and of prefixes.
const PORT_LISTS: [&str; 4] = ["in_include", "in_exclude", "out_port_include", "out_port_exclude"];
const PREFIX_LISTS: [&str; 2] = ["out_cidr_include", "out_cidr_exclude"];
/// Ports that packets go to and settings name.
const PORTS: [u16; 14] = [22, 53, 80, 443, 853, 3306, 5432, 8080, 9090, 9999, 15002, 15008, 15020, 15090];
/// Where the proxy listens: a packet to there by itself looks like one that was sent there. And where probes come from,
/// which would meet themselves.
const NEVER: [std::ops::RangeInclusive<u16>; 5] =
    [0..=0, 15001..=15001, 15006..=15006, 15053..=15053, 20_000..=29_999];
const UIDS: [u32; 6] = [0, 1000, 1337, 1338, 5000, 3000];
const GIDS: [u32; 8] = [0, 1000, 1337, 1338, 2000, 2001, 3000, 6000];
/// Addresses that the proxy binds for connections to the application.
const PASSTHROUGH: [&str; 2] = ["127.0.0.6", "::6"];
/// Clients, where each arrives, and what of the pod each asks for.
const CLIENTS: [(&str, &str, &str); 4] = [
    ("10.77.0.1", "10.77.0.2", "eth0"),
    ("fd00:77::1", "fd00:77::2", "eth0"),
    ("10.78.0.1", "10.78.0.2", "net1"),
    ("fd00:78::1", "fd00:78::2", "net1"),
];
/// The machine behind `vm0`, by family.
const VM: [&str; 2] = ["10.79.0.2", "fd00:79::2"];

/// Numbers without a pattern: splitmix64 (Steele, Lea, Flood 2014).
pub struct Random(u64);

impl Random {
    /// The same numbers each time for the same `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.number() % limit as u64).unwrap()
    }

    /// One of `items`.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// `default` with each setting one of a few values.
#[must_use]
pub fn combination(random: &mut Random, default: &Settings) -> Settings {
    let pick = |(key, values): &(&str, &[&str])| format!("{key}={}", random.pick(values));
    default.with(&POOLS.iter().map(pick).collect::<Vec<_>>().join("; "))
}

/// The same, and often lists of anything.
#[must_use]
pub fn settings(random: &mut Random, default: &Settings) -> Settings {
    let mut settings = combination(random, default);
    for key in PORT_LISTS {
        if random.once_in(3) {
            let ports: Vec<String> = (0..=random.below(5)).map(|_| random.pick(&PORTS).to_string()).collect();
            settings = settings.with(&format!("{key}={}", ports.join(",")));
        }
    }
    for key in PREFIX_LISTS {
        if random.once_in(2) {
            let prefixes: Vec<String> = (0..=random.below(5)).map(|_| prefix(random)).collect();
            settings = settings.with(&format!("{key}={}", prefixes.join(",")));
        }
    }
    if random.once_in(2) {
        let servers: Vec<String> = (0..=random.below(3)).map(|_| landmark(random).to_string()).collect();
        settings = settings.with(&format!("nameservers={}", servers.join(",")));
    }
    settings
}

/// A destination of the fixed list.
fn landmark(random: &mut Random) -> IpAddr {
    random.pick(&cases::DESTINATIONS).0.parse().unwrap()
}

/// Some network around a landmark, or anywhere.
fn prefix(random: &mut Random) -> String {
    let len = |random: &mut Random, from: usize, to: usize| from + random.below(to - from + 1);
    match landmark(random) {
        IpAddr::V4(_) if random.once_in(4) => {
            let len = len(random, 1, 16);
            let bits = (random.number() as u32) & (u32::MAX << (32 - len));
            format!("{}/{len}", std::net::Ipv4Addr::from_bits(bits))
        }
        IpAddr::V4(address) => {
            let len = len(random, 4, 32);
            let network = address.to_bits() & (u32::MAX << (32 - len));
            format!("{}/{len}", std::net::Ipv4Addr::from_bits(network))
        }
        IpAddr::V6(address) => {
            let len = len(random, 3, 128);
            let network = address.to_bits() & (u128::MAX << (128 - len));
            format!("{}/{len}", std::net::Ipv6Addr::from_bits(network))
        }
    }
}

/// Packets to and through a pod with `settings`.
pub struct Packets<'a> {
    settings: &'a Settings,
    /// Destinations that the settings set apart from their neighbours.
    edges: Vec<IpAddr>,
    ports: Vec<u16>,
    /// Whether the pod has `::6`.
    passthrough6: bool,
}

impl<'a> Packets<'a> {
    /// For `settings`.
    #[must_use]
    pub fn new(settings: &'a Settings) -> Self {
        let prefixes = PREFIX_LISTS.into_iter().chain(["loopback4"]).flat_map(|key| settings.items(key));
        let mut edges: Vec<IpAddr> = prefixes.flat_map(edges).collect();
        let servers = settings.items("nameservers").map(|server| server.parse::<IpAddr>().unwrap());
        edges.extend(servers.flat_map(|server| around(server, server)));
        edges.retain(|address| topology::answers(*address));
        let named = PORT_LISTS.into_iter().flat_map(|key| settings.items(key));
        let named: Vec<u16> = named.filter_map(|port| port.parse().ok()).collect();
        let ports = named.iter().flat_map(|port| [port - 1, *port, port + 1]).chain(PORTS);
        let ports = ports.filter(|port| NEVER.iter().all(|never| !never.contains(port))).collect();
        let passthrough6 = redirect::compile(&settings.config()).passthrough_ipv6;
        Self { settings, edges, ports, passthrough6 }
    }

    /// The next one.
    pub fn next(&self, random: &mut Random) -> Packet {
        let protocol = match random.below(10) {
            0 => Protocol::Icmp,
            1..=3 => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        let packet = if random.once_in(4) { self.arriving(random) } else { self.sent(random) };
        let port = if protocol == Protocol::Icmp { 0 } else { self.port(random) };
        // The proxy bears its client's address in TCP only.
        let protocol = if packet.mark == 1337 { Protocol::Tcp } else { protocol };
        let port = if protocol == Protocol::Tcp && port == 0 { 8080 } else { port };
        Packet { protocol, port, ..packet }
    }

    fn port(&self, random: &mut Random) -> u16 {
        loop {
            let port = if random.once_in(8) { random.number() as u16 } else { random.pick(&self.ports) };
            if NEVER.iter().all(|never| !never.contains(&port)) {
                return port;
            }
        }
    }

    fn destination(&self, random: &mut Random) -> IpAddr {
        loop {
            let address = match random.below(8) {
                0 => IpAddr::from((random.number() as u32).to_be_bytes()),
                1 => IpAddr::from([127, 0, 0, random.number() as u8]),
                2..=4 if !self.edges.is_empty() => random.pick(&self.edges),
                _ => landmark(random),
            };
            let unbound = address == PASSTHROUGH[1].parse::<IpAddr>().unwrap();
            if topology::answers(address) && !unbound {
                return address;
            }
        }
    }

    fn sent(&self, random: &mut Random) -> Packet {
        let to = self.destination(random);
        let proxy = self.settings.proxy();
        let ids = match random.below(4) {
            0 => proxy,
            1 => Ids { uid: random.pick(&UIDS), gid: proxy.gid },
            _ => Ids { uid: random.pick(&UIDS), gid: random.pick(&GIDS) },
        };
        let oif = topology::interface_to(to);
        let packet =
            Packet { way: Way::Out(ids, oif), protocol: Protocol::Tcp, from: None, to, port: 0, mark: 0 };
        match random.below(12) {
            0 | 1 if oif == "lo" && (to.is_ipv4() || self.passthrough6) => {
                Packet { from: PASSTHROUGH[usize::from(to.is_ipv6())].parse().ok(), ..packet }
            }
            // The mark would lead what is for others to the pod itself, which has no such address.
            2 if oif == "lo" => Packet { mark: 1337, ..packet },
            3 => Packet { mark: random.pick(&[7, 1338]), ..packet },
            4 if oif == "lo" && self.settings.value("mode") == "TPROXY" => {
                let (client, to, _) = random.pick(&CLIENTS);
                let way = Way::Out(Ids { uid: 0, ..proxy }, "lo");
                Packet { way, from: client.parse().ok(), to: to.parse().unwrap(), mark: 1337, ..packet }
            }
            _ => packet,
        }
    }

    fn arriving(&self, random: &mut Random) -> Packet {
        let packet = |from: &str, to, iif| Packet {
            way: Way::In(iif),
            protocol: Protocol::Tcp,
            from: from.parse().ok(),
            to,
            port: 0,
            mark: 0,
        };
        if random.once_in(2) {
            let (from, to, iif) = random.pick(&CLIENTS);
            return packet(from, to.parse().unwrap(), iif);
        }
        loop {
            let to = self.destination(random);
            if !to.is_loopback() {
                return packet(VM[usize::from(to.is_ipv6())], to, "vm0");
            }
        }
    }
}

/// The first and the last address of `prefix`, and their neighbours.
fn edges(prefix: &str) -> Vec<IpAddr> {
    let Some((network, len)) = prefix.split_once('/') else { return Vec::new() };
    let len: u32 = len.parse().unwrap();
    match network.parse().unwrap() {
        IpAddr::V4(first) => {
            let host = u32::MAX.checked_shr(len).unwrap_or(0);
            around(first.into(), std::net::Ipv4Addr::from_bits(first.to_bits() | host).into())
        }
        IpAddr::V6(first) => {
            let host = u128::MAX.checked_shr(len).unwrap_or(0);
            around(first.into(), std::net::Ipv6Addr::from_bits(first.to_bits() | host).into())
        }
    }
}

fn around(first: IpAddr, last: IpAddr) -> Vec<IpAddr> {
    let step = |address: IpAddr, up: bool| match address {
        IpAddr::V4(a) if up => a.to_bits().checked_add(1).map(|a| std::net::Ipv4Addr::from_bits(a).into()),
        IpAddr::V4(a) => a.to_bits().checked_sub(1).map(|a| std::net::Ipv4Addr::from_bits(a).into()),
        IpAddr::V6(a) if up => a.to_bits().checked_add(1).map(|a| std::net::Ipv6Addr::from_bits(a).into()),
        IpAddr::V6(a) => a.to_bits().checked_sub(1).map(|a| std::net::Ipv6Addr::from_bits(a).into()),
    };
    [step(first, false), Some(first), Some(last), step(last, true)].into_iter().flatten().collect()
}
