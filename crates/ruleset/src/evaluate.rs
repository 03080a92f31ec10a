// SPDX-License-Identifier: Apache-2.0
//! What a table does with a packet, step by step, without a kernel: for people who ask why, and as a second opinion for
//! tests.
//!
//! Follows nf_tables as the kernel runs it: base chains of a hook in ascending priority; `accept` ends its base chain
//! only; NAT chains see the first packet of a connection alone, and not again on prerouting what left by `lo`.

use std::net::IpAddr;

use crate::model::{
    Chain, ChainType, CtStates, Elements, Family, Field, Hook, IpFamily, L4, Match, Op, Operand, Rule,
    Statement, Table,
};
use crate::name::IfName;
use crate::range::{Address, Prefix};

/// A packet, as rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TCP or UDP, or another protocol.
    pub protocol: Option<L4>,
    /// Source port; without meaning for other protocols.
    pub source_port: u16,
    /// Destination port, likewise.
    pub destination_port: u16,
    /// Uid and gid of the sending socket; nothing for a packet from elsewhere.
    pub owner: Option<(u32, u32)>,
    /// The interface it leaves or came in by.
    pub interface: Interface,
    /// Fwmark.
    pub mark: u32,
    /// The connection that it belongs to.
    pub connection: Connection,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Loopback.
    Lo,
    /// Another.
    Named(IfName),
}

/// What conntrack knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// State of the packet in it.
    pub state: CtState,
    /// Mark of the connection.
    pub mark: u32,
    /// Zone that the packet was assigned to.
    pub zone: u16,
}

/// `ct state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtState {
    /// First packet.
    New,
    /// Later packet.
    Established,
    /// Belongs to nothing.
    Invalid,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes where it was going.
    Pass,
    /// Destination NAT to this local port.
    Redirect(u16),
    /// Unchanged to a transparent listener on this port.
    Tproxy(u16),
    /// Dropped.
    Drop,
}

/// One rule that matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Chain.
    pub chain: String,
    /// Position in the chain, from 0.
    pub index: usize,
    /// The rule's reason code.
    pub reason: String,
}

/// The way of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Where it ends.
    pub verdict: Verdict,
    /// The rules that matched, in order.
    pub steps: Vec<Step>,
    /// The packet afterwards: addresses, mark, zone and connection mark as the rules left them.
    pub packet: Packet,
}

/// The way of a packet that a local process sends, through `tables`; if it leaves by `lo`, also its way back in.
/// Transparent listeners are taken to be there.
#[must_use]
pub fn sent(tables: &[Table], packet: Packet) -> Trace {
    let mut trace = Trace { verdict: Verdict::Pass, steps: Vec::new(), packet };
    hook(tables, Hook::Output, true, &mut trace);
    if trace.packet.interface == Interface::Lo && trace.verdict != Verdict::Drop {
        let redirected = trace.verdict;
        // Rules on prerouting know no owner.
        trace.packet.owner = None;
        hook(tables, Hook::Prerouting, false, &mut trace);
        if trace.verdict == Verdict::Pass {
            trace.verdict = redirected;
        }
    }
    trace
}

/// The way of a packet that arrives from the network, through `tables`.
#[must_use]
pub fn received(tables: &[Table], packet: Packet) -> Trace {
    let mut trace = Trace { verdict: Verdict::Pass, steps: Vec::new(), packet };
    hook(tables, Hook::Prerouting, true, &mut trace);
    trace
}

/// How a chain ended.
enum Ended {
    /// At its end, or by accept.
    Accepted,
    Dropped,
}

/// All base chains of `at`. Without `nat`, NAT chains are passed over.
fn hook(tables: &[Table], at: Hook, nat: bool, trace: &mut Trace) {
    trace.verdict = Verdict::Pass;
    let mut chains: Vec<(&Table, &Chain, ChainType, i32)> = tables
        .iter()
        .filter(|table| sees(table.family, trace.packet.source))
        .flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
        .filter_map(|(table, chain)| {
            chain.base.filter(|b| b.hook == at).map(|b| (table, chain, b.kind, b.priority))
        })
        .collect();
    chains.sort_by_key(|(.., priority)| *priority);
    for (table, chain, kind, _) in chains {
        if kind == ChainType::Nat && !(nat && trace.packet.connection.state == CtState::New) {
            continue;
        }
        if let Some(Ended::Dropped) = run(table, chain, at, trace) {
            trace.verdict = Verdict::Drop;
            return;
        }
    }
}

fn sees(family: Family, address: IpAddr) -> bool {
    match family {
        Family::Inet => true,
        Family::Ip => address.is_ipv4(),
        Family::Ip6 => address.is_ipv6(),
    }
}

/// The rules of `chain`; nothing when it came to its end.
fn run(table: &Table, chain: &Chain, at: Hook, trace: &mut Trace) -> Option<Ended> {
    for (index, rule) in chain.rules.iter().enumerate() {
        if !rule.matches.iter().all(|m| holds(table, m, &trace.packet)) {
            continue;
        }
        trace.steps.push(Step { chain: chain.name.clone(), index, reason: rule.reason.clone() });
        if let Some(ended) = execute(table, rule, at, trace) {
            return Some(ended);
        }
    }
    None
}

fn execute(table: &Table, rule: &Rule, at: Hook, trace: &mut Trace) -> Option<Ended> {
    for statement in &rule.statements {
        let packet = &mut trace.packet;
        match statement {
            Statement::Accept => return Some(Ended::Accepted),
            Statement::Drop => return Some(Ended::Dropped),
            Statement::Jump(name) | Statement::Goto(name) => {
                let chain = table.chains.iter().find(|chain| chain.name == *name)?;
                let ended = run(table, chain, at, trace);
                if ended.is_some() || matches!(statement, Statement::Goto(_)) {
                    return Some(ended.unwrap_or(Ended::Accepted));
                }
            }
            Statement::Redirect(port) => {
                trace.verdict = Verdict::Redirect(*port);
                packet.destination_port = *port;
                if at == Hook::Output {
                    // On prerouting the new destination is an address of the interface, which no later rule asks for.
                    packet.destination = loopback(packet.destination);
                    packet.interface = Interface::Lo;
                }
                return Some(Ended::Accepted);
            }
            Statement::Tproxy(port) => trace.verdict = Verdict::Tproxy(*port),
            Statement::SetMark(mark) => packet.mark = *mark,
            Statement::SaveMark => packet.connection.mark = packet.mark,
            Statement::RestoreMark => packet.mark = packet.connection.mark,
            // The first zone stays: later templates are ignored.
            Statement::SetZone(zone) if packet.connection.zone == 0 => packet.connection.zone = *zone,
            Statement::SetZone(_) => {}
        }
    }
    None
}

fn loopback(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    }
}

/// A field's value, or nothing where the packet has none: then neither `==` nor `!=` holds.
fn holds(table: &Table, m: &Match, packet: &Packet) -> bool {
    let found = match &m.operand {
        Operand::Set(name) => table.set(name).and_then(|set| in_set(&set.elements, m.field, packet)),
        operand => equals(operand, m.field, packet),
    };
    found.is_some_and(|found| found == (m.op == Op::Eq))
}

fn equals(operand: &Operand, field: Field, packet: &Packet) -> Option<bool> {
    Some(match operand {
        Operand::Family(family) => packet.source.is_ipv4() == (*family == IpFamily::V4),
        Operand::Protocol(protocol) => packet.protocol == Some(*protocol),
        Operand::Loopback => packet.interface == Interface::Lo,
        Operand::IfName(name) => packet.interface == Interface::Named(name.clone()),
        Operand::Number(number) => self::number(field, packet)? == *number,
        Operand::CtStates(CtStates::Invalid) => packet.connection.state == CtState::Invalid,
        Operand::CtStates(CtStates::EstablishedOrRelated) => packet.connection.state == CtState::Established,
        Operand::Port(port) => self::port(field, packet) == *port,
        Operand::Ipv4(prefix) => inside(*prefix, ipv4(field, packet)?),
        Operand::Ipv6(prefix) => inside(*prefix, ipv6(field, packet)?),
        // Sets are looked up by the caller.
        Operand::Set(_) => return None,
    })
}

fn in_set(elements: &Elements, field: Field, packet: &Packet) -> Option<bool> {
    Some(match elements {
        Elements::Protocol(protocols) => packet.protocol.is_some_and(|p| protocols.contains(&p)),
        Elements::Port(ports) => ports.contains(&port(field, packet)),
        Elements::Uid(numbers) | Elements::Gid(numbers) | Elements::Mark(numbers) => {
            numbers.contains(&number(field, packet)?)
        }
        Elements::IfName(names) => match &packet.interface {
            Interface::Lo => false,
            Interface::Named(name) => names.contains(name),
        },
        Elements::Ipv4(ranges) => ranges.contains(ipv4(field, packet)?),
        Elements::Ipv6(ranges) => ranges.contains(ipv6(field, packet)?),
    })
}

fn inside<T: Address>(prefix: Prefix<T>, address: T) -> bool {
    prefix.range().contains(address)
}

fn number(field: Field, packet: &Packet) -> Option<u32> {
    match field {
        Field::SkUid => packet.owner.map(|(uid, _)| uid),
        Field::SkGid => packet.owner.map(|(_, gid)| gid),
        Field::CtMark => Some(packet.connection.mark),
        _ => Some(packet.mark),
    }
}

fn port(field: Field, packet: &Packet) -> u16 {
    if field == Field::SrcPort { packet.source_port } else { packet.destination_port }
}

fn ipv4(field: Field, packet: &Packet) -> Option<u32> {
    let address = if field == Field::Ip4Src { packet.source } else { packet.destination };
    match address {
        IpAddr::V4(address) => Some(address.to_bits()),
        IpAddr::V6(_) => None,
    }
}

fn ipv6(field: Field, packet: &Packet) -> Option<u128> {
    let address = if field == Field::Ip6Src { packet.source } else { packet.destination };
    match address {
        IpAddr::V6(address) => Some(address.to_bits()),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BaseChain;

    fn packet() -> Packet {
        Packet {
            source: "10.0.0.2".parse().unwrap(),
            destination: "10.0.0.1".parse().unwrap(),
            protocol: Some(L4::Tcp),
            source_port: 40_000,
            destination_port: 80,
            owner: Some((1000, 1000)),
            interface: Interface::Named(IfName::parse("eth0").unwrap()),
            mark: 0,
            connection: Connection { state: CtState::New, mark: 0, zone: 0 },
        }
    }

    fn rule(matches: Vec<Match>, statements: Vec<Statement>) -> Rule {
        Rule { matches, statements, reason: "r".to_owned() }
    }

    fn chain(name: &str, base: Option<(ChainType, Hook, i32)>, rules: Vec<Rule>) -> Chain {
        let base = base.map(|(kind, hook, priority)| BaseChain { kind, hook, priority });
        Chain { name: name.to_owned(), base, rules }
    }

    fn table(chains: Vec<Chain>) -> [Table; 1] {
        [Table { family: Family::Inet, name: "t".to_owned(), sets: vec![], chains }]
    }

    #[test]
    fn accept_ends_its_base_chain_only_and_drop_ends_all() {
        let accept = chain(
            "a",
            Some((ChainType::Filter, Hook::Output, 0)),
            vec![rule(vec![], vec![Statement::Accept])],
        );
        let drop =
            chain("d", Some((ChainType::Filter, Hook::Output, 1)), vec![rule(vec![], vec![Statement::Drop])]);
        // In the order of priority, not of the table.
        let trace = sent(&table(vec![drop, accept]), packet());
        assert_eq!(trace.verdict, Verdict::Drop);
        assert_eq!(trace.steps.iter().map(|s| s.chain.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    }

    #[test]
    fn jump_comes_back_and_goto_does_not() {
        let to = |statement| {
            let base = Some((ChainType::Nat, Hook::Output, 0));
            let rules = vec![rule(vec![], vec![statement]), rule(vec![], vec![Statement::Redirect(1)])];
            sent(&table(vec![chain("base", base, rules), chain("sub", None, vec![])]), packet()).verdict
        };
        assert_eq!(to(Statement::Jump("sub".to_owned())), Verdict::Redirect(1));
        assert_eq!(to(Statement::Goto("sub".to_owned())), Verdict::Pass);
    }

    #[test]
    fn nat_chains_see_first_packets_only_and_not_on_the_way_back_in_by_lo() {
        let nat = |hook| {
            chain("n", Some((ChainType::Nat, hook, 0)), vec![rule(vec![], vec![Statement::Redirect(1)])])
        };
        let later =
            Packet { connection: Connection { state: CtState::Established, mark: 0, zone: 0 }, ..packet() };
        assert_eq!(sent(&table(vec![nat(Hook::Output)]), later).verdict, Verdict::Pass);
        let local = Packet { interface: Interface::Lo, ..packet() };
        assert_eq!(sent(&table(vec![nat(Hook::Prerouting)]), local).verdict, Verdict::Pass);
        assert_eq!(received(&table(vec![nat(Hook::Prerouting)]), packet()).verdict, Verdict::Redirect(1));
    }

    #[test]
    fn a_packet_without_an_owner_matches_neither_equal_nor_different() {
        for op in [Op::Eq, Op::Ne] {
            let matches = vec![Match { field: Field::SkUid, op, operand: Operand::Number(5) }];
            let base = Some((ChainType::Filter, Hook::Output, 0));
            let tables = table(vec![chain("c", base, vec![rule(matches, vec![Statement::Drop])])]);
            assert_eq!(sent(&tables, Packet { owner: None, ..packet() }).verdict, Verdict::Pass);
            let expected = if op == Op::Ne { Verdict::Drop } else { Verdict::Pass };
            assert_eq!(sent(&tables, packet()).verdict, expected);
        }
    }

    #[test]
    fn the_first_zone_stays() {
        let base = Some((ChainType::Filter, Hook::Output, -300));
        let rules =
            vec![rule(vec![], vec![Statement::SetZone(1)]), rule(vec![], vec![Statement::SetZone(2)])];
        assert_eq!(sent(&table(vec![chain("c", base, rules)]), packet()).packet.connection.zone, 1);
    }
}
