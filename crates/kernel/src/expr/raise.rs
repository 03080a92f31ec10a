// SPDX-License-Identifier: Apache-2.0
//! Expressions as matches and statements: the inverse of [`super::lower`], and nothing more than that.
//!
//! Whatever `lower` does not write is an error, so that a rule that somebody changed never passes for ours.

use ruleset::{CtStates, Family, Field, IfName, IpFamily, L4, Match, Op, Operand, Prefix, Statement};

use super::lower::{FieldExt as _, LOOPBACK_IFINDEX, inverse, padded};
use super::{Data, Expr, Verdict, ip_nfproto, tproxy_family};
use crate::attr::Malformed;
use crate::uapi::*;

const FOREIGN: Malformed = Malformed("expressions that this release does not write");

/// The matches and statements that `exprs` are in a table of `family`.
pub(crate) fn raise(exprs: &[Expr], family: Family) -> Result<(Vec<Match>, Vec<Statement>), Malformed> {
    let mut matches = Vec::new();
    let mut statements = Vec::new();
    let mut implied = None;
    let mut rest = exprs;
    while !rest.is_empty() {
        if let Some((statement, after)) = raise_statement(rest, family) {
            statements.push(statement);
            rest = after;
        } else if statements.is_empty() {
            if let Some((needed, after)) = dependency(rest, family, implied) {
                implied = Some(needed);
                rest = after;
            }
            let (found, after) = raise_match(rest).ok_or(FOREIGN)?;
            let missing = found.field.address_family().is_some_and(|needed| Some(needed) != implied);
            if missing && family == Family::Inet {
                return Err(FOREIGN);
            }
            matches.push(found);
            rest = after;
        } else {
            return Err(FOREIGN);
        }
    }
    Ok((matches, statements))
}

/// A check of the packet's family that `lower` put before an address: it comes right before the header is loaded and
/// only when the rule has not checked for that family before. A match on the family that the rule itself has is
/// followed by something else, at least by this check.
fn dependency(exprs: &[Expr], family: Family, implied: Option<IpFamily>) -> Option<(IpFamily, &[Expr])> {
    let [Expr::MetaLoad(NFT_META_NFPROTO), Expr::Cmp(Op::Eq, data), rest @ ..] = exprs else { return None };
    let [Expr::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, .. }, ..] = rest else { return None };
    let needed = network_field(*offset)?.address_family()?;
    let is_check =
        family == Family::Inet && implied != Some(needed) && data.as_slice() == [ip_nfproto(needed)];
    is_check.then_some((needed, rest))
}

fn raise_statement(exprs: &[Expr], family: Family) -> Option<(Statement, &[Expr])> {
    let (statement, used) = match exprs {
        [Expr::Verdict(verdict), ..] => {
            let statement = match verdict {
                Verdict::Accept => Statement::Accept,
                Verdict::Drop => Statement::Drop,
                Verdict::Jump(chain) => Statement::Jump(chain.clone()),
                Verdict::Goto(chain) => Statement::Goto(chain.clone()),
            };
            (statement, 1)
        }
        [Expr::Immediate(port), Expr::Redir, ..] => {
            (Statement::Redirect(u16::from_be_bytes(port.array()?)), 2)
        }
        [Expr::Immediate(port), Expr::Tproxy(f), ..] if *f == tproxy_family(family) => {
            (Statement::Tproxy(u16::from_be_bytes(port.array()?)), 2)
        }
        [Expr::Immediate(mark), Expr::MetaSet(NFT_META_MARK), ..] => {
            (Statement::SetMark(u32::from_ne_bytes(mark.array()?)), 2)
        }
        [Expr::Immediate(zone), Expr::CtSet(NFT_CT_ZONE), ..] => {
            (Statement::SetZone(u16::from_ne_bytes(zone.array()?)), 2)
        }
        [Expr::MetaLoad(NFT_META_MARK), Expr::CtSet(NFT_CT_MARK), ..] => (Statement::SaveMark, 2),
        [Expr::CtLoad(NFT_CT_MARK), Expr::MetaSet(NFT_META_MARK), ..] => (Statement::RestoreMark, 2),
        _ => return None,
    };
    Some((statement, &exprs[used..]))
}

fn raise_match(exprs: &[Expr]) -> Option<(Match, &[Expr])> {
    let (load, rest) = exprs.split_first()?;
    let field = field(load)?;
    let whole = *load == field.load();
    let (op, operand, used) = match rest {
        [Expr::Lookup(op, set), ..] if whole => (*op, Operand::Set(set.clone()), 1),
        [Expr::Bitwise(mask), Expr::Cmp(op, zero), ..] if field == Field::CtState => {
            (inverse(*op), Operand::CtStates(states(mask, zero)?), 2)
        }
        [Expr::Bitwise(mask), Expr::Cmp(op, network), ..] if whole => {
            let len = prefix_len(mask)?;
            // Lengths of whole bytes are written without a mask.
            (len == 0 || len % 8 != 0).then_some(())?;
            (*op, prefix(field, network, len)?, 2)
        }
        [Expr::Cmp(op, data), ..] => (*op, operand(field, data, load)?, 1),
        _ => return None,
    };
    Some((Match { field, op, operand }, &rest[used..]))
}

fn field(load: &Expr) -> Option<Field> {
    Some(match load {
        Expr::MetaLoad(NFT_META_NFPROTO) => Field::NfProto,
        Expr::MetaLoad(NFT_META_L4PROTO) => Field::L4Proto,
        Expr::MetaLoad(NFT_META_IIF) => Field::Iif,
        Expr::MetaLoad(NFT_META_OIF) => Field::Oif,
        Expr::MetaLoad(NFT_META_IIFNAME) => Field::IifName,
        Expr::MetaLoad(NFT_META_OIFNAME) => Field::OifName,
        Expr::MetaLoad(NFT_META_SKUID) => Field::SkUid,
        Expr::MetaLoad(NFT_META_SKGID) => Field::SkGid,
        Expr::MetaLoad(NFT_META_MARK) => Field::Mark,
        Expr::CtLoad(NFT_CT_MARK) => Field::CtMark,
        Expr::CtLoad(NFT_CT_STATE) => Field::CtState,
        Expr::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 0, len: 2 } => Field::SrcPort,
        Expr::Payload { base: NFT_PAYLOAD_TRANSPORT_HEADER, offset: 2, len: 2 } => Field::DstPort,
        Expr::Payload { base: NFT_PAYLOAD_NETWORK_HEADER, offset, .. } => network_field(*offset)?,
        _ => return None,
    })
}

/// Which address starts at `offset`: the two headers have theirs at four different places.
fn network_field(offset: u32) -> Option<Field> {
    let fields = [Field::Ip4Src, Field::Ip4Dst, Field::Ip6Src, Field::Ip6Dst];
    fields.into_iter().find(|f| matches!(f.load(), Expr::Payload { offset: o, .. } if o == offset))
}

fn operand(field: Field, data: &Data, load: &Expr) -> Option<Operand> {
    let number = || data.array().map(u32::from_ne_bytes);
    Some(match field {
        Field::NfProto => match data.array()? {
            [NFPROTO_IPV4] => Operand::Family(IpFamily::V4),
            [NFPROTO_IPV6] => Operand::Family(IpFamily::V6),
            _ => return None,
        },
        Field::L4Proto => Operand::Protocol(protocol(data.as_slice())?),
        Field::Iif | Field::Oif => (number()? == LOOPBACK_IFINDEX).then_some(Operand::Loopback)?,
        Field::IifName | Field::OifName => Operand::IfName(ifname(data.as_slice())?),
        Field::SkUid | Field::SkGid | Field::Mark | Field::CtMark => Operand::Number(number()?),
        Field::CtState => return None,
        Field::SrcPort | Field::DstPort => Operand::Port(u16::from_be_bytes(data.array()?)),
        Field::Ip4Src | Field::Ip4Dst | Field::Ip6Src | Field::Ip6Dst => {
            let Expr::Payload { len, .. } = load else { return None };
            let bytes = data.as_slice();
            (usize::try_from(*len) == Ok(bytes.len())).then_some(())?;
            let mut address = [0; 16];
            address[..bytes.len()].copy_from_slice(bytes);
            let Expr::Payload { len: full, .. } = field.load() else { return None };
            let address = Data::new(address.get(..usize::try_from(full).ok()?)?)?;
            prefix(field, &address, u8::try_from(8 * bytes.len()).ok()?)?
        }
    })
}

fn states(mask: &Data, zero: &Data) -> Option<CtStates> {
    (zero.as_slice() == [0; 4]).then_some(())?;
    match u32::from_ne_bytes(mask.array()?) {
        CT_STATE_INVALID => Some(CtStates::Invalid),
        CT_STATE_ESTABLISHED_RELATED => Some(CtStates::EstablishedOrRelated),
        _ => None,
    }
}

fn prefix_len(mask: &Data) -> Option<u8> {
    let bytes = mask.as_slice();
    let ones: u32 = bytes.iter().map(|b| b.leading_ones()).sum();
    let contiguous = bytes.iter().enumerate().all(|(i, b)| {
        let want = ones.saturating_sub(8 * u32::try_from(i).unwrap_or(u32::MAX)).min(8);
        b.count_ones() == want && b.leading_ones() == want
    });
    contiguous.then(|| u8::try_from(ones).ok())?
}

fn prefix(field: Field, network: &Data, len: u8) -> Option<Operand> {
    match field {
        Field::Ip4Src | Field::Ip4Dst => {
            let network = u32::from_be_bytes(network.array()?);
            Prefix::new(network, len).ok().filter(|p| p.network() == network).map(Operand::Ipv4)
        }
        Field::Ip6Src | Field::Ip6Dst => {
            let network = u128::from_be_bytes(network.array()?);
            Prefix::new(network, len).ok().filter(|p| p.network() == network).map(Operand::Ipv6)
        }
        _ => None,
    }
}

/// A layer 4 protocol that rules of ours ask for.
pub(crate) fn protocol(data: &[u8]) -> Option<L4> {
    [L4::Tcp, L4::Udp].into_iter().find(|l4| data == [l4.number()])
}

/// A name of 16 bytes with NUL to its end.
pub(crate) fn ifname(data: &[u8]) -> Option<IfName> {
    let end = data.iter().position(|b| *b == 0)?;
    let name = IfName::parse(std::str::from_utf8(&data[..end]).ok()?).ok()?;
    (padded(&name) == data).then_some(name)
}
