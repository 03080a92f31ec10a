// SPDX-License-Identifier: Apache-2.0
//! Tables as the messages of one nf_tables transaction.
//!
//! Owns the order of messages, their attributes and the userdata that makes `nft list` show them well. Pure: must
//! never touch a socket.

mod expr;
mod set;

use std::fmt;

use nix::errno::Errno;
use ruleset::{BaseChain, Chain, ChainType, Family, Hook, Rule, Set, Table};

use crate::attr::{Attrs, Header, Messages, Writer, read_str};
use crate::error::Error;
use crate::expr::{lower, nfproto};
use crate::socket::Refusal;
use crate::uapi::*;
use expr::put_expr;
pub(crate) use set::key_type;
use set::{Element, comment, put_set};

/// Elements of one message: their attribute's length field ends at 64 KiB, and no element is larger than 48 bytes.
const ELEMENT_BYTES: usize = 60_000;
/// Bytes to start with; the rule set of a pod with default settings has about 5,000.
const BATCH_BYTES: usize = 16 * 1024;

/// `struct nlmsghdr` and `struct nfgenmsg` of the message that ends a batch.
const END_BYTES: usize = 20;

/// A transaction, ready to send.
pub(crate) struct Batch<'a> {
    pub(crate) bytes: Vec<u8>,
    pub(crate) first: u32,
    /// Sequence number of the last operation: the one that asks for an acknowledgement.
    pub(crate) last: u32,
    objects: Vec<Object<'a>>,
}

/// What one message of a batch is about; it prints as the attempt and the object.
#[derive(Clone, Copy)]
pub(crate) enum Object<'a> {
    /// The batch itself: its begin, its end, and its commit, which the kernel blames on the begin.
    Batch,
    Delete(Family),
    Table(&'a Table),
    Chain(&'a Table, &'a Chain),
    Set(&'a Table, &'a Set),
    Elements(&'a Table, &'a Set),
    Rule(&'a Table, &'a Chain, usize, &'a Rule),
}

impl fmt::Display for Object<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Batch => write!(f, "run the transaction"),
            Self::Delete(family) => write!(f, "delete table {family} {}", crate::TABLE),
            Self::Table(t) => write!(f, "add table {} {}", t.family, t.name),
            Self::Chain(t, c) => write!(f, "add chain {} {} {}", t.family, t.name, c.name),
            Self::Set(t, s) => write!(f, "add set {} {} {}", t.family, t.name, s.name),
            Self::Elements(t, s) => write!(f, "add elements to set {} {} {}", t.family, t.name, s.name),
            Self::Rule(t, c, index, rule) => {
                write!(f, "add rule {index} of chain {} {} {}: {rule}", t.family, t.name, c.name)
            }
        }
    }
}

impl<'a> Batch<'a> {
    /// The object that the message with sequence number `seq` is about.
    pub(crate) fn object(&self, seq: u32) -> Object<'a> {
        let position = usize::try_from(seq.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        self.objects.get(position).copied().unwrap_or(Object::Batch)
    }

    /// The kernel's refusal as an error that names the object, and what of it this kernel lacks.
    pub(crate) fn refused(&self, Refusal { seq, errno, extack, offset }: Refusal) -> Error {
        let missing = || {
            let name = self.expression(seq, offset?)?;
            Some(format!(
                "this kernel has no expression \"{name}\": see that module nft_{name} can be loaded"
            ))
        };
        let missing = if errno == Errno::ENOENT { missing() } else { None };
        Error::Refused { what: self.object(seq).to_string(), errno, extack: extack.or(missing) }
    }

    /// The name of the expression that begins at `offset` in message `seq`.
    fn expression(&self, seq: u32, offset: u32) -> Option<&str> {
        let message = Messages(&self.bytes).filter_map(Result::ok).find(|message| message.seq == seq)?;
        let at = usize::try_from(offset).ok()?.checked_sub(NLMSG_HDRLEN)?;
        let (kind, inner) = Attrs(message.payload.get(at..)?).next()?.ok()?;
        let (name, text) = Attrs(inner).next()?.ok()?;
        (kind == NFTA_LIST_ELEM && name == NFTA_EXPR_NAME).then(|| read_str(text).ok())?
    }

    /// Without its last message: the kernel then takes nothing of it over.
    pub(crate) fn without_end(&self) -> &[u8] {
        &self.bytes[..self.bytes.len() - END_BYTES]
    }

    /// How many sequence numbers it uses.
    pub(crate) fn messages(&self) -> u32 {
        u32::try_from(self.objects.len()).unwrap_or(u32::MAX)
    }
}

/// The transaction that deletes our table of each family in `delete` and then creates `tables`.
///
/// The kernel refuses it with ERESTART unless its rule sets are still at `generation`.
///
/// # Errors
/// [`Error::TooLarge`] when a rule has more expressions than a message can hold.
pub(crate) fn batch<'a>(
    first: u32,
    generation: u32,
    delete: &[Family],
    tables: &'a [Table],
) -> Result<Batch<'a>, Error> {
    let mut e = Encoder {
        w: Writer::with_capacity(BATCH_BYTES),
        first,
        objects: Vec::new(),
        last_operation: 0,
        set_id: 0,
    };
    e.message(Object::Batch, NFNL_MSG_BATCH_BEGIN, 0, NFPROTO_UNSPEC, |w| {
        w.put_u32(NFNL_BATCH_GENID, generation);
    })?;
    for family in delete {
        e.message(Object::Delete(*family), NFT_MSG_DELTABLE, 0, nfproto(*family), |w| {
            w.put_str(NFTA_TABLE_NAME, crate::TABLE);
        })?;
    }
    for table in tables {
        e.table(table)?;
    }
    e.w.add_flags(e.last_operation, NLM_F_ACK);
    let last = e.next_seq().wrapping_sub(1);
    e.message(Object::Batch, NFNL_MSG_BATCH_END, 0, NFPROTO_UNSPEC, |_| {})?;
    Ok(Batch { bytes: e.w.into_bytes(), first, last, objects: e.objects })
}

struct Encoder<'a> {
    w: Writer,
    first: u32,
    objects: Vec<Object<'a>>,
    last_operation: usize,
    /// Sets of a transaction are referred to by a number of its own.
    set_id: u32,
}

impl<'a> Encoder<'a> {
    fn next_seq(&self) -> u32 {
        self.first.wrapping_add(u32::try_from(self.objects.len()).unwrap_or(u32::MAX))
    }

    fn message(
        &mut self,
        object: Object<'a>,
        kind: u16,
        flags: u16,
        family: u8,
        body: impl FnOnce(&mut Writer),
    ) -> Result<(), Error> {
        let of_batch = matches!(kind, NFNL_MSG_BATCH_BEGIN | NFNL_MSG_BATCH_END);
        let header = Header {
            kind,
            flags: NLM_F_REQUEST | flags,
            seq: self.next_seq(),
            family,
            res_id: if of_batch { NFNL_SUBSYS_NFTABLES } else { 0 },
        };
        if !of_batch {
            self.last_operation = self.w.len();
        }
        self.w.message(header, body);
        self.objects.push(object);
        if self.w.overflow() { Err(Error::TooLarge { what: object.to_string() }) } else { Ok(()) }
    }

    /// In nft's order: a chain must exist before a rule jumps to it, a set before a rule looks into it.
    fn table(&mut self, table: &'a Table) -> Result<(), Error> {
        let family = nfproto(table.family);
        let create = NLM_F_CREATE | NLM_F_EXCL;
        self.message(Object::Table(table), NFT_MSG_NEWTABLE, create, family, |w| {
            w.put_str(NFTA_TABLE_NAME, &table.name);
            w.put_u32(NFTA_TABLE_FLAGS, 0);
        })?;
        for chain in &table.chains {
            self.message(Object::Chain(table, chain), NFT_MSG_NEWCHAIN, NLM_F_CREATE, family, |w| {
                put_chain(w, table, chain);
            })?;
        }
        let mut ids = Vec::with_capacity(table.sets.len());
        for set in &table.sets {
            self.set_id += 1;
            ids.push((set.name.as_str(), self.set_id));
            self.set(table, set)?;
        }
        for chain in &table.chains {
            for (index, rule) in chain.rules.iter().enumerate() {
                let object = Object::Rule(table, chain, index, rule);
                self.message(object, NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, family, |w| {
                    w.put_str(NFTA_RULE_TABLE, &table.name);
                    w.put_str(NFTA_RULE_CHAIN, &chain.name);
                    w.nest(NFTA_RULE_EXPRESSIONS, |w| {
                        for expr in lower(rule, table.family) {
                            put_expr(w, &expr, &ids);
                        }
                    });
                    w.put(NFTA_RULE_USERDATA, &comment(NFTNL_UDATA_RULE_COMMENT, &rule.reason));
                })?;
            }
        }
        Ok(())
    }

    fn set(&mut self, table: &'a Table, set: &'a Set) -> Result<(), Error> {
        let (family, id) = (nfproto(table.family), self.set_id);
        self.message(Object::Set(table, set), NFT_MSG_NEWSET, NLM_F_CREATE, family, |w| {
            put_set(w, table, set, id);
        })?;
        let elements = Element::all(&set.elements);
        let mut rest = elements.as_slice();
        while !rest.is_empty() {
            let mut room = ELEMENT_BYTES;
            let fits = rest.iter().take_while(|element| {
                room = room.saturating_sub(element.size());
                room > 0
            });
            let (now, later) = rest.split_at(fits.count());
            rest = later;
            self.message(Object::Elements(table, set), NFT_MSG_NEWSETELEM, NLM_F_CREATE, family, |w| {
                w.put_str(NFTA_SET_ELEM_LIST_TABLE, &table.name);
                w.put_str(NFTA_SET_ELEM_LIST_SET, &set.name);
                w.put_u32(NFTA_SET_ELEM_LIST_SET_ID, id);
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                    for (number, element) in (1..).zip(now) {
                        element.put(w, number);
                    }
                });
            })?;
        }
        Ok(())
    }
}

fn put_chain(w: &mut Writer, table: &Table, chain: &Chain) {
    w.put_str(NFTA_CHAIN_TABLE, &table.name);
    w.put_str(NFTA_CHAIN_NAME, &chain.name);
    if let Some(BaseChain { kind, hook, priority }) = chain.base {
        w.put_str(NFTA_CHAIN_TYPE, chain_type(kind));
        w.put_u32(NFTA_CHAIN_POLICY, NF_ACCEPT);
        w.nest(NFTA_CHAIN_HOOK, |w| {
            w.put_u32(NFTA_HOOK_HOOKNUM, hook_number(hook));
            w.put(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
        });
    }
}

/// The kernel's name of a chain type.
pub(crate) fn chain_type(kind: ChainType) -> &'static str {
    match kind {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
        ChainType::Route => "route",
    }
}

/// `enum nf_inet_hooks`.
pub(crate) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => NF_INET_PRE_ROUTING,
        Hook::Output => NF_INET_LOCAL_OUT,
    }
}

#[cfg(test)]
mod tests {
    use ruleset::{Elements, Statement};

    use super::*;

    #[test]
    fn a_missing_expression_is_named_with_its_module() {
        let rule = Rule {
            matches: vec![],
            statements: vec![Statement::SetMark(7), Statement::Tproxy(15006)],
            reason: String::new(),
        };
        let chain = Chain { name: String::from("c"), base: None, rules: vec![rule] };
        let set = Set { name: String::from("s"), elements: Elements::Mark(vec![1]), comment: None };
        let table =
            Table { family: Family::Inet, name: String::from("t"), sets: vec![set], chains: vec![chain] };
        let tables = [table];
        let batch = batch(u32::MAX, 1, &[], &tables).unwrap();
        let seq = batch.last;
        let rule = Messages(&batch.bytes).map(Result::unwrap).find(|message| message.seq == seq).unwrap();
        // Two attribute headers before the name: the expression's and the name's own.
        let name = rule.payload.windows(7).position(|bytes| bytes == b"tproxy\0").unwrap() - 8 + NLMSG_HDRLEN;
        let refused = |errno, offset: usize| {
            let offset = Some(u32::try_from(offset).unwrap());
            batch.refused(Refusal { seq, errno, extack: None, offset }).to_string()
        };
        let text = refused(Errno::ENOENT, name);
        let hint = "this kernel has no expression \"tproxy\": see that module nft_tproxy can be loaded";
        assert!(text.ends_with(&format!("ENOENT: No such file or directory ({hint})")), "{text}");
        assert!(!refused(Errno::EINVAL, name).contains("module"));
        for elsewhere in [0, NLMSG_HDRLEN + 4, 1 << 20] {
            assert!(!refused(Errno::ENOENT, elsewhere).contains("module"), "{elsewhere}");
        }
    }
}
