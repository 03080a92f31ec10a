// SPDX-License-Identifier: Apache-2.0
//! Reading the tables of ours, as of one generation.
//!
//! Owns the questions and the check that all answers describe the same moment; must never write.

use nix::errno::Errno;
use ruleset::{Chain, Elements, Family, Rule, Set, Table};

use crate::attr::{Header, Malformed, Message, Writer};
use crate::backend::{LiveTable, Nftables};
use crate::decode::{self, RawElement, SetHead};
use crate::error::Error;
use crate::expr::{family, nfproto};
use crate::fault;
use crate::socket::{ATTEMPTS, Operation, Refusal};
use crate::uapi::*;

const READ: Operation = Operation { what: "read tables", points: &fault::NF_READ };

/// What is there, and when.
pub(crate) struct Live {
    pub(crate) generation: u32,
    pub(crate) tables: Vec<LiveTable>,
}

/// One kind of listing.
#[derive(Clone, Copy)]
struct Listing<'a> {
    kind: u16,
    nfproto: u8,
    /// The table, where the kernel can restrict the listing to one, and the set.
    table: Option<&'a str>,
    set: Option<&'a str>,
    generation: u32,
}

/// A listing's answers, or nothing when they are of another generation.
type Answers<T> = Option<Vec<T>>;

/// A table of ours in the list of tables.
struct Head {
    family: Family,
    flags: u32,
    uses: u32,
}

impl Nftables {
    /// All tables of ours with all that is in them.
    pub(crate) fn read(&mut self) -> Result<Live, Error> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            if let Some(tables) = self.read_tables(generation)? {
                return Ok(Live { generation, tables });
            }
        }
        Err(Error::Interrupted { what: READ.what })
    }

    /// The generation and the families that have a table of ours.
    pub(crate) fn read_families(&mut self) -> Result<(u32, Vec<Family>), Error> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            if let Some(heads) = self.heads(generation)? {
                return Ok((generation, heads.into_iter().map(|head| head.family).collect()));
            }
        }
        Err(Error::Interrupted { what: READ.what })
    }

    /// [`Nftables::has_istio_rules`].
    pub(crate) fn read_istio_rules(&mut self) -> Result<bool, Error> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            let (kind, nfproto) = (NFT_MSG_GETCHAIN, NFPROTO_UNSPEC);
            let listing = Listing { kind, nfproto, table: None, set: None, generation };
            let theirs = |m: Message<'_>| {
                let (table, chain) = (decode::table_of(m)?, decode::chain_name(m)?);
                Ok(table.starts_with("istio-proxy") || chain.starts_with("ISTIO_"))
            };
            if let Some(chains) = self.list(listing, theirs)? {
                return Ok(chains.into_iter().any(|theirs| theirs.unwrap_or(false)));
            }
        }
        Err(Error::Interrupted { what: READ.what })
    }

    /// [`Nftables::outlines`].
    pub(crate) fn read_outlines(&mut self) -> Result<Vec<Table>, Error> {
        'attempts: for _ in 0..ATTEMPTS {
            let (generation, families) = self.read_families()?;
            let mut tables = Vec::with_capacity(families.len());
            for family in families {
                let (nfproto, table) = (nfproto(family), Some(crate::TABLE));
                let listing = Listing { kind: NFT_MSG_GETSET, nfproto, table, set: None, generation };
                let Some(sets) = self.list(listing, decode::set_head)? else { continue 'attempts };
                let sets = sets.into_iter().flatten().filter_map(|set| {
                    let elements = decode::elements(&set, Vec::new()).ok()?;
                    Some(Set { name: set.name, elements, comment: set.comment })
                });
                let sets = sets.collect();
                tables.push(Table { family, name: crate::TABLE.to_owned(), sets, chains: Vec::new() });
            }
            return Ok(tables);
        }
        Err(Error::Interrupted { what: READ.what })
    }

    fn generation(&mut self) -> Result<u32, Error> {
        let request = |seq| request(NFT_MSG_GETGEN, NLM_F_ACK, seq, NFPROTO_UNSPEC, |_| {});
        let answers = self
            .socket
            .exchange(&READ, request, |m| (m.kind == NFT_MSG_NEWGEN).then(|| decode::generation(m)))?;
        let answers = answers.map_err(|refusal| refused("read the generation", refusal))?;
        let object = || String::from("the generation");
        let found = answers.into_iter().flatten().next().ok_or(Error::NoAck { what: READ.what })?;
        found.map_err(|malformed| decode_error(object(), malformed))
    }

    fn heads(&mut self, generation: u32) -> Result<Answers<Head>, Error> {
        let listing =
            Listing { kind: NFT_MSG_GETTABLE, nfproto: NFPROTO_UNSPEC, table: None, set: None, generation };
        let found = self.list(listing, |m| {
            let head = decode::table_head(m)?;
            // Other families cannot hold what we write, so that a table of this name there is not of our making.
            let ours = family(head.nfproto).filter(|_| head.name == crate::TABLE);
            Ok(ours.map(|family| Head { family, flags: head.flags, uses: head.uses }))
        })?;
        let Some(found) = found else { return Ok(None) };
        let object = || String::from("the list of tables");
        let heads: Result<Vec<_>, _> = found.into_iter().collect();
        heads.map(|h| Some(h.into_iter().flatten().collect())).map_err(|m| decode_error(object(), m))
    }

    fn read_tables(&mut self, generation: u32) -> Result<Answers<LiveTable>, Error> {
        let Some(heads) = self.heads(generation)? else { return Ok(None) };
        let mut tables = Vec::with_capacity(heads.len());
        for head in heads {
            let content = match self.read_table(&head, generation) {
                Ok(Some(table)) => Ok(table),
                Ok(None) => return Ok(None),
                Err(error @ Error::Decode { .. }) => Err(error),
                Err(error) => return Err(error),
            };
            tables.push(LiveTable { family: head.family, content });
        }
        Ok(Some(tables))
    }

    fn read_table(&mut self, head: &Head, generation: u32) -> Result<Option<Table>, Error> {
        let name = crate::TABLE;
        let of_table =
            |kind, table| Listing { kind, nfproto: nfproto(head.family), table, set: None, generation };
        let object = |what: &str| format!("{what} of table {} {name}", head.family);
        if head.flags != 0 {
            return Err(decode_error(object("flags"), Malformed("it is dormant or has an owner")));
        }
        // The kernel lists the chains of all tables of the family.
        let chains = self.list(of_table(NFT_MSG_GETCHAIN, None), |m| {
            (decode::table_of(m)? == name).then(|| decode::chain(m)).transpose()
        })?;
        let Some(chains) = chains else { return Ok(None) };
        let chains: Result<Vec<Option<Chain>>, _> = chains.into_iter().collect();
        let mut chains: Vec<Chain> =
            chains.map_err(|m| decode_error(object("a chain"), m))?.into_iter().flatten().collect();

        let Some(heads) = self.list(of_table(NFT_MSG_GETSET, Some(name)), decode::set_head)? else {
            return Ok(None);
        };
        let mut sets = Vec::with_capacity(heads.len());
        for set in heads {
            let set = set.map_err(|m| decode_error(object("a set"), m))?;
            let Some(elements) = self.read_elements(head.family, &set, generation)? else { return Ok(None) };
            sets.push(Set { name: set.name, elements, comment: set.comment });
        }
        if usize::try_from(head.uses) != Ok(chains.len() + sets.len()) {
            let reason = Malformed("there is more than chains and sets");
            return Err(decode_error(object("objects"), reason));
        }

        let rules = self.list(of_table(NFT_MSG_GETRULE, Some(name)), |m| {
            Ok((decode::rule_chain(m)?.to_owned(), decode::rule(m, head.family)))
        })?;
        let Some(rules) = rules else { return Ok(None) };
        for found in rules {
            let (chain, rule) = found.map_err(|m| decode_error(object("a rule"), m))?;
            place(&mut chains, &chain, rule)
                .map_err(|(index, m)| decode_error(object(&format!("rule {index} of chain {chain}")), m))?;
        }
        Ok(Some(Table { family: head.family, name: name.to_owned(), sets, chains }))
    }

    fn read_elements(
        &mut self,
        family: Family,
        set: &SetHead,
        generation: u32,
    ) -> Result<Option<Elements>, Error> {
        let listing = Listing {
            kind: NFT_MSG_GETSETELEM,
            nfproto: nfproto(family),
            table: Some(crate::TABLE),
            set: Some(&set.name),
            generation,
        };
        let Some(found) = self.list(listing, decode::raw_elements)? else { return Ok(None) };
        let raw: Result<Vec<Vec<RawElement>>, _> = found.into_iter().collect();
        let elements = raw.and_then(|raw| decode::elements(set, raw.into_iter().flatten().collect()));
        let object = || format!("set {family} {} {}", crate::TABLE, set.name);
        elements.map(Some).map_err(|m| decode_error(object(), m))
    }

    /// The answers to one listing, or nothing when the tables changed meanwhile.
    fn list<T>(
        &mut self,
        listing: Listing<'_>,
        mut each: impl FnMut(Message<'_>) -> Result<T, Malformed>,
    ) -> Result<Answers<Result<T, Malformed>>, Error> {
        let Listing { kind, nfproto, table, set, generation } = listing;
        let build = |seq| {
            request(kind, NLM_F_DUMP, seq, nfproto, |w| {
                // Attribute 1 names the table, 2 the set, in each of these requests.
                if let Some(table) = table {
                    w.put_str(NFTA_SET_TABLE, table);
                }
                if let Some(set) = set {
                    w.put_str(NFTA_SET_ELEM_LIST_SET, set);
                }
            })
        };
        // `res_id` has the low half of the generation, in answers of every kind.
        let expected = (generation & 0xffff) as u16;
        let mut changed = false;
        let answers = self.socket.exchange(&READ, build, |m| {
            changed |= decode::nfgenmsg(m).is_ok_and(|(id, _)| id != expected);
            each(m)
        })?;
        match answers {
            Ok(_) if changed => Ok(None),
            Ok(answers) => Ok(Some(answers)),
            // The table or set went away since it was listed.
            Err(Refusal { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(refusal) => Err(refused(READ.what, refusal)),
        }
    }
}

/// Append `rule` to its chain; the error has its index there.
fn place(chains: &mut [Chain], chain: &str, rule: Result<Rule, Malformed>) -> Result<(), (usize, Malformed)> {
    let chain =
        chains.iter_mut().find(|c| c.name == chain).ok_or((0, Malformed("rule of an unlisted chain")))?;
    let rule = rule.map_err(|malformed| (chain.rules.len(), malformed))?;
    chain.rules.push(rule);
    Ok(())
}

fn request(kind: u16, flags: u16, seq: u32, nfproto: u8, body: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::with_capacity(64);
    w.message(Header { kind, flags: NLM_F_REQUEST | flags, seq, family: nfproto, res_id: 0 }, body);
    w.into_bytes()
}

fn refused(what: &str, Refusal { errno, extack, .. }: Refusal) -> Error {
    Error::Refused { what: what.to_owned(), errno, extack }
}

fn decode_error(object: String, Malformed(reason): Malformed) -> Error {
    Error::Decode { object, reason }
}
