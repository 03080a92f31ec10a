// SPDX-License-Identifier: Apache-2.0
//! Faults in compiled tables: each part of each rule gone, turned round or with another value. No I/O.

use ruleset::{CtStates, Elements, IpFamily, L4, Op, Operand, Plan, Prefix, Rule, Statement, Table};

/// A plan with one fault.
pub struct Altered {
    /// Chain, rule and what is wrong with it.
    pub what: String,
    /// The plan.
    pub plan: Plan,
}

/// Every fault of every rule and set of `plan`.
#[must_use]
pub fn alterations(plan: &Plan) -> Vec<Altered> {
    let mut all = Vec::new();
    for (at, table) in plan.tables.iter().enumerate() {
        let tables = of_rules(table).into_iter().chain(of_sets(table));
        all.extend(tables.map(|(what, table)| {
            let mut plan = plan.clone();
            plan.tables[at] = table;
            Altered { what, plan }
        }));
    }
    all
}

fn of_rules(table: &Table) -> Vec<(String, Table)> {
    let mut all = Vec::new();
    for (at, chain) in table.chains.iter().enumerate() {
        for (index, rule) in chain.rules.iter().enumerate() {
            for (what, instead) in instead_of(rule) {
                let mut table = table.clone();
                table.chains[at].rules.splice(index..=index, instead);
                all.push((format!("{}: {rule}: {what}", chain.name), table));
            }
        }
    }
    all
}

/// Each set without each of its elements.
fn of_sets(table: &Table) -> Vec<(String, Table)> {
    let mut all = Vec::new();
    for (at, set) in table.sets.iter().enumerate() {
        for index in 0..set.elements.len() {
            let mut table = table.clone();
            remove(&mut table.sets[at].elements, index);
            all.push((format!("set {}: without element {index}", set.name), table));
        }
    }
    all
}

fn remove(elements: &mut Elements, index: usize) {
    match elements {
        Elements::Protocol(items) => drop(items.remove(index)),
        Elements::Port(items) => drop(items.remove(index)),
        Elements::Uid(items) | Elements::Gid(items) | Elements::Mark(items) => drop(items.remove(index)),
        Elements::IfName(items) => drop(items.remove(index)),
        Elements::Ipv4(ranges) => {
            let rest = ranges.ranges().iter().enumerate().filter(|(at, _)| *at != index);
            *ranges = rest.map(|(_, range)| *range).collect();
        }
        Elements::Ipv6(ranges) => {
            let rest = ranges.ranges().iter().enumerate().filter(|(at, _)| *at != index);
            *ranges = rest.map(|(_, range)| *range).collect();
        }
    }
}

/// What could stand in the place of `rule` by mistake.
fn instead_of(rule: &Rule) -> Vec<(String, Option<Rule>)> {
    let mut all = vec![("removed".to_owned(), None)];
    for (at, m) in rule.matches.iter().enumerate() {
        let mut add = |what: &str, change: &dyn Fn(&mut Rule)| {
            let mut altered = rule.clone();
            change(&mut altered);
            all.push((format!("match {at} {what}"), Some(altered)));
        };
        add("missing", &|rule| drop(rule.matches.remove(at)));
        add("turned round", &|rule| {
            rule.matches[at].op = if m.op == Op::Eq { Op::Ne } else { Op::Eq };
        });
        if let Some(operand) = other(&m.operand) {
            add("with another value", &|rule| rule.matches[at].operand = operand.clone());
        }
    }
    for (at, statement) in rule.statements.iter().enumerate() {
        let mut altered = rule.clone();
        match wrong(statement) {
            Some(wrong) => altered.statements[at] = wrong,
            None => drop(altered.statements.remove(at)),
        }
        all.push((format!("statement {at} is another"), Some(altered)));
    }
    all
}

/// Another value of the same kind.
fn other(operand: &Operand) -> Option<Operand> {
    Some(match operand {
        Operand::Family(IpFamily::V4) => Operand::Family(IpFamily::V6),
        Operand::Family(IpFamily::V6) => Operand::Family(IpFamily::V4),
        Operand::Protocol(L4::Tcp) => Operand::Protocol(L4::Udp),
        Operand::Protocol(L4::Udp) => Operand::Protocol(L4::Tcp),
        Operand::IfName(_) | Operand::Loopback | Operand::Set(_) => return None,
        Operand::Number(number) => Operand::Number(number + 1),
        Operand::CtStates(CtStates::Invalid) => Operand::CtStates(CtStates::EstablishedOrRelated),
        Operand::CtStates(_) => Operand::CtStates(CtStates::Invalid),
        Operand::Port(port) => Operand::Port(port + 1),
        Operand::Ipv4(prefix) => Operand::Ipv4(Prefix::host(!prefix.range().first)),
        Operand::Ipv6(prefix) => Operand::Ipv6(Prefix::host(!prefix.range().first)),
    })
}

/// Another statement, or nothing for none at all.
fn wrong(statement: &Statement) -> Option<Statement> {
    Some(match statement {
        Statement::Accept => Statement::Drop,
        Statement::Drop => Statement::Accept,
        Statement::Redirect(port) => Statement::Redirect(port + 1),
        Statement::Tproxy(port) => Statement::Tproxy(port + 1),
        Statement::SetMark(mark) => Statement::SetMark(mark + 2),
        Statement::SetZone(zone) => Statement::SetZone(zone + 2),
        Statement::SaveMark | Statement::RestoreMark | Statement::Jump(_) | Statement::Goto(_) => {
            return None;
        }
    })
}
