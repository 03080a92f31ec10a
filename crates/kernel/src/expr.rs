// SPDX-License-Identifier: Apache-2.0
//! The virtual machine's expressions, and matches and statements as sequences of them.
//!
//! Owns the correspondence in both directions: [`lower`] and [`raise`]. It is the one that nft(8) has, so that `nft
//! list` shows our rules as [`ruleset::render`] spells them. Every expression works on register 1. Must never see
//! attributes.

mod lower;
mod raise;

pub(crate) use lower::{lower, padded};
pub(crate) use raise::{ifname, protocol, raise};
use ruleset::{Family, IpFamily, Op};

use crate::uapi::{NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6, NFPROTO_UNSPEC};

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expr {
    /// `[ meta load KEY => reg 1 ]`.
    MetaLoad(u32),
    /// `[ meta set KEY with reg 1 ]`.
    MetaSet(u32),
    /// `[ ct load KEY => reg 1 ]`.
    CtLoad(u32),
    /// `[ ct set KEY with reg 1 ]`.
    CtSet(u32),
    /// `[ payload load LENb @ BASE header + OFFSET => reg 1 ]`.
    Payload { base: u32, offset: u32, len: u32 },
    /// `[ bitwise reg 1 = ( reg 1 & MASK ) ^ 0 ]`.
    Bitwise(Data),
    /// `[ cmp eq|neq reg 1 DATA ]`.
    Cmp(Op, Data),
    /// `[ lookup reg 1 set NAME ]`, with flag 1 for [`Op::Ne`].
    Lookup(Op, String),
    /// `[ immediate reg 1 DATA ]`.
    Immediate(Data),
    /// `[ immediate reg 0 VERDICT ]`.
    Verdict(Verdict),
    /// `[ redir proto_min reg 1 flags 2 ]`.
    Redir,
    /// `[ tproxy FAMILY port reg 1 ]`.
    Tproxy(u8),
}

/// What a rule ends with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
}

/// The content of a register: 1 to 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Data {
    bytes: [u8; 16],
    len: u8,
}

impl Data {
    /// `bytes`, unless there are none or more than a register holds.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        let mut data = Self { bytes: [0; 16], len: u8::try_from(bytes.len()).ok().filter(|len| *len > 0)? };
        data.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(data)
    }

    fn of<const N: usize>(bytes: [u8; N]) -> Self {
        const { assert!(N >= 1 && N <= 16) };
        Self::new(&bytes).expect("the length was checked at compile time")
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(crate) fn array<const N: usize>(&self) -> Option<[u8; N]> {
        self.as_slice().try_into().ok()
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x?}", self.as_slice())
    }
}

/// `NFPROTO_*` of a table's family.
pub(crate) fn nfproto(family: Family) -> u8 {
    match family {
        Family::Inet => NFPROTO_INET,
        Family::Ip => NFPROTO_IPV4,
        Family::Ip6 => NFPROTO_IPV6,
    }
}

/// The family of an `NFPROTO_*`, of those that we use.
pub(crate) fn family(nfproto: u8) -> Option<Family> {
    match nfproto {
        NFPROTO_INET => Some(Family::Inet),
        NFPROTO_IPV4 => Some(Family::Ip),
        NFPROTO_IPV6 => Some(Family::Ip6),
        _ => None,
    }
}

fn ip_nfproto(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => NFPROTO_IPV4,
        IpFamily::V6 => NFPROTO_IPV6,
    }
}

/// The family that a tproxy expression names: both in an inet table.
fn tproxy_family(family: Family) -> u8 {
    match family {
        Family::Inet => NFPROTO_UNSPEC,
        single => nfproto(single),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ruleset::{Field, Match, Operand, Prefix, Rule, Statement};

    use super::*;

    fn rule(matches: Vec<Match>) -> Rule {
        Rule { matches, statements: vec![Statement::Accept], reason: String::from("r") }
    }

    fn family_is(family: IpFamily) -> Match {
        Match { field: Field::NfProto, op: Op::Eq, operand: Operand::Family(family) }
    }

    fn source(len: u8) -> Match {
        let prefix = Prefix::new(0x0a01_0280, len).unwrap();
        Match { field: Field::Ip4Src, op: Op::Eq, operand: Operand::Ipv4(prefix) }
    }

    #[test]
    fn a_family_match_before_an_address_match_stays_a_match_of_its_own() {
        let explicit = rule(vec![family_is(IpFamily::V4), source(8)]);
        let implied = rule(vec![source(8)]);
        for rule in [&explicit, &implied] {
            let (matches, _) = raise(&lower(rule, Family::Inet), Family::Inet).unwrap();
            assert_eq!(&matches, &rule.matches);
        }
        assert_ne!(lower(&explicit, Family::Inet), lower(&implied, Family::Inet));
    }

    #[test]
    fn any_order_of_family_and_address_matches_comes_back() {
        let v6 = Match { field: Field::Ip6Dst, op: Op::Ne, operand: Operand::Ipv6(Prefix::host(6)) };
        let choices = [family_is(IpFamily::V4), family_is(IpFamily::V6), source(8), v6];
        for pick in 0..256usize {
            let matches = (0..4).map(|place| choices[pick >> (2 * place) & 3].clone()).collect();
            let rule = rule(matches);
            let (matches, statements) = raise(&lower(&rule, Family::Inet), Family::Inet).unwrap();
            assert_eq!((matches, statements), (rule.matches, rule.statements));
        }
    }

    #[test]
    fn a_prefix_of_whole_bytes_is_compared_without_a_mask() {
        let loads = |len| lower(&rule(vec![source(len)]), Family::Ip)[..2].to_vec();
        let payload = |len| Expr::Payload { base: 1, offset: 12, len };
        assert_eq!(loads(8), [payload(1), Expr::Cmp(Op::Eq, Data::of([10]))]);
        assert_eq!(loads(32), [payload(4), Expr::Cmp(Op::Eq, Data::of([10, 1, 2, 128]))]);
        assert_eq!(loads(25), [payload(4), Expr::Bitwise(Data::of([255, 255, 255, 128]))]);
        assert_eq!(loads(0), [payload(4), Expr::Bitwise(Data::of([0; 4]))]);
    }

    #[test]
    fn an_expression_of_another_program_is_refused() {
        for foreign in [
            vec![Expr::MetaLoad(99), Expr::Cmp(Op::Eq, Data::of([1]))],
            vec![Expr::MetaLoad(4), Expr::Cmp(Op::Eq, Data::of(7u32.to_ne_bytes()))],
            vec![Expr::Verdict(Verdict::Accept), Expr::MetaLoad(4)],
            vec![Expr::Payload { base: 1, offset: 9, len: 1 }, Expr::Cmp(Op::Eq, Data::of([6]))],
            vec![Expr::Redir],
        ] {
            assert!(raise(&foreign, Family::Inet).is_err(), "{foreign:?}");
        }
    }

    proptest! {
        #[test]
        fn raising_any_expressions_never_panics(picks in proptest::collection::vec((0u8..12, any::<u32>(), any::<[u8; 16]>(), 1usize..17), 0..8)) {
            let exprs: Vec<Expr> = picks.into_iter().map(|(kind, number, bytes, len)| {
                let data = Data::new(&bytes[..len]).unwrap();
                let op = if number % 2 == 0 { Op::Eq } else { Op::Ne };
                let key = number % 20;
                match kind {
                    0 => Expr::MetaLoad(key),
                    1 => Expr::MetaSet(key),
                    2 => Expr::CtLoad(key),
                    3 => Expr::CtSet(key),
                    4 => Expr::Payload { base: key % 3, offset: key, len: number % 17 },
                    5 => Expr::Bitwise(data),
                    6 => Expr::Cmp(op, data),
                    7 => Expr::Lookup(op, String::from("s")),
                    8 => Expr::Immediate(data),
                    9 => Expr::Verdict(Verdict::Drop),
                    10 => Expr::Redir,
                    _ => Expr::Tproxy(0),
                }
            }).collect();
            let _ = raise(&exprs, Family::Inet);
        }
    }
}
