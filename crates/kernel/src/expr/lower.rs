// SPDX-License-Identifier: Apache-2.0
//! A rule as expressions, exactly as nft(8) would write it.

use ruleset::{CtStates, Family, Field, IfName, IpFamily, Match, Op, Operand, Rule, Statement};

use super::{Data, Expr, Verdict, ip_nfproto, tproxy_family};
use crate::uapi::*;

/// The expressions of `rule` in a table of `family`.
pub(crate) fn lower(rule: &Rule, family: Family) -> Vec<Expr> {
    let mut out = Vec::with_capacity(4 * rule.matches.len() + 2 * rule.statements.len());
    let mut implied = None;
    for m in &rule.matches {
        if let Some(needed) = m.field.address_family() {
            // In an inet table the header may be of either family, so its family is checked first; nft does so once
            // for all addresses of a rule and hides the check when it lists the rule.
            if family == Family::Inet && implied != Some(needed) {
                out.push(Expr::MetaLoad(NFT_META_NFPROTO));
                out.push(Expr::Cmp(Op::Eq, Data::of([ip_nfproto(needed)])));
                implied = Some(needed);
            }
        }
        lower_match(m, &mut out);
    }
    for statement in &rule.statements {
        lower_statement(statement, family, &mut out);
    }
    out
}

/// What the encoder needs to know of a field.
pub(super) trait FieldExt {
    fn load(self) -> Expr;
    fn address_family(self) -> Option<IpFamily>;
}

impl FieldExt for Field {
    /// The expression that puts the whole field into register 1.
    fn load(self) -> Expr {
        let network = |offset, len| Expr::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, len };
        let transport = |offset| Expr::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset, len: 2 };
        match self {
            Self::NfProto => Expr::MetaLoad(NFT_META_NFPROTO),
            Self::L4Proto => Expr::MetaLoad(NFT_META_L4PROTO),
            Self::Iif => Expr::MetaLoad(NFT_META_IIF),
            Self::Oif => Expr::MetaLoad(NFT_META_OIF),
            Self::IifName => Expr::MetaLoad(NFT_META_IIFNAME),
            Self::OifName => Expr::MetaLoad(NFT_META_OIFNAME),
            Self::SkUid => Expr::MetaLoad(NFT_META_SKUID),
            Self::SkGid => Expr::MetaLoad(NFT_META_SKGID),
            Self::Mark => Expr::MetaLoad(NFT_META_MARK),
            Self::CtMark => Expr::CtLoad(NFT_CT_MARK),
            Self::CtState => Expr::CtLoad(NFT_CT_STATE),
            Self::SrcPort => transport(0),
            Self::DstPort => transport(2),
            // struct iphdr and struct ipv6hdr.
            Self::Ip4Src => network(12, 4),
            Self::Ip4Dst => network(16, 4),
            Self::Ip6Src => network(8, 16),
            Self::Ip6Dst => network(24, 16),
        }
    }

    /// The family of packets that have the field, if not all do.
    fn address_family(self) -> Option<IpFamily> {
        match self {
            Self::Ip4Src | Self::Ip4Dst => Some(IpFamily::V4),
            Self::Ip6Src | Self::Ip6Dst => Some(IpFamily::V6),
            _ => None,
        }
    }
}

fn lower_match(m: &Match, out: &mut Vec<Expr>) {
    let load = m.field.load();
    let data = match &m.operand {
        Operand::Set(name) => {
            out.extend([load, Expr::Lookup(m.op, name.clone())]);
            return;
        }
        Operand::CtStates(states) => {
            lower_states(*states, m.op, load, out);
            return;
        }
        Operand::Ipv4(prefix) => {
            let range = prefix.range();
            let (first, last) = (range.first.to_be_bytes(), range.last.to_be_bytes());
            lower_prefix(first, last, prefix.prefix_len(), m.op, load, out);
            return;
        }
        Operand::Ipv6(prefix) => {
            let range = prefix.range();
            let (first, last) = (range.first.to_be_bytes(), range.last.to_be_bytes());
            lower_prefix(first, last, prefix.prefix_len(), m.op, load, out);
            return;
        }
        Operand::Family(family) => Data::of([ip_nfproto(*family)]),
        Operand::Protocol(l4) => Data::of([l4.number()]),
        Operand::Loopback => Data::of(LOOPBACK_IFINDEX.to_ne_bytes()),
        Operand::IfName(name) => Data::of(padded(name)),
        Operand::Number(n) => Data::of(n.to_ne_bytes()),
        Operand::Port(port) => Data::of(port.to_be_bytes()),
    };
    out.extend([load, Expr::Cmp(m.op, data)]);
}

/// Index of `lo` in every netns (`LOOPBACK_IFINDEX`, `net/flow.h`).
pub(super) const LOOPBACK_IFINDEX: u32 = 1;

/// `name` as the kernel keeps it: NUL to the end of IFNAMSIZ.
pub(crate) fn padded(name: &IfName) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.as_str().len()].copy_from_slice(name.as_str().as_bytes());
    bytes
}

/// `ct state A,B` and `ct state ! A,B`: any of the bits, or none. A packet has one state, so comparing with all bits
/// of a list, as nft does for `!=`, would be no test at all.
fn lower_states(states: CtStates, op: Op, load: Expr, out: &mut Vec<Expr>) {
    let mask = match states {
        CtStates::Invalid => CT_STATE_INVALID,
        CtStates::EstablishedOrRelated => CT_STATE_ESTABLISHED_RELATED,
    };
    out.extend([load, Expr::Bitwise(Data::of(mask.to_ne_bytes())), Expr::Cmp(inverse(op), Data::of([0; 4]))]);
}

pub(super) fn inverse(op: Op) -> Op {
    match op {
        Op::Eq => Op::Ne,
        Op::Ne => Op::Eq,
    }
}

fn lower_prefix<const N: usize>(
    first: [u8; N],
    last: [u8; N],
    len: u8,
    op: Op,
    load: Expr,
    out: &mut Vec<Expr>,
) {
    let whole = usize::from(len / 8);
    if len.is_multiple_of(8)
        && let Some(data) = Data::new(&first[..whole])
        && let Expr::Payload { base, offset, .. } = load
    {
        out.extend([Expr::Payload { base, offset, len: u32::from(len / 8) }, Expr::Cmp(op, data)]);
        return;
    }
    let mask = std::array::from_fn::<u8, N, _>(|i| !(first[i] ^ last[i]));
    out.extend([load, Expr::Bitwise(Data::of(mask)), Expr::Cmp(op, Data::of(first))]);
}

fn lower_statement(statement: &Statement, family: Family, out: &mut Vec<Expr>) {
    match statement {
        Statement::Accept => out.push(Expr::Verdict(Verdict::Accept)),
        Statement::Drop => out.push(Expr::Verdict(Verdict::Drop)),
        Statement::Jump(chain) => out.push(Expr::Verdict(Verdict::Jump(chain.clone()))),
        Statement::Goto(chain) => out.push(Expr::Verdict(Verdict::Goto(chain.clone()))),
        Statement::Redirect(port) => {
            out.extend([Expr::Immediate(Data::of(port.to_be_bytes())), Expr::Redir]);
        }
        Statement::Tproxy(port) => {
            out.extend([Expr::Immediate(Data::of(port.to_be_bytes())), Expr::Tproxy(tproxy_family(family))]);
        }
        Statement::SetMark(mark) => {
            out.extend([Expr::Immediate(Data::of(mark.to_ne_bytes())), Expr::MetaSet(NFT_META_MARK)]);
        }
        Statement::SaveMark => out.extend([Expr::MetaLoad(NFT_META_MARK), Expr::CtSet(NFT_CT_MARK)]),
        Statement::RestoreMark => out.extend([Expr::CtLoad(NFT_CT_MARK), Expr::MetaSet(NFT_META_MARK)]),
        Statement::SetZone(zone) => {
            out.extend([Expr::Immediate(Data::of(zone.to_ne_bytes())), Expr::CtSet(NFT_CT_ZONE)]);
        }
    }
}
