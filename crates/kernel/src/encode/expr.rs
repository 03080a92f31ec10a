// SPDX-License-Identifier: Apache-2.0
//! The attributes of an expression, in libnftnl's order, so that captures compare byte by byte.

use ruleset::Op;

use crate::attr::Writer;
use crate::expr::{Expr, Verdict};
use crate::uapi::*;

/// One expression of a rule; `sets` gives the number that each set has in this transaction.
pub(super) fn put_expr(w: &mut Writer, expr: &Expr, sets: &[(&str, u32)]) {
    w.nest(NFTA_LIST_ELEM, |w| {
        w.put_str(NFTA_EXPR_NAME, expr_name(expr));
        w.nest(NFTA_EXPR_DATA, |w| put_expr_data(w, expr, sets));
    });
}

fn expr_name(expr: &Expr) -> &'static str {
    match expr {
        Expr::MetaLoad(_) | Expr::MetaSet(_) => "meta",
        Expr::CtLoad(_) | Expr::CtSet(_) => "ct",
        Expr::Payload { .. } => "payload",
        Expr::Bitwise(_) => "bitwise",
        Expr::Cmp(..) => "cmp",
        Expr::Lookup(..) => "lookup",
        Expr::Immediate(_) | Expr::Verdict(_) => "immediate",
        Expr::Redir => "redir",
        Expr::Tproxy(_) => "tproxy",
    }
}

fn put_expr_data(w: &mut Writer, expr: &Expr, sets: &[(&str, u32)]) {
    let value = |w: &mut Writer, kind, data: &[u8]| w.nest(kind, |w| w.put(NFTA_DATA_VALUE, data));
    match expr {
        Expr::MetaLoad(key) => put_numbers(w, [(NFTA_META_KEY, *key), (NFTA_META_DREG, NFT_REG_1)]),
        Expr::MetaSet(key) => put_numbers(w, [(NFTA_META_KEY, *key), (NFTA_META_SREG, NFT_REG_1)]),
        Expr::CtLoad(key) => put_numbers(w, [(NFTA_CT_KEY, *key), (NFTA_CT_DREG, NFT_REG_1)]),
        Expr::CtSet(key) => put_numbers(w, [(NFTA_CT_KEY, *key), (NFTA_CT_SREG, NFT_REG_1)]),
        Expr::Payload { base, offset, len } => put_numbers(
            w,
            [
                (NFTA_PAYLOAD_DREG, NFT_REG_1),
                (NFTA_PAYLOAD_BASE, *base),
                (NFTA_PAYLOAD_OFFSET, *offset),
                (NFTA_PAYLOAD_LEN, *len),
            ],
        ),
        Expr::Bitwise(mask) => {
            let len = u32::try_from(mask.as_slice().len()).unwrap_or_default();
            put_numbers(
                w,
                [(NFTA_BITWISE_SREG, NFT_REG_1), (NFTA_BITWISE_DREG, NFT_REG_1), (NFTA_BITWISE_LEN, len)],
            );
            value(w, NFTA_BITWISE_MASK, mask.as_slice());
            value(w, NFTA_BITWISE_XOR, &[0; 16][..mask.as_slice().len()]);
        }
        Expr::Cmp(op, data) => {
            let op = if *op == Op::Eq { NFT_CMP_EQ } else { NFT_CMP_NEQ };
            put_numbers(w, [(NFTA_CMP_SREG, NFT_REG_1), (NFTA_CMP_OP, op)]);
            value(w, NFTA_CMP_DATA, data.as_slice());
        }
        Expr::Lookup(op, set) => {
            w.put_u32(NFTA_LOOKUP_SREG, NFT_REG_1);
            w.put_str(NFTA_LOOKUP_SET, set);
            if let Some((_, id)) = sets.iter().find(|(name, _)| name == set) {
                w.put_u32(NFTA_LOOKUP_SET_ID, *id);
            }
            if *op == Op::Ne {
                w.put_u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
            }
        }
        Expr::Immediate(data) => {
            w.put_u32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
            value(w, NFTA_IMMEDIATE_DATA, data.as_slice());
        }
        Expr::Verdict(verdict) => {
            w.put_u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nest(NFTA_IMMEDIATE_DATA, |w| w.nest(NFTA_DATA_VERDICT, |w| put_verdict(w, verdict)));
        }
        Expr::Redir => put_numbers(
            w,
            [(NFTA_REDIR_REG_PROTO_MIN, NFT_REG_1), (NFTA_REDIR_FLAGS, NF_NAT_RANGE_PROTO_SPECIFIED)],
        ),
        Expr::Tproxy(family) => {
            put_numbers(w, [(NFTA_TPROXY_FAMILY, u32::from(*family)), (NFTA_TPROXY_REG_PORT, NFT_REG_1)])
        }
    }
}

fn put_numbers<const N: usize>(w: &mut Writer, attributes: [(u16, u32); N]) {
    for (kind, value) in attributes {
        w.put_u32(kind, value);
    }
}

fn put_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    };
    w.put_u32(NFTA_VERDICT_CODE, code);
    if let Some(chain) = chain {
        w.put_str(NFTA_VERDICT_CHAIN, chain);
    }
}
