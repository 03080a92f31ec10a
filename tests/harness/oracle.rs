// SPDX-License-Identifier: Apache-2.0
//! A second reading of the redirection rules: upstream's steps one after the other, as `docs/RULES.md` labels them,
//! with the deviations that we take. It knows nothing of the compiler and works on the text of the settings.
//!
//! It reads the first packet of a connection whose listeners are all there. What needs more is a sequence of its own
//! (`crate::sequence`).

use std::net::IpAddr;

use crate::matrix::Settings;
use crate::packet::{Expected, Packet, Protocol, Verdict, Way};
use crate::topology::within;

const OUTBOUND: Verdict = Verdict::Redirect(15001);
const INBOUND: Verdict = Verdict::Redirect(15006);
const DNS: Verdict = Verdict::Redirect(15053);

/// Hosts whose addresses the proxy bears towards the application, and the interface that leads to each.
const FOREIGN: [(&str, &str); 4] =
    [("10.77.0.1", "eth0"), ("fd00:77::1", "eth0"), ("10.78.0.1", "net1"), ("fd00:78::1", "net1")];
/// Nothing but a verdict.
const NOTHING: Expected = Expected {
    verdict: Verdict::Pass,
    zone: None,
    lo_mark: None,
    mark: None,
    connection_mark: None,
    answer_mark: None,
    later_mark: None,
    answer_tracked: None,
};

/// The steps that decided something, by label.
pub type Trace = Vec<&'static str>;

/// A mistake in the reading of one step, for tests of what compares with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The step never holds.
    Skip(&'static str),
    /// It holds as it should and does something else.
    Alter(&'static str),
}

/// What is to become of `packet`, and by which steps.
#[must_use]
pub fn read(settings: &Settings, packet: &Packet) -> (Expected, Trace) {
    read_with(settings, packet, None)
}

/// The same, read with `fault`.
#[must_use]
pub fn read_with(settings: &Settings, packet: &Packet, fault: Option<Fault>) -> (Expected, Trace) {
    let ipv6 = packet.to.is_ipv6();
    let mut reading = Reading { settings, packet, ipv6, fault, trace: Vec::new() };
    let expected = match packet.way {
        _ if ipv6 && settings.value("ipv6") == "false" => left_alone(packet),
        Way::Out(_, oif) => reading.outbound(oif == "lo"),
        Way::In(iif) => reading.inbound(iif),
    };
    let captured = matches!(expected.verdict, Verdict::Redirect(_) | Verdict::Tproxy(_));
    if ipv6 && settings.value("ipv6") == "drop" && captured {
        return (Expected { verdict: Verdict::Drop, ..NOTHING }, reading.trace);
    }
    (expected, reading.trace)
}

/// Deviation: IPv6 is not touched when it is not captured.
fn left_alone(packet: &Packet) -> Expected {
    let remote_datagram =
        packet.protocol == Protocol::Udp && matches!(packet.way, Way::Out(_, oif) if oif != "lo");
    Expected {
        verdict: Verdict::Pass,
        zone: matches!((packet.protocol, packet.way), (Protocol::Udp, Way::Out(..))).then_some(0),
        answer_tracked: remote_datagram.then_some(true),
        ..NOTHING
    }
}

struct Reading<'a> {
    settings: &'a Settings,
    packet: &'a Packet,
    ipv6: bool,
    fault: Option<Fault>,
    trace: Trace,
}

/// What mangle on prerouting makes of a packet.
struct Mangled {
    tproxy: bool,
    mark: u32,
    connection_mark: u32,
}

impl Reading<'_> {
    fn outbound(&mut self, lo: bool) -> Expected {
        let (zone, mark) = (self.zone(), self.mangle_output(lo));
        let translated = self.nat_output(lo);
        let tcp = self.tcp();
        let mut expected = Expected { verdict: translated, zone, ..NOTHING };
        if !lo && translated == Verdict::Pass {
            expected.answer_tracked = zone.map(|zone| zone == self.answer_zone());
        } else if tcp && self.tproxy_mode() {
            // It comes in by lo, with the translated destination.
            let loopback = parse(if self.ipv6 { "::1" } else { "127.0.0.1" });
            let (to, port) = match translated {
                Verdict::Redirect(port) => (loopback, port),
                _ => (self.packet.to, self.packet.port),
            };
            let mangled = self.mangle_prerouting("lo", mark, to, port);
            expected.lo_mark = Some(mark);
            expected.mark = Some(mangled.mark);
            expected.connection_mark = Some(mangled.connection_mark);
            if mangled.connection_mark == 1337 {
                self.answer(&mut expected);
            }
            if mangled.tproxy {
                self.tproxied(&mut expected);
            }
        }
        expected
    }

    fn inbound(&mut self, iif: &'static str) -> Expected {
        let mut expected = left_alone(self.packet);
        if self.tcp() && self.tproxy_mode() {
            let mangled = self.mangle_prerouting(iif, 0, self.packet.to, self.packet.port);
            expected.mark = Some(mangled.mark);
            expected.connection_mark = Some(mangled.connection_mark);
            if mangled.tproxy {
                self.tproxied(&mut expected);
                return expected;
            }
        }
        expected.verdict = self.nat_prerouting(iif);
        // T7 takes the answer to a connection that the pod forwards for one to the pod, with upstream, too.
        let local = ["10.79.0.1", "fd00:79::1"].iter().any(|own| self.packet.to == parse(own));
        // Where IPv6 is dropped, the mark has no route.
        let routed = !(self.ipv6 && self.settings.value("ipv6") == "drop");
        let everything =
            self.tcp() && self.tproxy_mode() && routed && self.settings.value("in_include") == "*";
        let astray = iif == "vm0" && !local && everything && expected.verdict == Verdict::Pass;
        if astray && self.step("T7") {
            expected.verdict = self.altered("T7", Verdict::Drop, INBOUND);
        }
        expected
    }

    /// T8 for the first packet, T7 for the later ones.
    fn tproxied(&mut self, expected: &mut Expected) {
        expected.verdict = Verdict::Tproxy(15006);
        let later = if self.step("T7") { self.altered("T7", 1337, 1336) } else { 0 };
        expected.later_mark = Some(later);
    }

    /// The answer on a connection of the proxy: K5 brings it to lo by its mark, even where its address is another
    /// host's, unless it is about to leave by an excluded interface or marked packets have no route.
    fn answer(&mut self, expected: &mut Expected) {
        let client = self.packet.from.and_then(|from| FOREIGN.iter().find(|(a, _)| from == parse(a)));
        let unrouted = self.ipv6 && self.settings.value("ipv6") == "drop";
        // What was redirected is answered from 127.0.0.1, which the kernel never sends to another host.
        let martian = !self.ipv6 && matches!(expected.verdict, Verdict::Redirect(_));
        let lost = client.is_some_and(|(_, oif)| {
            self.listed("exclude_ifaces", oif)
                || self.settings.value("in_include").is_empty()
                || unrouted
                || martian
        });
        if lost && self.step("K1") {
            expected.verdict = self.altered("K1", Verdict::Drop, INBOUND);
        } else if self.step("K5") {
            expected.answer_mark = Some(self.altered("K5", 1337, 1336));
        } else {
            expected.answer_mark = Some(0);
        }
    }

    /// Z1 to Z5; Z2 and Z4 are about answers of the DNS proxy.
    fn zone(&mut self) -> Option<u16> {
        if self.packet.protocol != Protocol::Udp {
            return None;
        }
        let query = self.dns() && self.packet.port == 53;
        Some(if query && self.uid_is_proxy() && self.step("Z1") {
            self.altered("Z1", 1, 3)
        } else if query && self.gid_is_proxy() && self.step("Z3") {
            self.altered("Z3", 1, 3)
        } else if query && self.to_nameserver() && self.step("Z5") {
            self.altered("Z5", 2, 3)
        } else {
            0
        })
    }

    /// Z6: the zone in which the answer from outside is looked up.
    fn answer_zone(&mut self) -> u16 {
        let from_server = self.dns() && self.packet.port == 53 && self.to_nameserver();
        if from_server && self.step("Z6") { self.altered("Z6", 1, 3) } else { 0 }
    }

    /// K1 to K4.
    fn mangle_output(&mut self, lo: bool) -> u32 {
        let mark = self.packet.mark;
        if !self.tproxy_mode() || !self.tcp() {
            return mark;
        }
        if self.listed("exclude_ifaces", self.interface()) && self.step("K1") {
            return self.altered("K1", mark, 1336);
        }
        if lo && mark == 1337 && self.step("K2") {
            return self.altered("K2", mark, 1336);
        }
        if lo && !self.loopback(self.packet.to) && self.uid_is_proxy() && self.step("K3") {
            return self.altered("K3", 1338, 1336);
        }
        if lo && !self.loopback(self.packet.to) && self.gid_is_proxy() && self.step("K4") {
            return self.altered("K4", 1338, 1336);
        }
        mark
    }

    fn nat_output(&mut self, lo: bool) -> Verdict {
        let (tcp, udp) = (self.tcp(), self.packet.protocol == Protocol::Udp);
        let (to, port) = (self.packet.to, self.packet.port);
        let (uid, gid) = (self.uid_is_proxy(), self.gid_is_proxy());
        let dns = self.dns();
        let self_call = lo && tcp && !self.loopback(to) && port != 15008 && !(dns && port == 53);
        let stays_inside = lo && !self.includes_loopback() && (!dns || tcp && port != 53);
        let everything = self.settings.value("out_cidr_include") == "*";
        let owner_passes = self.owner_passes();
        let query = dns && port == 53 && (tcp || udp) && self.to_nameserver();
        let steps = [
            ("O1", self.listed("exclude_ifaces", self.interface()), Verdict::Pass),
            ("O2", (tcp || udp) && self.listed("out_port_exclude", &port.to_string()), Verdict::Pass),
            ("O3", lo && self.passed_through(), Verdict::Pass),
            ("O4", self_call && uid, INBOUND),
            ("O5", stays_inside && !uid, Verdict::Pass),
            ("O6", uid, Verdict::Pass),
            // Deviation: port 53 is exempt here, too.
            ("O7", self_call && gid, INBOUND),
            ("O8", stays_inside && !gid, Verdict::Pass),
            ("O9", gid, Verdict::Pass),
            ("O10", owner_passes, Verdict::Pass),
            ("O11", query, DNS),
            ("O12", self.loopback(to), Verdict::Pass),
            ("O13", self.within("out_cidr_exclude", to), Verdict::Pass),
            ("O14", tcp && self.listed("out_port_include", &port.to_string()), OUTBOUND),
            ("O15", tcp && everything, OUTBOUND),
            ("O16", tcp && !everything && self.within("out_cidr_include", to), OUTBOUND),
            ("O17", true, Verdict::Pass),
        ];
        self.first(&steps)
    }

    fn nat_prerouting(&mut self, iif: &str) -> Verdict {
        let (tcp, to, port) = (self.tcp(), self.packet.to, self.packet.port.to_string());
        let rerouted = self.listed("reroute_ifaces", iif);
        let include = self.settings.value("out_cidr_include");
        let taken = include == "*" || self.within("out_cidr_include", to);
        let spared = self.listed("out_port_exclude", &port) || self.within("out_cidr_exclude", to);
        let inbound = self.settings.value("in_include");
        let redirects = !self.tproxy_mode() && !inbound.is_empty();
        let captured = inbound == "*" || self.listed("in_include", &port);
        let excluded = inbound == "*" && self.listed("in_exclude", &port);
        let steps = [
            // Deviation: what is excluded on output is here, too.
            ("P1", rerouted && tcp && taken && !spared, OUTBOUND),
            ("P2", rerouted, Verdict::Pass),
            ("P3", self.listed("exclude_ifaces", iif), Verdict::Pass),
            ("P4", redirects && tcp && port == "15008", Verdict::Pass),
            ("P5", redirects && tcp && excluded, Verdict::Pass),
            ("P6", redirects && tcp && captured, INBOUND),
            ("P7", true, Verdict::Pass),
        ];
        self.first(&steps)
    }

    /// T1 to T9 for the first packet of a TCP connection in TPROXY mode.
    fn mangle_prerouting(&mut self, iif: &str, mark: u32, to: IpAddr, port: u16) -> Mangled {
        if self.listed("exclude_ifaces", iif) && self.step("T1") {
            return Mangled { tproxy: false, mark: self.altered("T1", mark, 1336), connection_mark: 0 };
        }
        let inbound = self.settings.value("in_include");
        let text = port.to_string();
        let not_captured =
            if inbound == "*" { self.listed("in_exclude", &text) } else { !self.listed("in_include", &text) };
        let leave = [
            ("T3", mark == 1337),
            ("T4", iif == "lo" && self.passed_through()),
            ("T5", iif == "lo" && mark != 1338),
            // Deviation: the tunnel port is exempt.
            ("T6", not_captured || port == 15008),
        ];
        let left = leave.into_iter().find(|(label, holds)| *holds && self.step(label));
        let take = left.is_none_or(|(label, _)| self.altered(label, false, true));
        if !inbound.is_empty() && take && !self.loopback(to) && self.step("T8") {
            let mark = self.altered("T8", 1337, 1336);
            return Mangled { tproxy: true, mark, connection_mark: 0 };
        }
        let keep = mark == 1337 && self.step("T9");
        Mangled {
            tproxy: false,
            mark,
            connection_mark: if keep { self.altered("T9", mark, 1336) } else { 0 },
        }
    }

    fn first(&mut self, steps: &[(&'static str, bool, Verdict)]) -> Verdict {
        let Some((label, _, verdict)) = steps.iter().find(|(label, holds, _)| *holds && self.step(label))
        else {
            return Verdict::Pass;
        };
        self.altered(label, *verdict, if *verdict == Verdict::Pass { OUTBOUND } else { Verdict::Pass })
    }

    /// A step holds. Whether it is taken: it is not if that is the fault.
    fn step(&mut self, label: &'static str) -> bool {
        self.trace.push(label);
        self.fault != Some(Fault::Skip(label))
    }

    /// What a step does, or what else if that is the fault.
    fn altered<T>(&self, label: &'static str, right: T, wrong: T) -> T {
        if self.fault == Some(Fault::Alter(label)) { wrong } else { right }
    }

    fn tcp(&self) -> bool {
        self.packet.protocol == Protocol::Tcp
    }

    fn tproxy_mode(&self) -> bool {
        self.settings.value("mode") == "TPROXY"
    }

    fn interface(&self) -> &'static str {
        match self.packet.way {
            Way::Out(_, name) | Way::In(name) => name,
        }
    }

    fn uid_is_proxy(&self) -> bool {
        self.packet.ids().is_some_and(|ids| ids.uid == self.settings.proxy().uid)
    }

    fn gid_is_proxy(&self) -> bool {
        self.packet.ids().is_some_and(|ids| ids.gid == self.settings.proxy().gid)
    }

    fn owner_passes(&self) -> bool {
        let gid = self.packet.ids().expect("outbound only").gid.to_string();
        match self.settings.value("owner_include") {
            "*" => self.listed("owner_exclude", &gid),
            _ => !self.listed("owner_include", &gid),
        }
    }

    fn dns(&self) -> bool {
        match self.settings.value("dns") {
            "all" => true,
            "nameservers" => self.settings.items("nameservers").next().is_some(),
            _ => false,
        }
    }

    fn to_nameserver(&self) -> bool {
        let server = self.packet.to.to_string();
        self.settings.value("dns") == "all" || self.listed("nameservers", &server)
    }

    fn listed(&self, key: &str, wanted: &str) -> bool {
        self.settings.items(key).any(|item| item == wanted)
    }

    fn passed_through(&self) -> bool {
        self.packet.from == Some(parse(if self.ipv6 { "::6" } else { "127.0.0.6" }))
    }

    /// LB: one IPv4 prefix and ::1.
    fn loopback(&self, address: IpAddr) -> bool {
        within(self.settings.value("loopback4"), address) || within("::1/128", address)
    }

    fn within(&self, key: &str, address: IpAddr) -> bool {
        self.settings.items(key).any(|prefix| within(prefix, address))
    }

    /// A prefix counts by the address that was written.
    fn includes_loopback(&self) -> bool {
        let mut prefixes = self.settings.items("out_cidr_include");
        prefixes.any(|prefix| prefix.starts_with("127.") || prefix.starts_with("::1/"))
    }
}

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap()
}
