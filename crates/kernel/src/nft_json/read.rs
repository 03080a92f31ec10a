// SPDX-License-Identifier: Apache-2.0
//! A listing as tables.

use std::net::{Ipv4Addr, Ipv6Addr};

use ruleset::{
    BaseChain, Chain, ChainType, CtStates, Elements, Family, Field, Hook, IfName, IpFamily, L4, Match, Op,
    Operand, Prefix, Range, Rule, Set, Statement, Table,
};
use serde_json::Value;

use super::write::field_value;
use crate::TABLE;
use crate::encode::chain_type;
use crate::error::Error;

const FAMILIES: [Family; 3] = [Family::Inet, Family::Ip, Family::Ip6];

/// nft's name of a hook.
pub(super) fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "prerouting",
        Hook::Output => "output",
    }
}

/// The objects of `kind` in a listing.
fn objects<'a>(listing: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listing["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

/// The families that have a table of ours.
pub(super) fn families(listing: &Value) -> Vec<String> {
    let ours = objects(listing, "table").filter(|table| table["name"] == TABLE);
    ours.filter_map(family).map(|family| family.to_string()).collect()
}

fn family(object: &Value) -> Option<Family> {
    FAMILIES.into_iter().find(|family| object["family"] == family.to_string())
}

/// Our tables.
pub(super) fn tables(listing: &Value) -> Result<Vec<Table>, Error> {
    let heads = objects(listing, "table").filter(|table| table["name"] == TABLE);
    heads.filter_map(family).map(|family| table(listing, family)).collect()
}

fn table(listing: &Value, family: Family) -> Result<Table, Error> {
    let name = family.to_string();
    let ours = |object: &&Value| object["family"] == name && object["table"] == TABLE;
    let read = |what: &'static str, object: &Value| Error::Decode {
        object: format!("{what} of table {family} {TABLE}: {object}"),
        reason: "not written by this release",
    };
    let mut table = Table { family, name: String::from(TABLE), sets: Vec::new(), chains: Vec::new() };
    for object in objects(listing, "set").filter(ours) {
        table.sets.push(set(object).ok_or_else(|| read("set", object))?);
    }
    for object in objects(listing, "chain").filter(ours) {
        table.chains.push(chain(object).ok_or_else(|| read("chain", object))?);
    }
    for object in objects(listing, "rule").filter(ours) {
        let chain = table.chains.iter_mut().find(|chain| object["chain"] == chain.name);
        let (chain, rule) = chain.zip(rule(object)).ok_or_else(|| read("rule", object))?;
        chain.rules.push(rule);
    }
    Ok(table)
}

fn chain(object: &Value) -> Option<Chain> {
    let name = object["name"].as_str()?.to_owned();
    let base = match object.get("hook") {
        None => None,
        Some(hook) => Some(BaseChain {
            kind: [ChainType::Filter, ChainType::Nat, ChainType::Route]
                .into_iter()
                .find(|kind| object["type"] == chain_type(*kind))?,
            hook: [Hook::Prerouting, Hook::Output].into_iter().find(|h| hook == hook_name(*h))?,
            priority: i32::try_from(object["prio"].as_i64()?).ok()?,
        }),
    };
    Some(Chain { name, base, rules: Vec::new() })
}

fn set(object: &Value) -> Option<Set> {
    let empty = Vec::new();
    let values = object.get("elem").map_or(Some(&empty), Value::as_array)?;
    let elements = match object["type"].as_str()? {
        "inet_proto" => Elements::Protocol(each(values, protocol)?),
        "inet_service" => Elements::Port(each(values, number)?),
        "uid" => Elements::Uid(each(values, number)?),
        "gid" => Elements::Gid(each(values, number)?),
        "mark" => Elements::Mark(each(values, number)?),
        "ifname" => Elements::IfName(each(values, |v| IfName::parse(v.as_str()?).ok())?),
        "ipv4_addr" => {
            Elements::Ipv4(values.iter().map(range4).collect::<Option<Vec<_>>>()?.into_iter().collect())
        }
        "ipv6_addr" => {
            Elements::Ipv6(values.iter().map(range6).collect::<Option<Vec<_>>>()?.into_iter().collect())
        }
        _ => return None,
    };
    let comment = object["comment"].as_str().map(str::to_owned);
    Some(Set { name: object["name"].as_str()?.to_owned(), elements, comment })
}

fn each<T: Ord>(values: &[Value], read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    let mut out: Vec<T> = values.iter().map(read).collect::<Option<_>>()?;
    out.sort_unstable();
    Some(out)
}

fn number<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    T::try_from(value.as_u64()?).ok()
}

fn protocol(value: &Value) -> Option<L4> {
    [L4::Tcp, L4::Udp].into_iter().find(|l4| *value == l4.to_string())
}

fn range4(value: &Value) -> Option<Range<u32>> {
    if let Some(ends) = value.get("range") {
        let end = |i: usize| ends[i].as_str()?.parse().ok().map(Ipv4Addr::to_bits);
        return Some(Range { first: end(0)?, last: end(1)? });
    }
    prefix4(value).map(Prefix::range)
}

fn range6(value: &Value) -> Option<Range<u128>> {
    if let Some(ends) = value.get("range") {
        let end = |i: usize| ends[i].as_str()?.parse().ok().map(Ipv6Addr::to_bits);
        return Some(Range { first: end(0)?, last: end(1)? });
    }
    prefix6(value).map(Prefix::range)
}

fn prefix4(value: &Value) -> Option<Prefix<u32>> {
    let (address, len) = prefix_parts(value, 32)?;
    Prefix::new(address.parse().ok().map(Ipv4Addr::to_bits)?, len).ok()
}

fn prefix6(value: &Value) -> Option<Prefix<u128>> {
    let (address, len) = prefix_parts(value, 128)?;
    Prefix::new(address.parse().ok().map(Ipv6Addr::to_bits)?, len).ok()
}

fn prefix_parts(value: &Value, full: u8) -> Option<(&str, u8)> {
    match value.get("prefix") {
        Some(prefix) => Some((prefix["addr"].as_str()?, number(&prefix["len"])?)),
        None => Some((value.as_str()?, full)),
    }
}

fn rule(object: &Value) -> Option<Rule> {
    let mut rule = Rule { matches: Vec::new(), statements: Vec::new(), reason: String::new() };
    rule.reason = object["comment"].as_str()?.to_owned();
    for expr in object["expr"].as_array()? {
        match expr.get("match") {
            Some(found) if rule.statements.is_empty() => matching(found, &mut rule.matches)?,
            Some(_) => return None,
            None => rule.statements.push(statement(expr)?),
        }
    }
    Some(rule)
}

fn matching(object: &Value, matches: &mut Vec<Match>) -> Option<()> {
    let op = match object["op"].as_str()? {
        "==" | "in" => Op::Eq,
        "!=" | "!" => Op::Ne,
        _ => return None,
    };
    let (left, right) = (&object["left"], &object["right"]);
    // nft lists `meta l4proto tcp th dport N` as `tcp dport N`.
    if let Some(l4) = protocol(&left["payload"]["protocol"])
        && !matches.iter().any(|m| m.field == Field::L4Proto)
    {
        matches.push(Match { field: Field::L4Proto, op: Op::Eq, operand: Operand::Protocol(l4) });
    }
    let field = field(left)?;
    let operand = match right.as_str().and_then(|text| text.strip_prefix('@')) {
        Some(set) => Operand::Set(set.to_owned()),
        None => operand(field, right)?,
    };
    matches.push(Match { field, op, operand });
    Some(())
}

fn field(left: &Value) -> Option<Field> {
    let payload = &left["payload"];
    match payload["field"].as_str() {
        Some("sport") => return Some(Field::SrcPort),
        Some("dport") => return Some(Field::DstPort),
        _ => {}
    }
    use Field::{
        CtMark, CtState, Iif, IifName, Ip4Dst, Ip4Src, Ip6Dst, Ip6Src, L4Proto, Mark, NfProto, Oif, OifName,
        SkGid, SkUid,
    };
    [
        NfProto, L4Proto, Iif, Oif, IifName, OifName, SkUid, SkGid, Mark, CtMark, CtState, Ip4Src, Ip4Dst,
        Ip6Src, Ip6Dst,
    ]
    .into_iter()
    .find(|field| *left == field_value(*field))
}

fn operand(field: Field, right: &Value) -> Option<Operand> {
    Some(match field {
        Field::NfProto => Operand::Family(match right.as_str()? {
            "ipv4" => IpFamily::V4,
            "ipv6" => IpFamily::V6,
            _ => return None,
        }),
        Field::L4Proto => Operand::Protocol(protocol(right)?),
        Field::Iif | Field::Oif => (right == "lo").then_some(Operand::Loopback)?,
        Field::IifName | Field::OifName => Operand::IfName(IfName::parse(right.as_str()?).ok()?),
        Field::SkUid | Field::SkGid | Field::Mark | Field::CtMark => Operand::Number(number(right)?),
        Field::CtState if right == "invalid" => Operand::CtStates(CtStates::Invalid),
        Field::CtState => {
            let both = serde_json::json!(["established", "related"]);
            (*right == both).then_some(Operand::CtStates(CtStates::EstablishedOrRelated))?
        }
        Field::SrcPort | Field::DstPort => Operand::Port(number(right)?),
        Field::Ip4Src | Field::Ip4Dst => Operand::Ipv4(prefix4(right)?),
        Field::Ip6Src | Field::Ip6Dst => Operand::Ipv6(prefix6(right)?),
    })
}

fn statement(expr: &Value) -> Option<Statement> {
    let (kind, value) = expr.as_object()?.iter().next()?;
    let target = || value["target"].as_str().map(str::to_owned);
    Some(match kind.as_str() {
        "accept" => Statement::Accept,
        "drop" => Statement::Drop,
        "jump" => Statement::Jump(target()?),
        "goto" => Statement::Goto(target()?),
        "redirect" => Statement::Redirect(number(&value["port"])?),
        "tproxy" => Statement::Tproxy(number(&value["port"])?),
        "mangle" => {
            let (mark, ct_mark) = (field_value(Field::Mark), field_value(Field::CtMark));
            match (&value["key"], &value["value"]) {
                (key, value) if *key == mark && *value == ct_mark => Statement::RestoreMark,
                (key, value) if *key == ct_mark && *value == mark => Statement::SaveMark,
                (key, value) if *key == mark => Statement::SetMark(number(value)?),
                (key, value) if key["ct"]["key"] == "zone" => Statement::SetZone(number(value)?),
                _ => return None,
            }
        }
        _ => return None,
    })
}
