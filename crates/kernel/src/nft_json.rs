// SPDX-License-Identifier: Apache-2.0
//! The second back end: tables as JSON through the `nft` program (libnftables-json(5)).
//!
//! Owns the JSON form in both directions; for tests and diagnosis. It works in the netns of the calling thread and
//! needs the program `nft`. It must never be the back end of a running agent: it takes eight times as long.
//!
//! # What is lost on the way
//! - Comments of sets: nft 1.0.6 ignores them in JSON. Two tables that differ in those only count as equal.
//! - The place of a match on the transport protocol, which nft lists together with the first port of the rule.

mod read;
mod write;

use std::borrow::Cow;

use nftables::helper::{DEFAULT_ARGS, DEFAULT_NFT, apply_ruleset_raw, get_current_ruleset_raw};
use ruleset::Table;
use serde_json::{Value, json};

use crate::backend::{Applied, Backend, canonical, check};
use crate::error::Error;

/// The back end behind the `nft` program.
#[derive(Clone, Copy, Debug, Default)]
pub struct NftJson {}

impl NftJson {
    /// A back end for the netns of the calling thread.
    #[must_use]
    pub fn new() -> Self {
        Self {}
    }

    fn run(commands: &[Value]) -> Result<(), Error> {
        let document = json!({ "nftables": commands }).to_string();
        apply_ruleset_raw(&document, DEFAULT_NFT, DEFAULT_ARGS)
            .map(drop)
            .map_err(|source| Error::Nft { source })
    }

    fn listing() -> Result<Value, Error> {
        let text =
            get_current_ruleset_raw(DEFAULT_NFT, DEFAULT_ARGS).map_err(|source| Error::Nft { source })?;
        serde_json::from_str(&text)
            .map_err(|_| Error::Decode { object: String::from("the output of nft"), reason: "no JSON" })
    }
}

impl Backend for NftJson {
    fn apply(&mut self, tables: &[Table]) -> Result<Applied, Error> {
        check(tables)?;
        let listing = Self::listing()?;
        let old = read::families(&listing);
        let plain: Vec<Table> = tables.iter().map(|t| without_set_comments(canonical(t))).collect();
        let live =
            read::tables(&listing).map(|live| live.into_iter().map(Cow::Owned).map(without_set_comments));
        if live.is_ok_and(|live| live.eq(plain.iter().cloned())) {
            return Ok(Applied::Unchanged);
        }
        let mut commands: Vec<Value> = old.iter().map(|family| write::delete(family)).collect();
        commands.extend(tables.iter().flat_map(write::create));
        Self::run(&commands)?;
        Ok(if old.is_empty() { Applied::Created } else { Applied::Replaced })
    }

    fn observe(&mut self) -> Result<Vec<Table>, Error> {
        read::tables(&Self::listing()?)
    }

    fn remove(&mut self) -> Result<(), Error> {
        let old = read::families(&Self::listing()?);
        let commands: Vec<Value> = old.iter().map(|family| write::delete(family)).collect();
        if commands.is_empty() { Ok(()) } else { Self::run(&commands) }
    }
}

fn without_set_comments(table: Cow<'_, Table>) -> Table {
    let mut table = table.into_owned();
    for set in &mut table.sets {
        set.comment = None;
    }
    table
}
