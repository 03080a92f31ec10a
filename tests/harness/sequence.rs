// SPDX-License-Identifier: Apache-2.0
//! What takes more than one ordinary packet: crafted segments, connections older than the rules, servers that are not
//! there, two senders with the same addresses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::errno::Errno;
use ruleset::{Form, Plan, Table};

use crate::check::{self, Case, Until};
use crate::lab::{Lab, Servers};
use crate::matrix::{Row, Settings};
use crate::observer;
use crate::oracle;
use crate::packet::{APP, Ids, Packet, Protocol, Verdict, Way};
use crate::probe::{Connection, Outcome, PATIENCE, SILENCE, judge, probe};
use crate::segment::{PSH_ACK, RST, Segment, Wire};

const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const POD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// No flags: no state of a connection expects such a segment.
const NO_FLAGS: u8 = 0;

/// The verdict of a row whose profile begins with `sp-`, with the rules in this form and `rp_filter` in the pod.
///
/// # Errors
/// A text when it shows none.
pub fn verdict(row: &Row, form: Form, rp_filter: u8) -> Result<Verdict, String> {
    let (settings, plan) = (&row.settings, redirect::compile(&row.settings.config()).in_form(form));
    let servers = Servers { rp_filter, ..Servers::of(settings) };
    let kind = row.profile.strip_prefix("sp-").expect("a row of a sequence");
    match kind.strip_suffix('6').unwrap_or(kind) {
        "drop-invalid" | "drop-invalid-off" => {
            let lab = Lab::programmed(Servers { others: false, ..servers }, &plan);
            Ok(if invalid_is_dropped(&lab, &plan.tables[0], row.packet.port) {
                Verdict::Drop
            } else {
                Verdict::Pass
            })
        }
        "oow-drop" | "oow-nodrop" => beyond_window(&Lab::programmed(servers, &plan), &row.packet),
        "tproxy-divert" => later_packets(&Lab::programmed(servers, &plan), settings, &row.packet),
        "tproxy-origsrc" => as_client(&Lab::programmed(servers, &plan), settings, &row.packet),
        "tproxy-appreply" => {
            // The row is the answer; this is what it answers.
            let call = Packet {
                way: Way::Out(servers.proxy, "lo"),
                from: Some(row.packet.to),
                to: row.packet.from.expect("the row has both addresses"),
                port: 8080,
                mark: 1337,
                ..row.packet
            };
            as_client(&Lab::programmed(servers, &plan), settings, &call)
        }
        "tproxy-nolistener" | "redirect-nolistener" => {
            nobody_listens(&Lab::programmed(Servers { inbound: false, ..servers }, &plan), &row.packet)
        }
        "dns-same-tuple-app" => same_tuple(&Lab::programmed(servers, &plan), &[row.packet]),
        "dns-same-tuple-proxy" => {
            let app = Packet { way: Way::Out(APP, "eth0"), ..row.packet };
            same_tuple(&Lab::programmed(servers, &plan), &[app, row.packet])
        }
        "virt-noaddr" => no_address(&Lab::programmed(servers, &plan), &row.packet),
        "preexisting-in" | "preexisting-out" => untracked_connection(&Lab::new(servers), &plan, row),
        other => Err(format!("no such sequence: {other}")),
    }
}

/// Whether `lab` with `table` drops what conntrack cannot place. Nothing may listen on `port`: without `table`, the pod
/// resets the segment, which shows first that it arrives.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn invalid_is_dropped(lab: &Lab, table: &Table, port: u16) -> bool {
    let wire = Wire::open(&lab.peer, POD.into());
    let reset = |patience| {
        let (from, to) = (SocketAddr::new(PEER.into(), lab.fresh_port()), SocketAddr::new(POD.into(), port));
        wire.send(&Segment { from, to, seq: 1, ack: 0, flags: NO_FLAGS, len: 0 });
        wire.receive(to, from, patience).is_some_and(|answer| answer.flags & RST != 0)
    };
    lab.remove();
    assert!(reset(PATIENCE), "the segment does not arrive");
    lab.apply(std::slice::from_ref(table));
    !reset(SILENCE)
}

/// What becomes of a segment far ahead of the window, in the middle of a redirected connection that begins with `packet`
/// of the peer: dropped, or it passes and the pod resets the connection.
///
/// # Errors
/// A text when neither is to be seen.
pub fn beyond_window(lab: &Lab, packet: &Packet) -> Result<Verdict, String> {
    let source: IpAddr = packet.from.unwrap_or(PEER.into());
    let (from, to) = (SocketAddr::new(source, lab.fresh_port()), packet.destination());
    let wire = Wire::open(&lab.peer, to.ip());
    let mut connection =
        Connection::open(lab, packet, from.port(), PATIENCE).map_err(|e| format!("connect: {e}"))?;
    connection.talk().map_err(|e| format!("talk: {e}"))?;
    // SYN-ACK, report and echo say where both sides are.
    let (mut seq, mut ack) = (0, 0);
    while let Some(segment) = wire.receive(to, from, SILENCE) {
        let end = segment.seq.wrapping_add(segment.len.max(u32::from(segment.flags & 2 != 0)));
        (seq, ack) = (segment.ack, end);
    }
    wire.send(&Segment { from, to, seq: seq.wrapping_add(0x1000_0000), ack, flags: PSH_ACK, len: 10 });
    let reset = wire.receive(to, from, SILENCE).is_some_and(|answer| answer.flags & RST != 0);
    match (reset, connection.talk()) {
        (false, Ok(())) => Ok(Verdict::Drop),
        (true, Err(Errno::ECONNRESET | Errno::EPIPE)) => Ok(Verdict::Pass),
        (reset, talk) => Err(format!("reset seen: {reset}, the connection after it: {talk:?}")),
    }
}

/// The first packet goes to the transparent listener, and the later ones bear the mark.
fn later_packets(lab: &Lab, settings: &Settings, packet: &Packet) -> Result<Verdict, String> {
    let (expected, _) = oracle::read(settings, packet);
    if (expected.verdict, expected.later_mark) != (Verdict::Tproxy(15006), Some(1337)) {
        return Err(format!("not a tproxied connection: {expected:?}"));
    }
    passes(lab, Case { id: "later packets".to_owned(), packet: *packet, expected })
}

/// The proxy calls the application with its client's address; the answer has to find the proxy.
fn as_client(lab: &Lab, settings: &Settings, packet: &Packet) -> Result<Verdict, String> {
    let (expected, _) = oracle::read(settings, packet);
    if (expected.verdict, expected.connection_mark, expected.answer_mark)
        != (Verdict::Pass, Some(1337), Some(1337))
    {
        return Err(format!("not a call with the client's address: {expected:?}"));
    }
    passes(lab, Case { id: "as client".to_owned(), packet: *packet, expected })
}

fn passes(lab: &Lab, case: Case) -> Result<Verdict, String> {
    let failures = check::run(lab, &[case], Until::End);
    if failures.is_empty() { Ok(Verdict::Pass) } else { Err(failures.join("; ")) }
}

/// Nothing listens on 15006. A refusal shows that the packet was sent there: the application would answer.
fn nobody_listens(lab: &Lab, packet: &Packet) -> Result<Verdict, String> {
    match probe(lab, packet, lab.fresh_port(), SILENCE) {
        Outcome::Silent => Ok(Verdict::Drop),
        Outcome::Refused => Ok(Verdict::Redirect(15006)),
        other => Err(format!("{other:?}")),
    }
}

/// Whether `lab`, without an inbound listener, drops what was for it.
#[must_use]
pub fn capture_without_listener_is_dropped(lab: &Lab, packet: &Packet) -> bool {
    nobody_listens(lab, packet) == Ok(Verdict::Drop)
}

/// One after the other from the same port; the verdict of the last, after checking that each had a zone of its own.
fn same_tuple(lab: &Lab, packets: &[Packet]) -> Result<Verdict, String> {
    // More than once because the observer may fail to write a zone down, as `check::run` says.
    let mut seen = Err("no packet".to_owned());
    for port in 41_000..41_003 {
        let verdicts: Vec<_> =
            packets.iter().map(|packet| judge(packet, &probe(lab, packet, port, PATIENCE))).collect();
        let zones = observer::take(&lab.pod).values("zones", port).to_vec();
        if zones.len() == packets.len() {
            return verdicts.into_iter().last().unwrap_or(seen);
        }
        seen = Err(format!("zones {zones:?} of {} senders: {verdicts:?}", packets.len()));
    }
    seen
}

/// REDIRECT needs an address of the interface; what is not redirected passes without.
fn no_address(lab: &Lab, packet: &Packet) -> Result<Verdict, String> {
    lab.pod.ip("addr del 10.79.0.1/24 dev vm0\nroute add 10.79.0.0/24 dev vm0\n");
    let datagram = Packet { protocol: Protocol::Udp, ..*packet };
    match judge(&datagram, &probe(lab, &datagram, lab.fresh_port(), PATIENCE))? {
        Verdict::Pass => judge(packet, &probe(lab, packet, lab.fresh_port(), SILENCE)),
        other => Err(format!("UDP: {other}")),
    }
}

/// A connection from before the rules, conntrack off until then: its next packet is taken for a new connection.
fn untracked_connection(lab: &Lab, plan: &Plan, row: &Row) -> Result<Verdict, String> {
    let port = lab.fresh_port();
    let mut connection =
        Connection::open(lab, &row.packet, port, PATIENCE).map_err(|e| format!("connect: {e}"))?;
    connection.talk().map_err(|e| format!("talk: {e}"))?;
    lab.program(plan);
    match connection.talk() {
        Err(Errno::ECONNRESET) => Ok(row.expected),
        Ok(()) => Ok(Verdict::Pass),
        Err(errno) => Err(errno.to_string()),
    }
}

/// Whether a connection to the application from before `table` survives it in `lab`, which is observed, so that
/// conntrack knew the connection all along.
#[must_use]
pub fn tracked_connection_survives(lab: &Lab, table: &Table) -> bool {
    let client = Packet {
        way: Way::In("eth0"),
        protocol: Protocol::Tcp,
        from: Some(PEER.into()),
        to: POD.into(),
        port: 8080,
        mark: 0,
    };
    lab.remove();
    let mut connection = Connection::open(lab, &client, lab.fresh_port(), PATIENCE).unwrap();
    connection.talk().unwrap();
    lab.apply(std::slice::from_ref(table));
    connection.talk().is_ok()
}

/// The proxy by one of its ids only.
#[must_use]
pub fn halves(proxy: Ids) -> [Ids; 2] {
    [Ids { uid: 4000, ..proxy }, Ids { gid: 4000, ..proxy }]
}
