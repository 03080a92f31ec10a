// SPDX-License-Identifier: Apache-2.0
//! The form in which a kernel takes the rules: one table for both families, or one for each.

use crate::model::{Chain, Family, Field, IpFamily, Match, Op, Operand, Rule, Set, Statement, Table};
use crate::plan::{Fingerprint, Plan};

/// How many tables there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One `inet` table: NAT chains in it need kernel 5.2.
    Inet,
    /// The same rules in an `ip` and an `ip6` table, for older kernels.
    PerFamily,
}

impl Form {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Inet, Self::PerFamily];
}

impl Plan {
    /// The plan in this form. Where IPv6 is left alone there is no `ip6` table.
    #[must_use]
    pub fn in_form(mut self, form: Form) -> Self {
        if form == Form::PerFamily {
            let split = |family| self.tables.iter().map(move |table| of_family(table, family));
            let (ipv4, ipv6) = (split(IpFamily::V4), split(IpFamily::V6));
            self.tables = ipv4.chain(ipv6.filter(|table| !table.chains.is_empty())).collect();
        }
        self
    }
}

/// What `table`, an `inet` one, does with packets of `family`.
fn of_family(table: &Table, family: IpFamily) -> Table {
    let chains: Vec<Chain> = table.chains.iter().filter_map(|chain| chain_of_family(chain, family)).collect();
    let used = |set: &&Set| {
        let named = |m: &Match| matches!(&m.operand, Operand::Set(name) if *name == set.name);
        chains.iter().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.matches).any(named)
    };
    Fingerprint::seal(Table {
        family: match family {
            IpFamily::V4 => Family::Ip,
            IpFamily::V6 => Family::Ip6,
        },
        name: table.name.clone(),
        sets: table.sets.iter().filter(used).cloned().collect(),
        chains,
    })
}

/// Without the rules about the other family; nothing when no rule is left that does more than the chain's end.
fn chain_of_family(chain: &Chain, family: IpFamily) -> Option<Chain> {
    let mut rules: Vec<Rule> = chain.rules.iter().filter_map(|rule| rule_of_family(rule, family)).collect();
    let leaves_all = |rule: &Rule| rule.matches.is_empty() && rule.statements == [Statement::Accept];
    rules.truncate(rules.iter().position(leaves_all).unwrap_or(rules.len()));
    let needed = rules.iter().rposition(|rule| rule.statements != [Statement::Accept])?;
    rules.truncate(needed + 1);
    Some(Chain { rules, ..chain.clone() })
}

/// Without the matches that always hold in this family; nothing when one never does.
fn rule_of_family(rule: &Rule, family: IpFamily) -> Option<Rule> {
    let mut kept = rule.clone();
    kept.matches.clear();
    for m in &rule.matches {
        let of = match (&m.operand, m.field) {
            (Operand::Family(of), _) => {
                if (*of == family) != (m.op == Op::Eq) {
                    return None;
                }
                continue;
            }
            (_, Field::Ip4Src | Field::Ip4Dst) => IpFamily::V4,
            (_, Field::Ip6Src | Field::Ip6Dst) => IpFamily::V6,
            _ => family,
        };
        if of != family {
            return None;
        }
        kept.matches.push(m.clone());
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BaseChain, ChainType, Elements, Hook, L4};
    use crate::{Prefix, render, validate};

    /// With or without a rule in front that leaves IPv6 alone.
    fn plan(guarded: bool) -> Plan {
        let is = |field, operand| Match { field, op: Op::Eq, operand };
        let set = |name: &str, elements| Set { name: name.to_owned(), elements, comment: None };
        let rule = |reason: &str, matches, statement| Rule {
            matches,
            statements: vec![statement],
            reason: reason.to_owned(),
        };
        let tcp = || is(Field::L4Proto, Operand::Protocol(L4::Tcp));
        let base = BaseChain { kind: ChainType::Nat, hook: Hook::Output, priority: -100 };
        let mut rules = vec![
            rule("skip", vec![is(Field::Ip4Dst, Operand::Set("skip4".to_owned()))], Statement::Accept),
            rule(
                "v6",
                vec![is(Field::Ip6Dst, Operand::Ipv6(Prefix::host(1))), tcp()],
                Statement::Redirect(1),
            ),
            rule("all", vec![tcp()], Statement::Redirect(2)),
        ];
        if guarded {
            let guard = is(Field::NfProto, Operand::Family(IpFamily::V6));
            rules.insert(0, rule("guard", vec![guard], Statement::Accept));
        }
        let only_v4 = vec![rule(
            "v4",
            vec![is(Field::NfProto, Operand::Family(IpFamily::V4)), tcp()],
            Statement::Redirect(3),
        )];
        let chain = |name: &str, rules| Chain { name: name.to_owned(), base: Some(base), rules };
        Plan {
            tables: vec![Fingerprint::seal(Table {
                family: Family::Inet,
                name: "t".to_owned(),
                sets: vec![set(
                    "skip4",
                    Elements::Ipv4([Prefix::host(1), Prefix::host(9)].into_iter().collect()),
                )],
                chains: vec![chain("a", rules), chain("b", only_v4)],
            })],
            passthrough_ipv6: false,
            policy_route: crate::PolicyRoute { mark: 1, table: 1, ipv4: false, ipv6: false },
        }
    }

    #[test]
    fn each_family_has_its_own_rules_and_sets() {
        let split = plan(false).in_form(Form::PerFamily);
        let reasons = |table: &Table| -> Vec<String> {
            table.chains.iter().flat_map(|c| &c.rules).map(|rule| rule.to_string()).collect()
        };
        assert_eq!(split.tables.iter().map(|t| t.family).collect::<Vec<_>>(), [Family::Ip, Family::Ip6]);
        assert_eq!(
            reasons(&split.tables[0]),
            [
                "ip daddr @skip4 accept comment \"skip\"",
                "meta l4proto tcp redirect to :2 comment \"all\"",
                "meta l4proto tcp redirect to :3 comment \"v4\"",
            ]
        );
        assert_eq!(
            reasons(&split.tables[1]),
            [
                "ip6 daddr ::1 meta l4proto tcp redirect to :1 comment \"v6\"",
                "meta l4proto tcp redirect to :2 comment \"all\"",
            ]
        );
        assert_eq!(split.tables[1].sets.len(), 1, "only the fingerprint: {}", render(&split.tables[1]));
        for table in &split.tables {
            assert_eq!(validate(table), Ok(()));
            assert!(Fingerprint::verify(table).is_ok());
        }
    }

    #[test]
    fn where_ipv6_is_left_alone_there_is_no_table_for_it() {
        let split = plan(true).in_form(Form::PerFamily);
        assert_eq!(split.tables.iter().map(|t| t.family).collect::<Vec<_>>(), [Family::Ip]);
        assert_eq!(plan(true).in_form(Form::Inet), plan(true));
    }
}
