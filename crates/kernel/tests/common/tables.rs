// SPDX-License-Identifier: Apache-2.0
//! Tables: one that has everything, and random ones.

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use ruleset::{
    BaseChain, Chain, ChainType, CtStates, Elements, Family, Field, Hook, IfName, IpFamily, L4, Match, Op,
    Operand, Prefix, Range, Rule, Set, Statement, Table,
};

pub(crate) const FIELDS: [Field; 17] = [
    Field::NfProto,
    Field::L4Proto,
    Field::Iif,
    Field::Oif,
    Field::IifName,
    Field::OifName,
    Field::SkUid,
    Field::SkGid,
    Field::Mark,
    Field::CtMark,
    Field::CtState,
    Field::SrcPort,
    Field::DstPort,
    Field::Ip4Src,
    Field::Ip4Dst,
    Field::Ip6Src,
    Field::Ip6Dst,
];

pub(crate) fn prefix4(address: [u8; 4], len: u8) -> Prefix<u32> {
    Prefix::new(u32::from_be_bytes(address), len).unwrap()
}

pub(crate) fn prefix6(address: &str, len: u8) -> Prefix<u128> {
    Prefix::new(address.parse::<std::net::Ipv6Addr>().unwrap().to_bits(), len).unwrap()
}

pub(crate) fn is(field: Field, operand: Operand) -> Match {
    Match { field, op: Op::Eq, operand }
}

pub(crate) fn rule(matches: Vec<Match>, statements: Vec<Statement>) -> Rule {
    Rule { matches, statements, reason: String::from("test.reason") }
}

pub(crate) fn chain(name: &str, base: Option<(ChainType, Hook, i32)>, rules: Vec<Rule>) -> Chain {
    let base = base.map(|(kind, hook, priority)| BaseChain { kind, hook, priority });
    Chain { name: name.to_owned(), base, rules }
}

pub(crate) fn table(family: Family, sets: Vec<Set>, chains: Vec<Chain>) -> Table {
    Table { family, name: String::from(kernel::TABLE), sets, chains }
}

pub(crate) fn set(name: &str, elements: Elements) -> Set {
    Set { name: name.to_owned(), elements, comment: None }
}

fn if_name(name: &str) -> IfName {
    IfName::parse(name).unwrap()
}

/// One set of each kind, with elements and without.
pub(crate) fn every_set() -> Vec<Set> {
    let v4 = [prefix4([10, 0, 0, 0], 8), prefix4([192, 168, 1, 5], 32), prefix4([255, 255, 255, 0], 24)];
    let v6 = [prefix6("fd00::", 8), prefix6("::1", 128), prefix6("2001:db8::", 61)];
    let mut commented = set("fingerprint", Elements::Mark(Vec::new()));
    commented.comment = Some("form 1 0123456789abcdef".to_owned());
    let mut longest = set("longest", Elements::Port(vec![1]));
    longest.comment = Some("x".repeat(127));
    vec![
        set("protocols", Elements::Protocol(vec![L4::Tcp, L4::Udp])),
        set("ports", Elements::Port(vec![0, 80, 15008, 65535])),
        set("uids", Elements::Uid(vec![0, 1337, u32::MAX])),
        set("gids", Elements::Gid(vec![1337])),
        set(
            "interfaces",
            Elements::IfName(vec![if_name("abcdefghijklmno"), if_name("eth0"), if_name("net1")]),
        ),
        set("marks", Elements::Mark(vec![1337, 1338])),
        set("v4", Elements::Ipv4(v4.into_iter().collect())),
        set("v6", Elements::Ipv6(v6.into_iter().collect())),
        set("all_v4", Elements::Ipv4([prefix4([0; 4], 0)].into_iter().collect())),
        set("all_v6", Elements::Ipv6([prefix6("::", 0)].into_iter().collect())),
        set(
            "odd_v4",
            Elements::Ipv4(
                [Range { first: 5, last: 9 }, Range { first: u32::MAX, last: u32::MAX }]
                    .into_iter()
                    .collect(),
            ),
        ),
        set("no_v4", Elements::Ipv4([0u32; 0].map(Prefix::host).into_iter().collect())),
        set("no_v6", Elements::Ipv6([0u128; 0].map(Prefix::host).into_iter().collect())),
        set("no_protocols", Elements::Protocol(Vec::new())),
        set("no_ports", Elements::Port(Vec::new())),
        set("no_uids", Elements::Uid(Vec::new())),
        set("no_gids", Elements::Gid(Vec::new())),
        set("no_interfaces", Elements::IfName(Vec::new())),
        commented,
        longest,
    ]
}

/// Every operand that goes with `field`, sets of [`every_set`] among them.
pub(crate) fn every_operand(field: Field) -> Vec<Operand> {
    let sets = |names: &[&str]| names.iter().map(|n| Operand::Set((*n).to_owned())).collect::<Vec<_>>();
    let v4 = |lens: &[u8]| {
        lens.iter().map(|len| Operand::Ipv4(prefix4([171, 205, 239, 255], *len))).collect::<Vec<_>>()
    };
    let v6 = |lens: &[u8]| {
        lens.iter()
            .map(|len| Operand::Ipv6(prefix6("abcd:ef01:2345:6789:abcd:ef01:2345:6789", *len)))
            .collect::<Vec<_>>()
    };
    let (mut singles, sets) = match field {
        Field::NfProto => (vec![Operand::Family(IpFamily::V4), Operand::Family(IpFamily::V6)], sets(&[])),
        Field::L4Proto => (
            vec![Operand::Protocol(L4::Tcp), Operand::Protocol(L4::Udp)],
            sets(&["protocols", "no_protocols"]),
        ),
        Field::Iif | Field::Oif => (vec![Operand::Loopback], sets(&[])),
        Field::IifName | Field::OifName => (
            vec![Operand::IfName(if_name("eth0")), Operand::IfName(if_name("abcdefghijklmno"))],
            sets(&["interfaces", "no_interfaces"]),
        ),
        Field::SkUid => (vec![Operand::Number(0), Operand::Number(1337)], sets(&["uids", "no_uids"])),
        Field::SkGid => (vec![Operand::Number(1337), Operand::Number(u32::MAX)], sets(&["gids", "no_gids"])),
        Field::Mark | Field::CtMark => {
            (vec![Operand::Number(0), Operand::Number(1337)], sets(&["marks", "fingerprint"]))
        }
        Field::CtState => (
            vec![Operand::CtStates(CtStates::Invalid), Operand::CtStates(CtStates::EstablishedOrRelated)],
            sets(&[]),
        ),
        Field::SrcPort | Field::DstPort => {
            (vec![Operand::Port(53), Operand::Port(65535)], sets(&["ports", "no_ports"]))
        }
        Field::Ip4Src | Field::Ip4Dst => {
            (v4(&[0, 1, 7, 8, 9, 16, 24, 31, 32]), sets(&["v4", "all_v4", "odd_v4", "no_v4"]))
        }
        Field::Ip6Src | Field::Ip6Dst => (v6(&[0, 1, 8, 61, 64, 127, 128]), sets(&["v6", "all_v6", "no_v6"])),
    };
    singles.extend(sets);
    singles
}

/// Whether nft(8) has this match in a table of `family`, and the kernel can ever find it true.
fn belongs(field: Field, family: Family) -> bool {
    match field {
        Field::NfProto => family == Family::Inet,
        Field::Ip4Src | Field::Ip4Dst => family != Family::Ip6,
        Field::Ip6Src | Field::Ip6Dst => family != Family::Ip,
        _ => true,
    }
}

/// Every match, statement, chain and set that a table of `family` can have.
pub(crate) fn everything(family: Family) -> Table {
    let mut matches = Vec::new();
    for field in FIELDS.into_iter().filter(|field| belongs(*field, family)) {
        for operand in every_operand(field) {
            for op in [Op::Eq, Op::Ne] {
                let m = Match { field, op, operand: operand.clone() };
                matches.push(rule(vec![m], vec![Statement::Accept]));
            }
        }
    }
    let tcp = || is(Field::L4Proto, Operand::Protocol(L4::Tcp));
    let sub = || String::from("sub");
    let statements = vec![
        rule(vec![], vec![Statement::Drop]),
        rule(vec![tcp()], vec![Statement::Jump(sub())]),
        rule(vec![], vec![Statement::Goto(sub())]),
        rule(vec![], vec![Statement::SetMark(1337), Statement::SaveMark, Statement::RestoreMark]),
        rule(vec![tcp()], vec![Statement::Tproxy(15006), Statement::SetMark(1337), Statement::Accept]),
        rule(vec![tcp(), is(Field::DstPort, Operand::Port(80))], vec![Statement::Tproxy(15006)]),
        rule(vec![is(Field::DstPort, Operand::Port(80)), tcp()], vec![Statement::Accept]),
    ];
    let mut longest = rule(vec![], vec![Statement::Accept]);
    longest.reason = "y".repeat(127);
    let raw = vec![rule(vec![], vec![Statement::SetZone(2)]), longest];
    let nat = |port| vec![rule(vec![tcp()], vec![Statement::Redirect(port)])];
    use ChainType::{Filter, Nat, Route};
    use Hook::{Output, Prerouting};
    let chains = vec![
        chain("matches", None, matches),
        chain("sub", None, vec![rule(vec![is(Field::Iif, Operand::Loopback)], vec![])]),
        chain("filter", Some((Filter, Prerouting, -150)), statements),
        chain("raw_in", Some((Filter, Prerouting, -300)), raw.clone()),
        chain("raw_out", Some((Filter, Output, -300)), raw),
        chain("nat_in", Some((Nat, Prerouting, -100)), nat(15006)),
        chain("nat_out", Some((Nat, Output, i32::MAX)), nat(15001)),
        chain("route", Some((Route, Output, -150)), vec![]),
    ];
    let mut sets = every_set();
    if family == Family::Ip {
        sets.retain(|s| !matches!(s.elements, Elements::Ipv6(_)));
    }
    table(family, sets, chains)
}

/// Any legal table of at most some twenty rules; with `nft` only such as nft(8) has a spelling for and lists in the
/// same order.
pub(crate) fn any_table(nft: bool) -> impl Strategy<Value = Table> {
    select(vec![Family::Inet, Family::Ip, Family::Ip6]).prop_flat_map(move |family| {
        let sub = chain_rules(family, None, nft, 4);
        let nat = BaseChain { kind: ChainType::Nat, hook: Hook::Output, priority: -100 };
        let raw = BaseChain { kind: ChainType::Filter, hook: Hook::Prerouting, priority: -300 };
        let chains = (sub, base(family, nat, nft), base(family, raw, nft), any_base(family, nft));
        (any_sets(), chains).prop_map(move |(sets, (sub, nat, raw, other))| {
            let mut chains = vec![Chain { name: String::from("sub"), base: None, rules: sub }];
            let named = [("nat", nat), ("raw", raw), ("other", other)];
            chains.extend(named.into_iter().map(|(name, (base, rules))| Chain {
                name: name.to_owned(),
                base: Some(base),
                rules,
            }));
            let mut table = table(family, sets, chains);
            // Matches were made without knowing which sets there are.
            let sets = table.sets.clone();
            for rule in table.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
                rule.matches.retain(|m| match &m.operand {
                    Operand::Set(name) => sets.iter().any(|set| set.name == *name),
                    _ => true,
                });
            }
            for rule in table.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
                let needs = rule
                    .statements
                    .iter()
                    .any(|s| matches!(s, Statement::Redirect(_) | Statement::Tproxy(_)));
                if needs
                    && !rule.matches.iter().any(|m| {
                        m.field == Field::L4Proto && m.op == Op::Eq && !matches!(m.operand, Operand::Set(_))
                    })
                {
                    rule.matches.retain(|m| m.field != Field::L4Proto);
                    rule.matches.push(is(Field::L4Proto, Operand::Protocol(L4::Udp)));
                }
            }
            if nft {
                // nft(8) takes no rule that is nothing but a comment.
                for chain in &mut table.chains {
                    chain.rules.retain(|rule| !rule.matches.is_empty() || !rule.statements.is_empty());
                }
            }
            table
        })
    })
}

fn any_base(family: Family, nft: bool) -> impl Strategy<Value = (BaseChain, Vec<Rule>)> {
    let kinds = vec![
        (ChainType::Filter, Hook::Output),
        (ChainType::Filter, Hook::Prerouting),
        (ChainType::Route, Hook::Output),
    ];
    (select(kinds), -1000i32..1000)
        .prop_flat_map(move |((kind, hook), priority)| base(family, BaseChain { kind, hook, priority }, nft))
}

fn base(family: Family, base: BaseChain, nft: bool) -> impl Strategy<Value = (BaseChain, Vec<Rule>)> {
    chain_rules(family, Some(base), nft, 6).prop_map(move |rules| (base, rules))
}

fn chain_rules(
    family: Family,
    base: Option<BaseChain>,
    nft: bool,
    max: usize,
) -> impl Strategy<Value = Vec<Rule>> {
    let reason = "[a-z][a-z.]{0,20}";
    let rule = (vec(any_match(family), 0..5), any_statements(base), reason);
    vec(
        rule.prop_map(move |(mut matches, statements, reason)| {
            if nft {
                spell(&mut matches, &statements);
            }
            Rule { matches, statements, reason }
        }),
        0..max,
    )
}

/// Leave only what nft(8) accepts in one rule and writes as it stands: each field once; one address, one port (it
/// merges two neighbours into one comparison, and then lists that as raw bytes); no family beside an address, which it
/// merges, too; neither beside a tproxy, which it refuses.
fn spell(matches: &mut Vec<Match>, statements: &[Statement]) {
    let group = |field| match field {
        Field::Ip4Src | Field::Ip4Dst | Field::Ip6Src | Field::Ip6Dst | Field::NfProto => Field::NfProto,
        Field::SrcPort | Field::DstPort => Field::DstPort,
        other => other,
    };
    let tproxy = statements.iter().any(|s| matches!(s, Statement::Tproxy(_)));
    let mut seen: Vec<Field> = if tproxy { vec![Field::NfProto] } else { Vec::new() };
    matches.retain(|m| {
        let new = !seen.contains(&group(m.field));
        seen.push(group(m.field));
        new
    });
}

fn any_match(family: Family) -> impl Strategy<Value = Match> {
    let fields: Vec<Field> = FIELDS.into_iter().filter(|field| belongs(*field, family)).collect();
    select(fields).prop_flat_map(|field| {
        (any::<bool>(), any_operand(field)).prop_map(move |(equal, operand)| Match {
            field,
            op: if equal { Op::Eq } else { Op::Ne },
            operand,
        })
    })
}

fn any_operand(field: Field) -> BoxedStrategy<Operand> {
    let known = select(every_operand(field));
    match field {
        Field::SkUid | Field::SkGid | Field::Mark | Field::CtMark => {
            prop_oneof![known, any::<u32>().prop_map(Operand::Number)].boxed()
        }
        Field::SrcPort | Field::DstPort => prop_oneof![known, any::<u16>().prop_map(Operand::Port)].boxed(),
        Field::Ip4Src | Field::Ip4Dst => {
            let any =
                (any::<u32>(), 0u8..=32).prop_map(|(a, len)| Operand::Ipv4(Prefix::new(a, len).unwrap()));
            prop_oneof![known, any].boxed()
        }
        Field::Ip6Src | Field::Ip6Dst => {
            let any =
                (any::<u128>(), 0u8..=128).prop_map(|(a, len)| Operand::Ipv6(Prefix::new(a, len).unwrap()));
            prop_oneof![known, any].boxed()
        }
        Field::IifName | Field::OifName => {
            let any =
                "[a-z][a-z0-9_.-]{0,14}".prop_map(|name| Operand::IfName(IfName::parse(&name).unwrap()));
            prop_oneof![known, any].boxed()
        }
        _ => known.boxed(),
    }
}

fn any_statements(base: Option<BaseChain>) -> impl Strategy<Value = Vec<Statement>> {
    let mut first = vec![Statement::SetMark(7), Statement::SaveMark, Statement::RestoreMark];
    let mut last = vec![Statement::Accept, Statement::Drop];
    if let Some(base) = base {
        last.push(Statement::Jump(String::from("sub")));
        last.push(Statement::Goto(String::from("sub")));
        if base.kind == ChainType::Nat {
            last.push(Statement::Redirect(15001));
        }
        if base.kind == ChainType::Filter && base.hook == Hook::Prerouting {
            first.push(Statement::Tproxy(15006));
        }
        if base.priority < -200 {
            first.push(Statement::SetZone(513));
        }
    }
    (vec(select(first), 0..3), option::of(select(last))).prop_map(|(mut statements, last)| {
        statements.extend(last);
        statements
    })
}

fn any_sets() -> impl Strategy<Value = Vec<Set>> {
    let ranges4 = vec((any::<u32>(), 0u8..=32), 0..20)
        .prop_map(|v| Elements::Ipv4(v.into_iter().map(|(a, len)| Prefix::new(a, len).unwrap()).collect()));
    let ranges6 = vec((any::<u128>(), 0u8..=128), 0..20)
        .prop_map(|v| Elements::Ipv6(v.into_iter().map(|(a, len)| Prefix::new(a, len).unwrap()).collect()));
    let odd4 = vec((any::<u32>(), any::<u16>()), 0..20).prop_map(|v| {
        let range = |(first, n): (u32, u16)| Range { first, last: first.saturating_add(n.into()) };
        Elements::Ipv4(v.into_iter().map(range).collect())
    });
    let names = btree_set("[a-z][a-z0-9]{0,14}", 0..6)
        .prop_map(|v| Elements::IfName(v.iter().map(|name| if_name(name)).collect()));
    let ascending = |v: std::collections::BTreeSet<u32>| v.into_iter().collect::<Vec<_>>();
    let elements = (
        ranges4,
        ranges6,
        odd4,
        names,
        btree_set(any::<u16>(), 0..20).prop_map(|v| Elements::Port(v.into_iter().collect())),
        btree_set(any::<u32>(), 0..20).prop_map(move |v| Elements::Uid(ascending(v))),
        btree_set(any::<u32>(), 0..20).prop_map(move |v| Elements::Gid(ascending(v))),
        btree_set(any::<u32>(), 0..20).prop_map(move |v| Elements::Mark(ascending(v))),
    );
    let comments = vec(option::of("[a-zA-Z0-9 .]{1,127}"), 8);
    let present = vec(any::<bool>(), 8);
    (elements, comments, present).prop_map(
        |((v4, v6, odd, names, ports, uids, gids, marks), comments, present)| {
            let named = [
                ("v4", v4),
                ("v6", v6),
                ("odd_v4", odd),
                ("interfaces", names),
                ("ports", ports),
                ("uids", uids),
                ("gids", gids),
                ("marks", marks),
            ];
            let sets = named.into_iter().zip(comments).zip(present).filter(|(_, present)| *present);
            sets.map(|(((name, elements), comment), _)| Set { name: name.to_owned(), elements, comment })
                .collect()
        },
    )
}
