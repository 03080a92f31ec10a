// SPDX-License-Identifier: Apache-2.0
//! What makes a table legal, checked before the kernel sees it, so that a refusal names the rule and not a number.

use crate::model::{
    ChainType, Elements, Family, Field, Hook, IpFamily, Match, Operand, Rule, Set, Statement, Table,
};

/// Longest comment in bytes (`NFT_USERDATA_MAXLEN` less type, length and NUL, as nft(8) limits it).
pub(crate) const COMMENT_MAX: usize = 127;

/// Why a table is not legal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValidateError {
    /// A chain or set has the name of an earlier one, or a name that nft syntax does not take.
    #[error("chain or set name {0:?} is taken or not 1 to 31 of letters, digits and '_'")]
    Name(String),
    /// A rule is not legal.
    #[error("chain {chain} rule {index}: {what}")]
    Rule {
        /// Chain name.
        chain: String,
        /// Position in the chain, from 0.
        index: usize,
        /// What is wrong with it.
        what: RuleError,
    },
    /// A base chain that the kernel does not have.
    #[error("chain {0}: type and hook do not go together")]
    Hook(String),
    /// A comment that nft would not show.
    #[error("set {0}: comment is longer than 127 bytes or has a quote or control character")]
    Comment(String),
}

/// Why a rule is not legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The operand is not of the field's type, or its set is missing or of another type.
    #[error("operand does not fit the field")]
    Operand,
    /// A match of the other address family in a table of one family.
    #[error("address family differs from the table's")]
    Family,
    /// A statement that the chain's type does not allow.
    #[error("statement is not allowed in this chain")]
    Statement,
    /// The statement needs one protocol, `meta l4proto tcp` or `udp`, in the same rule (nft(8) refuses it otherwise).
    #[error("statement needs a transport protocol match in the same rule")]
    Transport,
    /// A verdict that is not last.
    #[error("verdict is not the last statement")]
    VerdictNotLast,
    /// A jump to a chain that does not exist or is a base chain.
    #[error("jump to a missing chain")]
    Chain,
    /// The reason cannot be a comment.
    #[error("reason is empty, longer than 127 bytes or has a quote or control character")]
    Reason,
}

/// Check `table`.
///
/// # Errors
/// The first [`ValidateError`].
pub fn validate(table: &Table) -> Result<(), ValidateError> {
    let mut names: Vec<&str> = Vec::new();
    for name in table.sets.iter().map(|s| &s.name).chain(table.chains.iter().map(|c| &c.name)) {
        let legal = (1..=31).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.as_bytes()[0].is_ascii_alphabetic();
        if !legal || names.contains(&name.as_str()) {
            return Err(ValidateError::Name(name.clone()));
        }
        names.push(name);
    }
    if let Some(set) = table.sets.iter().find(|s| s.comment.as_deref().is_some_and(|c| !comment_fits(c))) {
        return Err(ValidateError::Comment(set.name.clone()));
    }
    for chain in &table.chains {
        if chain.base.is_some_and(|b| b.kind == ChainType::Route && b.hook != Hook::Output) {
            return Err(ValidateError::Hook(chain.name.clone()));
        }
        for (index, rule) in chain.rules.iter().enumerate() {
            check_rule(table, chain.base.map(|b| b.kind), rule).map_err(|what| ValidateError::Rule {
                chain: chain.name.clone(),
                index,
                what,
            })?;
        }
    }
    Ok(())
}

fn comment_fits(comment: &str) -> bool {
    comment.len() <= COMMENT_MAX && !comment.chars().any(|c| c == '"' || c.is_control())
}

fn check_rule(table: &Table, kind: Option<ChainType>, rule: &Rule) -> Result<(), RuleError> {
    if rule.reason.is_empty() || !comment_fits(&rule.reason) {
        return Err(RuleError::Reason);
    }
    for m in &rule.matches {
        check_match(table, m)?;
    }
    for (index, statement) in rule.statements.iter().enumerate() {
        let last = index + 1 == rule.statements.len();
        match statement {
            Statement::Accept | Statement::Drop if !last => return Err(RuleError::VerdictNotLast),
            Statement::Jump(_) | Statement::Goto(_) | Statement::Redirect(_) if !last => {
                return Err(RuleError::VerdictNotLast);
            }
            Statement::Jump(name) | Statement::Goto(name)
                if !table.chains.iter().any(|c| &c.name == name && c.base.is_none()) =>
            {
                return Err(RuleError::Chain);
            }
            Statement::Redirect(_) => {
                if kind.is_some_and(|kind| kind != ChainType::Nat) {
                    return Err(RuleError::Statement);
                }
                transport(rule)?;
            }
            Statement::Tproxy(_) => {
                if kind.is_some_and(|kind| kind != ChainType::Filter) {
                    return Err(RuleError::Statement);
                }
                transport(rule)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn transport(rule: &Rule) -> Result<(), RuleError> {
    let found = rule.matches.iter().any(|m| matches!(m.operand, Operand::Protocol(_)));
    if found { Ok(()) } else { Err(RuleError::Transport) }
}

fn check_match(table: &Table, m: &Match) -> Result<(), RuleError> {
    let (v4, v6) = match m.field {
        Field::Ip4Src | Field::Ip4Dst => (true, false),
        Field::Ip6Src | Field::Ip6Dst => (false, true),
        _ => (false, false),
    };
    if v4 && table.family == Family::Ip6 || v6 && table.family == Family::Ip {
        return Err(RuleError::Family);
    }
    let fits = match &m.operand {
        Operand::Set(name) => table.set(name).is_some_and(|set| set_fits(m.field, set)),
        Operand::Family(IpFamily::V4 | IpFamily::V6) => m.field == Field::NfProto,
        Operand::Protocol(_) => m.field == Field::L4Proto,
        Operand::Loopback => matches!(m.field, Field::Iif | Field::Oif),
        Operand::IfName(_) => matches!(m.field, Field::IifName | Field::OifName),
        Operand::Number(_) => matches!(m.field, Field::SkUid | Field::SkGid | Field::Mark | Field::CtMark),
        Operand::CtStates(_) => m.field == Field::CtState,
        Operand::Port(_) => matches!(m.field, Field::SrcPort | Field::DstPort),
        Operand::Ipv4(_) => v4,
        Operand::Ipv6(_) => v6,
    };
    if fits { Ok(()) } else { Err(RuleError::Operand) }
}

fn set_fits(field: Field, set: &Set) -> bool {
    match set.elements {
        Elements::Protocol(_) => field == Field::L4Proto,
        Elements::Port(_) => matches!(field, Field::SrcPort | Field::DstPort),
        Elements::Uid(_) => field == Field::SkUid,
        Elements::Gid(_) => field == Field::SkGid,
        Elements::IfName(_) => matches!(field, Field::IifName | Field::OifName),
        Elements::Mark(_) => matches!(field, Field::Mark | Field::CtMark),
        Elements::Ipv4(_) => matches!(field, Field::Ip4Src | Field::Ip4Dst),
        Elements::Ipv6(_) => matches!(field, Field::Ip6Src | Field::Ip6Dst),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BaseChain, Chain, L4, Op};

    /// A legal table with one of everything that the cases below break.
    fn table() -> Table {
        let tcp = Match { field: Field::L4Proto, op: Op::Eq, operand: Operand::Protocol(L4::Tcp) };
        let port = Match { field: Field::DstPort, op: Op::Eq, operand: Operand::Set("ports".to_owned()) };
        let rule = Rule {
            matches: vec![tcp, port],
            statements: vec![Statement::Redirect(1)],
            reason: "r".to_owned(),
        };
        let base = BaseChain { kind: ChainType::Nat, hook: Hook::Output, priority: -100 };
        let jump = Rule {
            matches: vec![],
            statements: vec![Statement::Jump("other".to_owned())],
            reason: "j".to_owned(),
        };
        Table {
            family: Family::Inet,
            name: "t".to_owned(),
            sets: vec![Set { name: "ports".to_owned(), elements: Elements::Port(vec![1, 2]), comment: None }],
            chains: vec![
                Chain { name: "output".to_owned(), base: Some(base), rules: vec![rule, jump] },
                Chain { name: "other".to_owned(), base: None, rules: vec![] },
            ],
        }
    }

    fn broken(change: impl FnOnce(&mut Table)) -> Result<(), ValidateError> {
        let mut table = table();
        change(&mut table);
        validate(&table)
    }

    fn broken_rule(change: impl FnOnce(&mut Table)) -> RuleError {
        match broken(change) {
            Err(ValidateError::Rule { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_table_that_the_cases_break_is_legal() {
        assert_eq!(broken(|_| ()), Ok(()));
    }

    #[test]
    fn each_illegal_rule_is_told_what_is_wrong_with_it() {
        let first = |t: &mut Table, change: fn(&mut Rule)| change(&mut t.chains[0].rules[0]);
        type Change = fn(&mut Rule);
        let cases: [(RuleError, Change); 10] = [
            (RuleError::Operand, |r| r.matches[1].operand = Operand::Number(1)),
            (RuleError::Operand, |r| r.matches[1].operand = Operand::Set("missing".to_owned())),
            (RuleError::Operand, |r| r.matches[1].field = Field::SkUid),
            (RuleError::Transport, |r| drop(r.matches.remove(0))),
            (RuleError::VerdictNotLast, |r| r.statements.push(Statement::Accept)),
            (RuleError::Statement, |r| r.statements = vec![Statement::Tproxy(1)]),
            (RuleError::Chain, |r| r.statements = vec![Statement::Goto("output".to_owned())]),
            (RuleError::Reason, |r| r.reason = "a \"quoted\" word".to_owned()),
            (RuleError::Reason, |r| r.reason = "x".repeat(128)),
            (RuleError::Reason, |r| r.reason.clear()),
        ];
        for (error, change) in cases {
            assert_eq!(broken_rule(|t| first(t, change)), error);
        }
    }

    #[test]
    fn a_table_of_one_family_takes_no_address_of_the_other() {
        let error = broken_rule(|t| {
            t.family = Family::Ip;
            t.chains[0].rules[0].matches[1] =
                Match { field: Field::Ip6Dst, op: Op::Eq, operand: Operand::Ipv6(crate::Prefix::host(1)) };
        });
        assert_eq!(error, RuleError::Family);
    }

    #[test]
    fn names_hooks_and_comments_are_checked() {
        for name in ["", "1a", "a-b", "ports", &"x".repeat(32)] {
            let error = broken(|t| t.chains[1].name = name.to_owned());
            assert_eq!(error, Err(ValidateError::Name(name.to_owned())), "{name:?}");
        }
        let base = BaseChain { kind: ChainType::Route, hook: Hook::Prerouting, priority: 0 };
        assert_eq!(broken(|t| t.chains[0].base = Some(base)), Err(ValidateError::Hook("output".to_owned())));
        let comment = broken(|t| t.sets[0].comment = Some("line\nbreak".to_owned()));
        assert_eq!(comment, Err(ValidateError::Comment("ports".to_owned())));
    }
}
