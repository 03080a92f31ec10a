// SPDX-License-Identifier: Apache-2.0
//! What the library's evaluator says about a packet of the lab: about the packet itself, those that follow on its
//! connection, and the answer, put together to what the lab can observe.

use std::net::IpAddr;

use ruleset::evaluate::{self, Connection, CtState, Interface, Trace, received, sent};
use ruleset::{Hook, IfName, L4, Plan, Table};

use crate::lab::Servers;
use crate::packet::{Expected, Packet, Protocol, Verdict, Way};
use crate::topology;

/// Source port of probes: any that no setting names.
const CLIENT_PORT: u16 = 40_000;
/// Where outbound redirection leads.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// Asks the evaluator about packets to a pod that holds a plan.
pub struct Predictor<'a> {
    plan: &'a Plan,
    servers: Servers,
    /// The tables with what hangs on output only.
    output: Vec<Table>,
}

impl<'a> Predictor<'a> {
    /// For a pod with `plan` and `servers`.
    #[must_use]
    pub fn new(plan: &'a Plan, servers: Servers) -> Self {
        let mut output = plan.tables.clone();
        for table in &mut output {
            table.chains.retain(|chain| chain.base.is_none_or(|base| base.hook == Hook::Output));
        }
        Self { plan, servers, output }
    }

    /// What is to become of `packet`, and the way of its first packet through the rules.
    #[must_use]
    pub fn predict(&self, packet: &Packet) -> (Expected, Trace) {
        let first = evaluated(packet);
        let tables = &self.plan.tables;
        let (left, trace) = match packet.way {
            Way::Out(..) => (Some(sent(&self.output, first.clone())), sent(tables, first)),
            Way::In(_) => (None, received(tables, first)),
        };
        let mut expected = Expected {
            verdict: verdict(trace.verdict),
            zone: None,
            lo_mark: None,
            mark: None,
            connection_mark: None,
            answer_mark: None,
            later_mark: None,
            answer_tracked: None,
        };
        if let Some(left) = left.as_ref().filter(|_| packet.protocol == Protocol::Udp) {
            expected.zone = Some(left.packet.connection.zone);
        }
        let comes_in = left.as_ref().is_none_or(|left| left.packet.interface == Interface::Lo);
        // What is dropped may not get to where marks are seen.
        if packet.protocol == Protocol::Tcp && comes_in && expected.verdict != Verdict::Drop {
            expected.lo_mark = left.as_ref().map(|left| left.packet.mark);
            expected.mark = Some(trace.packet.mark);
            expected.connection_mark = Some(trace.packet.connection.mark);
        }
        if expected.verdict != Verdict::Drop {
            self.answered(packet, &trace, &mut expected);
        }
        let talks = expected.verdict != Verdict::Drop && self.serves(packet, expected.verdict);
        if packet.protocol == Protocol::Tcp && comes_in && talks {
            expected.later_mark = Some(self.later(packet, &trace));
        }
        (expected, trace)
    }

    /// Whether somebody listens where `packet` ends.
    fn serves(&self, packet: &Packet, verdict: Verdict) -> bool {
        verdict != Verdict::Pass || self.servers.serve(packet)
    }

    /// Whether a packet with `mark` is delivered locally, whatever its destination.
    fn comes_back(&self, mark: u32, ipv6: bool) -> bool {
        let route = &self.plan.policy_route;
        route.mark == mark && if ipv6 { route.ipv6 } else { route.ipv4 }
    }

    /// The answer to `packet`, whose way is `trace`: whether it finds its way, and what there is to see.
    fn answered(&self, packet: &Packet, trace: &Trace, expected: &mut Expected) {
        let ipv6 = packet.to.is_ipv6();
        let client = source(packet);
        let mut answer = evaluate::Packet {
            source: packet.to,
            destination: client,
            source_port: packet.port,
            destination_port: CLIENT_PORT,
            owner: None,
            interface: interface(topology::interface_to(client)),
            mark: 0,
            connection: Connection { state: CtState::Established, zone: 0, ..trace.packet.connection },
            ..trace.packet.clone()
        };
        if expected.verdict == Verdict::Pass && !topology::is_local(packet.to) {
            // From the network. The peer's way to the machine behind `vm0` leads through `eth0`.
            answer.interface = interface(match packet.way {
                Way::Out(_, oif) => oif,
                Way::In(_) => "eth0",
            });
            let answer = received(&self.plan.tables, answer);
            let forwarded = matches!(packet.way, Way::In(_));
            if answer.verdict == evaluate::Verdict::Drop
                || forwarded && self.comes_back(answer.packet.mark, ipv6)
            {
                expected.verdict = Verdict::Drop;
            }
            let zone = answer.packet.connection.zone;
            expected.answer_tracked =
                expected.zone.map(|sent| sent == zone && expected.verdict != Verdict::Drop);
            return;
        }
        // From a server of the pod.
        let listener = match expected.verdict {
            Verdict::Redirect(port) | Verdict::Tproxy(port) => port,
            _ => packet.port,
        };
        let owner = self.servers.owner(listener);
        answer.owner = Some((owner.uid, owner.gid));
        if let Verdict::Redirect(port) = expected.verdict {
            answer.source_port = port;
            if matches!(packet.way, Way::Out(..)) {
                answer.source = LOOPBACK[usize::from(ipv6)].parse().unwrap();
            }
        }
        let from_loopback = answer.source.is_loopback();
        let sent = sent(&self.output, answer);
        let lo = sent.packet.interface == Interface::Lo;
        let back = self.comes_back(sent.packet.mark, ipv6);
        let inside = matches!(packet.way, Way::Out(..));
        // Translation is undone in the zone of the query only.
        let astray = matches!(expected.verdict, Verdict::Redirect(_))
            && expected.zone.is_some_and(|zone| zone != sent.packet.connection.zone);
        // The kernel sends nothing from 127.0.0.0/8 to other hosts (`route_localnet`), also not by way of `lo`.
        let unroutable = !ipv6 && from_loopback && !topology::is_local(client);
        if inside != (lo || back) || astray || unroutable {
            expected.verdict = Verdict::Drop;
        } else if inside && packet.protocol == Protocol::Tcp && self.serves(packet, expected.verdict) {
            expected.answer_mark = Some(sent.packet.mark);
        }
    }

    /// The mark of a later packet after mangle on prerouting.
    fn later(&self, packet: &Packet, first: &Trace) -> u32 {
        let established = Connection { state: CtState::Established, ..first.packet.connection };
        let later = evaluate::Packet { connection: established, ..evaluated(packet) };
        if matches!(packet.way, Way::In(_)) {
            return received(&self.plan.tables, later).packet.mark;
        }
        // NAT is done already where it comes in by lo.
        let later = evaluate::Packet {
            owner: None,
            destination: first.packet.destination,
            destination_port: first.packet.destination_port,
            interface: Interface::Lo,
            ..sent(&self.output, later).packet
        };
        received(&self.plan.tables, later).packet.mark
    }
}

/// The fields in which `predicted` is something else than `wanted` wants, where that says anything.
#[must_use]
pub fn differences(wanted: &Expected, predicted: &Expected) -> Vec<&'static str> {
    let differ = |a: Option<u32>, b| a.is_some() && a != b;
    let zone = |expected: &Expected| expected.zone.map(u32::from);
    let tracked = |expected: &Expected| expected.answer_tracked.map(u32::from);
    [
        ("verdict", wanted.verdict != predicted.verdict),
        ("zone", differ(zone(wanted), zone(predicted))),
        ("mark on lo", differ(wanted.lo_mark, predicted.lo_mark)),
        ("mark", differ(wanted.mark, predicted.mark)),
        ("connection mark", differ(wanted.connection_mark, predicted.connection_mark)),
        ("mark of the answer", differ(wanted.answer_mark, predicted.answer_mark)),
        ("later mark", differ(wanted.later_mark, predicted.later_mark)),
        ("answer tracked", differ(tracked(wanted), tracked(predicted))),
    ]
    .into_iter()
    .filter_map(|(field, differs)| differs.then_some(field))
    .collect()
}

fn verdict(verdict: evaluate::Verdict) -> Verdict {
    match verdict {
        evaluate::Verdict::Pass => Verdict::Pass,
        evaluate::Verdict::Redirect(port) => Verdict::Redirect(port),
        evaluate::Verdict::Tproxy(port) => Verdict::Tproxy(port),
        evaluate::Verdict::Drop => Verdict::Drop,
    }
}

fn source(packet: &Packet) -> IpAddr {
    packet.from.unwrap_or_else(|| topology::source_for(packet.to))
}

fn interface(name: &str) -> Interface {
    if name == "lo" { Interface::Lo } else { Interface::Named(IfName::parse(name).unwrap()) }
}

/// The packet as the evaluator takes it.
fn evaluated(packet: &Packet) -> evaluate::Packet {
    let (Way::Out(_, name) | Way::In(name)) = packet.way;
    evaluate::Packet {
        source: source(packet),
        destination: packet.to,
        protocol: match packet.protocol {
            Protocol::Tcp => Some(L4::Tcp),
            Protocol::Udp => Some(L4::Udp),
            Protocol::Icmp => None,
        },
        source_port: CLIENT_PORT,
        destination_port: packet.port,
        owner: packet.ids().map(|ids| (ids.uid, ids.gid)),
        interface: interface(name),
        mark: packet.mark,
        connection: Connection { state: CtState::New, mark: 0, zone: 0 },
    }
}
