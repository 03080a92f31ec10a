// SPDX-License-Identifier: Apache-2.0
//! A table as commands.

use std::net::{Ipv4Addr, Ipv6Addr};

use ruleset::{CtStates, Elements, Field, Match, Op, Operand, Prefix, Range, Set, Statement, Table};
use serde_json::{Value, json};

use crate::TABLE;
use crate::encode::chain_type;

/// The command that deletes our table of `family`.
pub(super) fn delete(family: &str) -> Value {
    json!({ "delete": { "table": { "family": family, "name": TABLE } } })
}

/// The commands that create `table`.
pub(super) fn create(table: &Table) -> Vec<Value> {
    let family = table.family.to_string();
    let mut out = vec![json!({ "create": { "table": { "family": family, "name": TABLE } } })];
    out.extend(table.sets.iter().map(|set| json!({ "add": { "set": set_object(&family, set) } })));
    for chain in &table.chains {
        let mut object = json!({ "family": family, "table": TABLE, "name": chain.name });
        if let Some(base) = chain.base {
            object["type"] = json!(chain_type(base.kind));
            object["hook"] = json!(super::read::hook_name(base.hook));
            object["prio"] = json!(base.priority);
            object["policy"] = json!("accept");
        }
        out.push(json!({ "add": { "chain": object } }));
    }
    for chain in &table.chains {
        for rule in &chain.rules {
            let mut expr: Vec<Value> = rule.matches.iter().map(matching).collect();
            expr.extend(rule.statements.iter().map(statement));
            out.push(json!({ "add": { "rule": {
                "family": family, "table": TABLE, "chain": chain.name, "comment": rule.reason, "expr": expr,
            } } }));
        }
    }
    out
}

fn set_object(family: &str, set: &Set) -> Value {
    let (kind, elements): (_, Vec<Value>) = match &set.elements {
        Elements::Protocol(v) => ("inet_proto", v.iter().map(|l4| json!(l4.to_string())).collect()),
        Elements::Port(v) => ("inet_service", v.iter().map(|n| json!(n)).collect()),
        Elements::Uid(v) => ("uid", v.iter().map(|n| json!(n)).collect()),
        Elements::Gid(v) => ("gid", v.iter().map(|n| json!(n)).collect()),
        Elements::IfName(v) => ("ifname", v.iter().map(|name| json!(name.as_str())).collect()),
        Elements::Mark(v) => ("mark", v.iter().map(|n| json!(n)).collect()),
        Elements::Ipv4(v) => ("ipv4_addr", v.ranges().iter().map(|r| range4(*r)).collect()),
        Elements::Ipv6(v) => ("ipv6_addr", v.ranges().iter().map(|r| range6(*r)).collect()),
    };
    let mut object = json!({ "family": family, "table": TABLE, "name": set.name, "type": kind });
    if matches!(set.elements, Elements::Ipv4(_) | Elements::Ipv6(_)) {
        object["flags"] = json!(["interval"]);
    }
    if let Some(comment) = &set.comment {
        object["comment"] = json!(comment);
    }
    if !elements.is_empty() {
        object["elem"] = json!(elements);
    }
    object
}

fn range4(range: Range<u32>) -> Value {
    range.prefix().map_or_else(
        || json!({ "range": [Ipv4Addr::from_bits(range.first), Ipv4Addr::from_bits(range.last)] }),
        prefix4,
    )
}

fn range6(range: Range<u128>) -> Value {
    range.prefix().map_or_else(
        || json!({ "range": [Ipv6Addr::from_bits(range.first), Ipv6Addr::from_bits(range.last)] }),
        prefix6,
    )
}

fn prefix4(prefix: Prefix<u32>) -> Value {
    let address = Ipv4Addr::from_bits(prefix.network());
    match prefix.prefix_len() {
        32 => json!(address),
        len => json!({ "prefix": { "addr": address, "len": len } }),
    }
}

fn prefix6(prefix: Prefix<u128>) -> Value {
    let address = Ipv6Addr::from_bits(prefix.network());
    match prefix.prefix_len() {
        128 => json!(address),
        len => json!({ "prefix": { "addr": address, "len": len } }),
    }
}

/// The left side of a match on `field`.
pub(super) fn field_value(field: Field) -> Value {
    let meta = |key| json!({ "meta": { "key": key } });
    let ct = |key| json!({ "ct": { "key": key } });
    let payload = |protocol, field| json!({ "payload": { "protocol": protocol, "field": field } });
    match field {
        Field::NfProto => meta("nfproto"),
        Field::L4Proto => meta("l4proto"),
        Field::Iif => meta("iif"),
        Field::Oif => meta("oif"),
        Field::IifName => meta("iifname"),
        Field::OifName => meta("oifname"),
        Field::SkUid => meta("skuid"),
        Field::SkGid => meta("skgid"),
        Field::Mark => meta("mark"),
        Field::CtMark => ct("mark"),
        Field::CtState => ct("state"),
        Field::SrcPort => payload("th", "sport"),
        Field::DstPort => payload("th", "dport"),
        Field::Ip4Src => payload("ip", "saddr"),
        Field::Ip4Dst => payload("ip", "daddr"),
        Field::Ip6Src => payload("ip6", "saddr"),
        Field::Ip6Dst => payload("ip6", "daddr"),
    }
}

fn matching(m: &Match) -> Value {
    // A state is one bit of several: `in` asks for any of them, `!` for none.
    let op = match (&m.operand, m.op) {
        (Operand::CtStates(_), Op::Eq) => "in",
        (Operand::CtStates(_), Op::Ne) => "!",
        (_, Op::Eq) => "==",
        (_, Op::Ne) => "!=",
    };
    let right = match &m.operand {
        Operand::Loopback => json!("lo"),
        Operand::IfName(name) => json!(name.as_str()),
        Operand::Number(n) => json!(n),
        Operand::Port(n) => json!(n),
        Operand::CtStates(CtStates::Invalid) => json!("invalid"),
        Operand::CtStates(CtStates::EstablishedOrRelated) => json!(["established", "related"]),
        Operand::Ipv4(p) => prefix4(*p),
        Operand::Ipv6(p) => prefix6(*p),
        Operand::Family(_) | Operand::Protocol(_) | Operand::Set(_) => json!(m.operand.to_string()),
    };
    json!({ "match": { "op": op, "left": field_value(m.field), "right": right } })
}

fn statement(statement: &Statement) -> Value {
    let mangle = |key: Value, value: Value| json!({ "mangle": { "key": key, "value": value } });
    let (mark, ct_mark) = (field_value(Field::Mark), field_value(Field::CtMark));
    match statement {
        Statement::Accept => json!({ "accept": null }),
        Statement::Drop => json!({ "drop": null }),
        Statement::Jump(chain) => json!({ "jump": { "target": chain } }),
        Statement::Goto(chain) => json!({ "goto": { "target": chain } }),
        Statement::Redirect(port) => json!({ "redirect": { "port": port } }),
        Statement::Tproxy(port) => json!({ "tproxy": { "port": port } }),
        Statement::SetMark(n) => mangle(mark, json!(n)),
        Statement::SaveMark => mangle(ct_mark, mark),
        Statement::RestoreMark => mangle(mark, ct_mark),
        Statement::SetZone(n) => mangle(json!({ "ct": { "key": "zone" } }), json!(n)),
    }
}
