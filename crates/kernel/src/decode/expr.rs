// SPDX-License-Identifier: Apache-2.0
//! Expressions.

use ruleset::Op;

use crate::attr::{Attrs, Malformed, read_str, read_u32};
use crate::expr::{Data, Expr, Verdict};
use crate::uapi::*;

const MISSING: Malformed = Malformed("expression without an attribute that it needs");
const OTHER: Malformed = Malformed("expression with a value that this release does not write");

/// One element of a rule's list of expressions.
pub(super) fn expr(element: &[u8]) -> Result<Expr, Malformed> {
    let (mut name, mut data) = ("", &[][..]);
    for attribute in Attrs(element) {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_EXPR_NAME => name = read_str(payload)?,
            NFTA_EXPR_DATA => data = payload,
            _ => return Err(OTHER),
        }
    }
    let mut fields = Fields::read(data)?;
    let expr = match name {
        "meta" => match fields.register(NFTA_META_DREG)? {
            true => Expr::MetaLoad(fields.number(NFTA_META_KEY)?),
            false => {
                fields.need_register(NFTA_META_SREG).and(fields.number(NFTA_META_KEY).map(Expr::MetaSet))?
            }
        },
        "ct" => match fields.register(NFTA_CT_DREG)? {
            true => Expr::CtLoad(fields.number(NFTA_CT_KEY)?),
            false => fields.need_register(NFTA_CT_SREG).and(fields.number(NFTA_CT_KEY).map(Expr::CtSet))?,
        },
        "payload" => {
            fields.need_register(NFTA_PAYLOAD_DREG)?;
            let base = fields.number(NFTA_PAYLOAD_BASE)?;
            let offset = fields.number(NFTA_PAYLOAD_OFFSET)?;
            Expr::Payload { base, offset, len: fields.number(NFTA_PAYLOAD_LEN)? }
        }
        "bitwise" => bitwise(&mut fields)?,
        "cmp" => cmp(&mut fields)?,
        "lookup" => lookup(&mut fields)?,
        "immediate" => immediate(&mut fields)?,
        "redir" => redir(&mut fields)?,
        "tproxy" => {
            fields.need_register(NFTA_TPROXY_REG_PORT)?;
            let family = fields.number(NFTA_TPROXY_FAMILY)?;
            Expr::Tproxy(u8::try_from(family).map_err(|_| OTHER)?)
        }
        _ => return Err(Malformed("expression that this release does not write")),
    };
    if fields.is_empty() { Ok(expr) } else { Err(OTHER) }
}

/// The attributes of one expression by type; each is taken out when it is read, so that what is left is unknown.
struct Fields<'a>([Option<&'a [u8]>; 8]);

impl<'a> Fields<'a> {
    fn read(nested: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Self([None; 8]);
        for attribute in Attrs(nested) {
            let (kind, payload) = attribute?;
            *fields.0.get_mut(usize::from(kind)).ok_or(OTHER)? = Some(payload);
        }
        Ok(fields)
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    fn take(&mut self, kind: u16) -> Option<&'a [u8]> {
        self.0.get_mut(usize::from(kind)).and_then(Option::take)
    }

    fn need(&mut self, kind: u16) -> Result<&'a [u8], Malformed> {
        self.take(kind).ok_or(MISSING)
    }

    fn number(&mut self, kind: u16) -> Result<u32, Malformed> {
        read_u32(self.need(kind)?)
    }

    /// Whether there is a register, which is then the one that we use.
    fn register(&mut self, kind: u16) -> Result<bool, Malformed> {
        match self.take(kind).map(read_u32).transpose()? {
            None => Ok(false),
            Some(NFT_REG_1) => Ok(true),
            Some(_) => Err(OTHER),
        }
    }

    fn need_register(&mut self, kind: u16) -> Result<(), Malformed> {
        if self.register(kind)? { Ok(()) } else { Err(MISSING) }
    }

    /// The value in a nested data attribute.
    fn data(&mut self, kind: u16) -> Result<Data, Malformed> {
        data_value(self.need(kind)?)
    }
}

fn data_value(nested: &[u8]) -> Result<Data, Malformed> {
    let (kind, value) = Attrs(nested).next().ok_or(MISSING)??;
    Data::new(value).filter(|_| kind == NFTA_DATA_VALUE).ok_or(OTHER)
}

fn bitwise(fields: &mut Fields<'_>) -> Result<Expr, Malformed> {
    fields.need_register(NFTA_BITWISE_SREG)?;
    fields.need_register(NFTA_BITWISE_DREG)?;
    let len = usize::try_from(fields.number(NFTA_BITWISE_LEN)?).map_err(|_| OTHER)?;
    let (mask, xor) = (fields.data(NFTA_BITWISE_MASK)?, fields.data(NFTA_BITWISE_XOR)?);
    let operation = fields.take(NFTA_BITWISE_OP).map_or(Ok(0), read_u32)?;
    let ours = operation == 0
        && mask.as_slice().len() == len
        && xor.as_slice().len() == len
        && xor.as_slice().iter().all(|b| *b == 0);
    if ours { Ok(Expr::Bitwise(mask)) } else { Err(OTHER) }
}

fn cmp(fields: &mut Fields<'_>) -> Result<Expr, Malformed> {
    fields.need_register(NFTA_CMP_SREG)?;
    let op = match fields.number(NFTA_CMP_OP)? {
        NFT_CMP_EQ => Op::Eq,
        NFT_CMP_NEQ => Op::Ne,
        _ => return Err(OTHER),
    };
    Ok(Expr::Cmp(op, fields.data(NFTA_CMP_DATA)?))
}

fn lookup(fields: &mut Fields<'_>) -> Result<Expr, Malformed> {
    fields.need_register(NFTA_LOOKUP_SREG)?;
    let op = match fields.take(NFTA_LOOKUP_FLAGS).map_or(Ok(0), read_u32)? {
        0 => Op::Eq,
        NFT_LOOKUP_F_INV => Op::Ne,
        _ => return Err(OTHER),
    };
    Ok(Expr::Lookup(op, read_str(fields.need(NFTA_LOOKUP_SET)?)?.to_owned()))
}

fn immediate(fields: &mut Fields<'_>) -> Result<Expr, Malformed> {
    let nested = fields.need(NFTA_IMMEDIATE_DATA)?;
    match fields.number(NFTA_IMMEDIATE_DREG)? {
        NFT_REG_1 => Ok(Expr::Immediate(data_value(nested)?)),
        NFT_REG_VERDICT => match Attrs(nested).next().ok_or(MISSING)?? {
            (NFTA_DATA_VERDICT, verdict_attributes) => Ok(Expr::Verdict(verdict(verdict_attributes)?)),
            _ => Err(OTHER),
        },
        _ => Err(OTHER),
    }
}

fn verdict(nested: &[u8]) -> Result<Verdict, Malformed> {
    let mut fields = Fields::read(nested)?;
    let code = fields.number(NFTA_VERDICT_CODE)?;
    let chain = fields.take(NFTA_VERDICT_CHAIN).map(read_str).transpose()?.map(str::to_owned);
    match (code, chain) {
        (NF_ACCEPT, None) => Ok(Verdict::Accept),
        (NF_DROP, None) => Ok(Verdict::Drop),
        (NFT_JUMP, Some(chain)) => Ok(Verdict::Jump(chain)),
        (NFT_GOTO, Some(chain)) => Ok(Verdict::Goto(chain)),
        _ => Err(OTHER),
    }
}

fn redir(fields: &mut Fields<'_>) -> Result<Expr, Malformed> {
    fields.need_register(NFTA_REDIR_REG_PROTO_MIN)?;
    // The kernel lists the highest port also when it is the lowest.
    fields.register(NFTA_REDIR_REG_PROTO_MAX)?;
    match fields.number(NFTA_REDIR_FLAGS)? {
        NF_NAT_RANGE_PROTO_SPECIFIED => Ok(Expr::Redir),
        _ => Err(OTHER),
    }
}
