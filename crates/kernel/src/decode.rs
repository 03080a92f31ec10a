// SPDX-License-Identifier: Apache-2.0
//! What the kernel lists, as tables.
//!
//! Owns the reading of nf_tables messages. Pure, and it never panics, whatever the bytes. It accepts exactly what
//! `encode` writes, in the form in which the kernel gives it back: any other flag, attribute or expression in a table
//! of ours means that somebody changed it.

mod expr;
mod set;

use ruleset::{BaseChain, Chain, ChainType, Family, Hook, Rule};
pub(crate) use set::{RawElement, SetHead, elements, raw_elements, set_head};

use crate::attr::{Attrs, Malformed, Message, Messages, read_str, read_u32};
use crate::encode::{chain_type, hook_number};
use crate::expr::raise;
use crate::uapi::*;

/// The low half of the generation that a listing was made in (`nft_base_seq`), and the family it is of.
pub(crate) fn nfgenmsg(message: Message<'_>) -> Result<(u16, u8), Malformed> {
    match message.payload {
        [family, _, high, low, ..] => Ok((u16::from_be_bytes([*high, *low]), *family)),
        _ => Err(Malformed("netfilter header")),
    }
}

/// The answer to `NFT_MSG_GETGEN`: the generation of the netns's rule sets.
pub(crate) fn generation(message: Message<'_>) -> Result<u32, Malformed> {
    let mut id = None;
    for attribute in Attrs::of_netfilter(message.payload)? {
        let (kind, payload) = attribute?;
        if kind == NFTA_GEN_ID {
            id = Some(read_u32(payload)?);
        }
    }
    id.ok_or(Malformed("generation without a number"))
}

/// A table as `NFT_MSG_GETTABLE` lists it.
pub(crate) struct TableHead<'a> {
    pub(crate) nfproto: u8,
    pub(crate) name: &'a str,
    /// `NFT_TABLE_F_*`; a dormant table (1) does nothing.
    pub(crate) flags: u32,
    /// How many chains, sets and other objects it holds.
    pub(crate) uses: u32,
}

/// Read a [`TableHead`].
pub(crate) fn table_head(message: Message<'_>) -> Result<TableHead<'_>, Malformed> {
    let (_, nfproto) = nfgenmsg(message)?;
    let mut head = TableHead { nfproto, name: "", flags: 0, uses: 0 };
    for attribute in Attrs::of_netfilter(message.payload)? {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_TABLE_NAME => head.name = read_str(payload)?,
            NFTA_TABLE_FLAGS => head.flags = read_u32(payload)?,
            NFTA_TABLE_USE => head.uses = read_u32(payload)?,
            _ => {}
        }
    }
    Ok(head)
}

/// The name of the table that a chain, set or rule is in: attribute 1 of all three.
pub(crate) fn table_of(message: Message<'_>) -> Result<&str, Malformed> {
    let (kind, payload) = Attrs::of_netfilter(message.payload)?.next().ok_or(Malformed("no table"))??;
    if kind == NFTA_CHAIN_TABLE { read_str(payload) } else { Err(Malformed("no table")) }
}

/// The name of a chain, whatever it is made of.
pub(crate) fn chain_name(message: Message<'_>) -> Result<&str, Malformed> {
    for attribute in Attrs::of_netfilter(message.payload)? {
        if let (NFTA_CHAIN_NAME, payload) = attribute? {
            return read_str(payload);
        }
    }
    Err(Malformed("chain without a name"))
}

/// A chain, without its rules.
pub(crate) fn chain(message: Message<'_>) -> Result<Chain, Malformed> {
    let mut chain = Chain { name: String::new(), base: None, rules: Vec::new() };
    let (mut hook, mut kind_name, mut policy) = (None, None, None);
    for attribute in Attrs::of_netfilter(message.payload)? {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_CHAIN_NAME => chain.name = read_str(payload)?.to_owned(),
            NFTA_CHAIN_HOOK => hook = Some(read_hook(payload)?),
            NFTA_CHAIN_TYPE => kind_name = Some(read_str(payload)?),
            NFTA_CHAIN_POLICY => policy = Some(read_u32(payload)?),
            _ => {}
        }
    }
    if let Some((hook, priority)) = hook {
        let kinds = [ChainType::Filter, ChainType::Nat, ChainType::Route];
        let kind = kinds.into_iter().find(|kind| kind_name == Some(chain_type(*kind)));
        let kind = kind.ok_or(Malformed("type of the chain"))?;
        if policy != Some(NF_ACCEPT) {
            return Err(Malformed("policy of the chain"));
        }
        chain.base = Some(BaseChain { kind, hook, priority });
    }
    if chain.name.is_empty() { Err(Malformed("chain without a name")) } else { Ok(chain) }
}

fn read_hook(nested: &[u8]) -> Result<(Hook, i32), Malformed> {
    let (mut number, mut priority) = (None, None);
    for attribute in Attrs(nested) {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_HOOK_HOOKNUM => number = Some(read_u32(payload)?),
            NFTA_HOOK_PRIORITY => priority = Some(read_u32(payload)?.cast_signed()),
            _ => return Err(Malformed("hook of the chain")),
        }
    }
    let hook = [Hook::Prerouting, Hook::Output].into_iter().find(|hook| number == Some(hook_number(*hook)));
    hook.zip(priority).ok_or(Malformed("hook of the chain"))
}

/// The name of a rule's chain.
pub(crate) fn rule_chain(message: Message<'_>) -> Result<&str, Malformed> {
    for attribute in Attrs::of_netfilter(message.payload)? {
        if let (NFTA_RULE_CHAIN, payload) = attribute? {
            return read_str(payload);
        }
    }
    Err(Malformed("rule without a chain"))
}

/// A rule of a table of `family`.
pub(crate) fn rule(message: Message<'_>, family: Family) -> Result<Rule, Malformed> {
    let mut exprs = Vec::new();
    let mut reason = None;
    for attribute in Attrs::of_netfilter(message.payload)? {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_RULE_EXPRESSIONS => {
                for element in Attrs(payload) {
                    exprs.push(expr::expr(element?.1)?);
                }
            }
            NFTA_RULE_USERDATA => reason = userdata(payload, NFTNL_UDATA_RULE_COMMENT)?,
            _ => {}
        }
    }
    let (matches, statements) = raise(&exprs, family)?;
    let reason = reason.ok_or(Malformed("rule without a reason"))?;
    Ok(Rule { matches, statements, reason })
}

/// The text of type `wanted` in a list that nft keeps as userdata.
fn userdata(mut bytes: &[u8], wanted: u8) -> Result<Option<String>, Malformed> {
    let mut found = None;
    while let [kind, len, rest @ ..] = bytes {
        let (value, after) = rest.split_at_checked(usize::from(*len)).ok_or(Malformed("userdata"))?;
        if *kind == wanted {
            found = Some(read_str(value)?.to_owned());
        }
        bytes = after;
    }
    Ok(found)
}

/// For the fuzzer: one datagram of answers, read in every way in which this crate reads one.
#[doc(hidden)]
pub fn decode_datagram(bytes: &[u8]) {
    let mut raw = Vec::new();
    for message in Messages(bytes) {
        let Ok(message) = message else { return };
        let _ = (generation(message), table_head(message).map(|head| head.uses), table_of(message));
        let _ = (chain(message), rule_chain(message));
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            let _ = rule(message, family);
        }
        if let Ok(more) = raw_elements(message) {
            raw.extend(more);
        }
        if let Ok(head) = set_head(message) {
            let _ = elements(&head, std::mem::take(&mut raw));
        }
    }
}
