// SPDX-License-Identifier: Apache-2.0
//! The plan: all that one pod's netns is to hold, and the fingerprint that ties a live table to the plan behind it.

use std::fmt;
use std::hash::Hasher as _;

use crate::model::{Elements, Set, Table};
use crate::text::render;

/// Everything that is programmed into one network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The rules.
    pub tables: Vec<Table>,
    /// Whether `::6/128` is wanted on `lo`: a socket cannot bind an address that is not there. IPv4 needs nothing,
    /// because all of 127.0.0.0/8 is on `lo`.
    pub passthrough_ipv6: bool,
    /// Policy route for marked packets, wanted in TPROXY mode.
    pub policy_route: PolicyRoute,
}

/// `ip rule add fwmark MARK lookup TABLE` and `ip route add local default dev lo table TABLE`, wanted or not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyRoute {
    /// The fwmark, compared with the full mask.
    pub mark: u32,
    /// Routing table number.
    pub table: u32,
    /// Whether rule and route are wanted in IPv4.
    pub ipv4: bool,
    /// Whether they are in IPv6.
    pub ipv6: bool,
}

/// Identifies a table's content, so that a live table can be compared with what was once written.
///
/// It lives in the comment of an empty set of the table: kernels before 5.10 have no comment on tables. It guards
/// against accidents, not against a pod that may change its own rules: such a pod can change this, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

/// Why a live table has no valid fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FingerprintError {
    /// The table has no fingerprint, or one that cannot be read.
    #[error("the table has no fingerprint")]
    Missing,
    /// The fingerprint is of a form that another release wrote: nothing can be said.
    #[error("the fingerprint is of another release's form")]
    OtherForm,
    /// The table is not what was written.
    #[error("the table differs from what was written")]
    Differs,
}

impl Fingerprint {
    /// Version of the canonical text; raised with every change of what [`render`] prints.
    pub const FORM: u32 = 1;
    const SET: &'static str = "fingerprint";

    /// The fingerprint of `table`, which may carry one already.
    #[must_use]
    pub fn of(table: &Table) -> Self {
        let mut bare = table.clone();
        bare.sets.retain(|set| set.name != Self::SET);
        // FNV-1a: stable over releases and machines, unlike the standard library's hasher.
        let mut hasher = fnv::FnvHasher::default();
        hasher.write(render(&bare).as_bytes());
        Self(hasher.finish())
    }

    /// `table` with its fingerprint in it.
    #[must_use]
    pub fn seal(mut table: Table) -> Table {
        let comment = Self::of(&table).to_string();
        table.sets.retain(|set| set.name != Self::SET);
        table.sets.push(Set {
            name: Self::SET.to_owned(),
            elements: Elements::Mark(Vec::new()),
            comment: Some(comment),
        });
        table
    }

    /// The fingerprint that `table` carries, after comparing it with the table's content.
    ///
    /// # Errors
    /// [`FingerprintError`] when there is none or the content is another.
    pub fn verify(table: &Table) -> Result<Self, FingerprintError> {
        let set = table.set(Self::SET).ok_or(FingerprintError::Missing)?;
        let comment = set.comment.as_deref().ok_or(FingerprintError::Missing)?;
        let (form, hash) =
            comment.strip_prefix("form ").and_then(|c| c.split_once(' ')).ok_or(FingerprintError::Missing)?;
        let form: u32 = form.parse().map_err(|_| FingerprintError::Missing)?;
        if form != Self::FORM {
            return Err(FingerprintError::OtherForm);
        }
        let written = u64::from_str_radix(hash, 16).map_err(|_| FingerprintError::Missing)?;
        // The set itself is not covered by the hash; it never has elements.
        let same = Self::of(table) == Self(written) && set.elements == Elements::Mark(Vec::new());
        if same { Ok(Self(written)) } else { Err(FingerprintError::Differs) }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "form {} {:016x}", Self::FORM, self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Chain, Family, Rule, Statement};

    fn sealed() -> Table {
        let rule = Rule { matches: vec![], statements: vec![Statement::Accept], reason: "r".to_owned() };
        let chain = Chain { name: "c".to_owned(), base: None, rules: vec![rule] };
        Fingerprint::seal(Table {
            family: Family::Inet,
            name: "t".to_owned(),
            sets: vec![],
            chains: vec![chain],
        })
    }

    #[test]
    fn a_sealed_table_is_as_it_was_written() {
        let table = sealed();
        assert_eq!(Fingerprint::verify(&table), Ok(Fingerprint::of(&table)));
        assert_eq!(Fingerprint::seal(table.clone()), table, "sealing twice changes nothing");
    }

    #[test]
    fn any_change_shows() {
        let mut less = sealed();
        less.chains[0].rules.clear();
        let mut other = sealed();
        other.chains[0].rules[0].statements = vec![Statement::Drop];
        let mut more = sealed();
        more.sets[0].elements = Elements::Mark(vec![1]);
        for table in [less, other, more] {
            assert_eq!(Fingerprint::verify(&table), Err(FingerprintError::Differs), "{}", render(&table));
        }
    }

    #[test]
    fn a_missing_or_unreadable_fingerprint_is_told_from_that_of_another_release() {
        let with = |comment: Option<&str>| {
            let mut table = sealed();
            table.sets[0].comment = comment.map(ToOwned::to_owned);
            Fingerprint::verify(&table)
        };
        for comment in [None, Some(""), Some("form 1"), Some("form x 00"), Some("form 1 zz"), Some("hello")] {
            assert_eq!(with(comment), Err(FingerprintError::Missing), "{comment:?}");
        }
        assert_eq!(with(Some("form 2 whatever it says")), Err(FingerprintError::OtherForm));
    }
}
