// SPDX-License-Identifier: Apache-2.0
//! The compiler: from a [`Config`] to the [`Plan`] for one netns.
//!
//! One `inet` table, sets where there is more than one element, so that the cost of a packet does not grow with the
//! length of any list. A rule is written only where it can decide something: what an earlier rule already decided, or
//! what leads to the same verdict as the chain's end, is left out. The labels O1 to O17, P1 to P7, T1 to T9, K1 to K5
//! and Z1 to Z6 are those of `docs/RULES.md`.

mod mangle;
mod nat;
mod raw;
mod sets;

use ruleset::{
    BaseChain, Chain, Family, Field, Fingerprint, IpFamily, L4, Match, Op, Operand, Plan, PolicyRoute, Rule,
    Set, Statement, Table,
};

use crate::config::{Config, Dns, InboundPorts, Ipv6, Mode, OutboundCidrs, TPROXY_MARK, TPROXY_TABLE};

/// Name of the table; everything in it is ours.
pub const TABLE: &str = "waylay";

/// Compile `config`. Deterministic: the same settings give the same plan.
#[must_use]
pub fn compile(config: &Config) -> Plan {
    let mut compiler = Compiler { config, sets: Vec::new() };
    let chains: Vec<Chain> = [
        compiler.raw_prerouting(),
        compiler.raw_output(),
        compiler.mangle_prerouting(),
        compiler.mangle_output(),
        compiler.nat_prerouting(),
        compiler.nat_output(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut table = Table { family: Family::Inet, name: TABLE.to_owned(), sets: compiler.sets, chains };
    if config.ipv6 == Ipv6::Drop {
        table.chains.iter_mut().for_each(drop_ipv6);
    }
    let ipv6 = config.ipv6 == Ipv6::Capture;
    let tproxy = config.mode == Mode::Tproxy && config.captures_inbound();
    Plan {
        tables: vec![Fingerprint::seal(table)],
        passthrough_ipv6: ipv6,
        policy_route: PolicyRoute { ipv4: tproxy, ipv6: tproxy && ipv6, ..NO_POLICY_ROUTE },
    }
}

/// The plan of a netns that holds nothing of ours, whatever was there.
#[must_use]
pub fn nothing() -> Plan {
    Plan { tables: Vec::new(), passthrough_ipv6: false, policy_route: NO_POLICY_ROUTE }
}

const NO_POLICY_ROUTE: PolicyRoute =
    PolicyRoute { mark: TPROXY_MARK, table: TPROXY_TABLE, ipv4: false, ipv6: false };

/// The settings and the sets that the rules so far refer to.
struct Compiler<'a> {
    config: &'a Config,
    sets: Vec<Set>,
}

impl Compiler<'_> {
    /// A base chain, or nothing when there are no rules for it. Where IPv6 is left alone, that is its first rule, unless
    /// all others are about IPv4 addresses. What falls off its end is accepted, so that it never ends in a rule that does
    /// no more than that.
    fn chain(&self, name: &str, base: BaseChain, mut rules: Vec<Rule>) -> Option<Chain> {
        let needed = rules.iter().rposition(|rule| rule.statements != [Statement::Accept])?;
        rules.truncate(needed + 1);
        let ipv4_only =
            |rule: &Rule| rule.matches.iter().any(|m| matches!(m.field, Field::Ip4Src | Field::Ip4Dst));
        if self.config.ipv6 == Ipv6::Leave && !rules.iter().all(ipv4_only) {
            rules.insert(0, accept("ipv6_left_alone", vec![family(IpFamily::V6)]));
        }
        Some(Chain { name: name.to_owned(), base: Some(base), rules })
    }
}

/// Drop in IPv6 what `chain` would hand to the proxy; exclusions, which come before, still hold.
fn drop_ipv6(chain: &mut Chain) {
    let mut rules = Vec::with_capacity(chain.rules.len());
    for captured in chain.rules.drain(..) {
        let about = |fields: [Field; 2]| captured.matches.iter().any(|m| fields.contains(&m.field));
        let captures =
            captured.statements.iter().any(|s| matches!(s, Statement::Redirect(_) | Statement::Tproxy(_)));
        if captures && about([Field::Ip6Src, Field::Ip6Dst]) {
            rules.push(rule("ipv6_dropped", captured.matches, vec![Statement::Drop]));
            continue;
        }
        if captures && !about([Field::Ip4Src, Field::Ip4Dst]) {
            let matches = [family(IpFamily::V6)].into_iter().chain(captured.matches.clone()).collect();
            rules.push(rule("ipv6_dropped", matches, vec![Statement::Drop]));
        }
        rules.push(captured);
    }
    chain.rules = rules;
}

impl Config {
    fn captures_inbound(&self) -> bool {
        !matches!(&self.inbound, InboundPorts::Only(ports) if ports.is_empty())
    }

    /// Someone asked to capture calls to loopback addresses.
    fn includes_loopback(&self) -> bool {
        matches!(&self.outbound, OutboundCidrs::Only(prefixes) if prefixes.loopback)
    }

    fn captures_dns(&self) -> bool {
        match &self.dns {
            Dns::Off => false,
            Dns::All => true,
            Dns::Nameservers(servers) => !servers.is_empty(),
        }
    }

    /// The families that are looked at.
    fn families(&self) -> &'static [IpFamily] {
        if self.ipv6 == Ipv6::Leave { &[IpFamily::V4] } else { &[IpFamily::V4, IpFamily::V6] }
    }
}

fn rule(reason: &str, matches: Vec<Match>, statements: Vec<Statement>) -> Rule {
    Rule { matches, statements, reason: reason.to_owned() }
}

fn accept(reason: &str, matches: Vec<Match>) -> Rule {
    rule(reason, matches, vec![Statement::Accept])
}

fn redirect(reason: &str, matches: Vec<Match>, port: u16) -> Rule {
    rule(reason, matches, vec![Statement::Redirect(port)])
}

fn is(field: Field, operand: Operand) -> Match {
    Match { field, op: Op::Eq, operand }
}

fn is_not(field: Field, operand: Operand) -> Match {
    Match { field, op: Op::Ne, operand }
}

fn family(family: IpFamily) -> Match {
    is(Field::NfProto, Operand::Family(family))
}

fn tcp() -> Match {
    is(Field::L4Proto, Operand::Protocol(L4::Tcp))
}

fn udp() -> Match {
    is(Field::L4Proto, Operand::Protocol(L4::Udp))
}

fn out_lo() -> Match {
    is(Field::Oif, Operand::Loopback)
}

fn in_lo() -> Match {
    is(Field::Iif, Operand::Loopback)
}
