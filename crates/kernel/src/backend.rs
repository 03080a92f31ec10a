// SPDX-License-Identifier: Apache-2.0
//! Apply, observe, remove: what the agent does with tables, and the netlink back end that does it.
//!
//! Owns the decision between create, keep and replace. It must never delete what it has not seen.

use std::borrow::Cow;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use ruleset::{Elements, Family, Table};

use crate::encode::{self, Object};
use crate::error::Error;
use crate::fault;
use crate::socket::{ATTEMPTS, Operation, Socket};

/// Brings the tables of one netns into a state, and says what they are.
pub trait Backend {
    /// Make the netns hold exactly `tables` of those named [`crate::TABLE`]; the tables of others stay as they are.
    ///
    /// Elements of plain sets count as equal in any order, and are given back in ascending order.
    ///
    /// # Errors
    /// [`Error`]; nothing is changed then, but see there.
    fn apply(&mut self, tables: &[Table]) -> Result<Applied, Error>;

    /// The tables named [`crate::TABLE`], in the order of their creation; none is no error.
    ///
    /// # Errors
    /// [`Error::Decode`] when one of them is not as this release writes tables; other [`Error`]s when they could not
    /// be read.
    fn observe(&mut self) -> Result<Vec<Table>, Error>;

    /// Remove the tables named [`crate::TABLE`]. Without any, nothing is sent but the question.
    ///
    /// # Errors
    /// [`Error`]; nothing is changed then, but see there.
    fn remove(&mut self) -> Result<(), Error>;
}

/// What [`Backend::apply`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Applied {
    /// There was no table of ours.
    Created,
    /// The tables were as wanted; nothing was written.
    Unchanged,
    /// The tables of ours were others and are replaced, in one transaction.
    Replaced,
}

/// The back end that talks to nf_tables directly.
pub struct Nftables {
    pub(crate) socket: Socket,
}

/// The generation of rule sets that nothing was ever written to (`nf_tables_init_net`). A kernel that counts from
/// elsewhere refuses the first transaction, which costs one look at what is there.
const UNTOUCHED: u32 = 1;

pub(crate) const WRITE: Operation = Operation { what: "write tables", points: &fault::NF_BATCH };

const PROBE: Operation = Operation { what: "probe the kernel", points: &fault::NF_BATCH };

/// Whether a transaction took effect.
enum Written {
    Yes,
    /// Somebody else wrote in the meantime, or has written already.
    Overtaken,
}

impl Nftables {
    /// A back end for the netns that `socket` was opened in: an `AF_NETLINK` socket of protocol `NETLINK_NETFILTER`,
    /// whose opener had CAP_NET_ADMIN there.
    ///
    /// # Errors
    /// [`Error::Setup`] when it is no netlink socket.
    pub fn new(socket: OwnedFd) -> Result<Self, Error> {
        Socket::new(socket).map(|socket| Self { socket })
    }

    /// The tables named [`crate::TABLE`] with those of their sets that can be read, without elements, and without
    /// chains: what is left to go by when [`Backend::observe`] says [`Error::Decode`].
    ///
    /// # Errors
    /// [`Error`] when they could not be read.
    pub fn outlines(&mut self) -> Result<Vec<Table>, Error> {
        self.read_outlines()
    }

    /// Whether there are redirection rules of Istio's own plugin or init container: tables `istio-proxy-*`, or chains
    /// `ISTIO_*` as iptables makes them on top of nf_tables. Those of the older iptables cannot be seen by this socket.
    ///
    /// # Errors
    /// [`Error`] when the chains could not be read.
    pub fn has_istio_rules(&mut self) -> Result<bool, Error> {
        self.read_istio_rules()
    }

    /// Whether this kernel knows all that `tables` are made of: it is given the messages of a transaction without its
    /// end, looks at each, and then drops them all. Changes nothing; the netns must hold no table of ours.
    ///
    /// What it checks only at the end of a transaction, as which statement is allowed in which hook, is not asked.
    ///
    /// # Errors
    /// [`Error::Refused`] with the first thing that it does not take.
    pub fn probe(&mut self, tables: &[Table]) -> Result<(), Error> {
        check(tables)?;
        let generation = self.read_families()?.0;
        let first = self.socket.reserve(0);
        let batch = encode::batch(first, generation, &[], tables)?;
        self.socket.reserve(batch.messages());
        let answer = self.socket.batch(&PROBE, batch.without_end(), batch.first, batch.last)?;
        answer.map_err(|refusal| batch.refused(refusal))
    }

    fn write(&mut self, generation: u32, delete: &[Family], tables: &[Table]) -> Result<Written, Error> {
        // The number of messages is known only afterwards; nobody else uses the socket in between.
        let first = self.socket.reserve(0);
        let batch = encode::batch(first, generation, delete, tables)?;
        self.socket.reserve(batch.messages());
        let Err(refusal) = self.socket.batch(&WRITE, &batch.bytes, batch.first, batch.last)? else {
            return Ok(Written::Yes);
        };
        match (batch.object(refusal.seq), refusal.errno) {
            (Object::Batch, Errno::ERESTART) => Ok(Written::Overtaken),
            // Kernels before 4.16 do not compare generations.
            (Object::Table(_), Errno::EEXIST) | (Object::Delete(_), Errno::ENOENT) => Ok(Written::Overtaken),
            _ => Err(batch.refused(refusal)),
        }
    }
}

impl Backend for Nftables {
    fn apply(&mut self, tables: &[Table]) -> Result<Applied, Error> {
        check(tables)?;
        // The common case by far is a netns that nobody has programmed yet: write without reading first.
        if !tables.is_empty()
            && let Written::Yes = self.write(UNTOUCHED, &[], tables)?
        {
            return Ok(Applied::Created);
        }
        for _ in 0..ATTEMPTS {
            let live = self.read()?;
            if same(&live.tables, tables) {
                return Ok(Applied::Unchanged);
            }
            let old: Vec<Family> = live.tables.iter().map(|t| t.family).collect();
            if let Written::Yes = self.write(live.generation, &old, tables)? {
                return Ok(if old.is_empty() { Applied::Created } else { Applied::Replaced });
            }
        }
        Err(Error::Interrupted { what: WRITE.what })
    }

    fn observe(&mut self) -> Result<Vec<Table>, Error> {
        self.read()?.tables.into_iter().map(|t| t.content).collect()
    }

    fn remove(&mut self) -> Result<(), Error> {
        for _ in 0..ATTEMPTS {
            let (generation, old) = self.read_families()?;
            if old.is_empty() {
                return Ok(());
            }
            if let Written::Yes = self.write(generation, &old, &[])? {
                return Ok(());
            }
        }
        Err(Error::Interrupted { what: WRITE.what })
    }
}

/// A table of ours as it was found.
pub(crate) struct LiveTable {
    pub(crate) family: Family,
    /// An error when it is not of this release's making.
    pub(crate) content: Result<Table, Error>,
}

fn same(live: &[LiveTable], wanted: &[Table]) -> bool {
    live.len() == wanted.len()
        && live.iter().zip(wanted).all(|(l, w)| l.content.as_ref().is_ok_and(|l| *l == *canonical(w)))
}

/// Refuse what must not be sent.
pub(crate) fn check(tables: &[Table]) -> Result<(), Error> {
    for table in tables {
        let (family, name) = (table.family, table.name.clone());
        if name != crate::TABLE {
            return Err(Error::NotOurs { name });
        }
        ruleset::validate(table).map_err(|source| Error::Invalid { family, name, source })?;
    }
    Ok(())
}

/// `table` as [`Backend::observe`] gives it back: elements of plain sets ascending, each once.
pub(crate) fn canonical(table: &Table) -> Cow<'_, Table> {
    fn tidy<T: Ord>(elements: &mut Vec<T>) {
        elements.sort_unstable();
        elements.dedup();
    }
    fn is_tidy<T: Ord>(elements: &[T]) -> bool {
        elements.windows(2).all(|pair| pair[0] < pair[1])
    }
    let tidied = table.sets.iter().all(|set| match &set.elements {
        Elements::Protocol(v) => is_tidy(v),
        Elements::Port(v) => is_tidy(v),
        Elements::Uid(v) | Elements::Gid(v) | Elements::Mark(v) => is_tidy(v),
        Elements::IfName(v) => is_tidy(v),
        Elements::Ipv4(_) | Elements::Ipv6(_) => true,
    });
    if tidied {
        return Cow::Borrowed(table);
    }
    let mut table = table.clone();
    for set in &mut table.sets {
        match &mut set.elements {
            Elements::Protocol(v) => tidy(v),
            Elements::Port(v) => tidy(v),
            Elements::Uid(v) | Elements::Gid(v) | Elements::Mark(v) => tidy(v),
            Elements::IfName(v) => tidy(v),
            Elements::Ipv4(_) | Elements::Ipv6(_) => {}
        }
    }
    Cow::Owned(table)
}
