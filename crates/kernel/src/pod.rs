// SPDX-License-Identifier: Apache-2.0
//! All that is ours in one pod's netns: the tables, and the address, policy rules and routes that go with them.

use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use ruleset::{Fingerprint, FingerprintError, Plan, Table};

use crate::backend::{Applied, Backend as _, Nftables};
use crate::error::Error;
use crate::route::{Address, Route};

/// Pauses before tables are read again that are not as they were written. A dump misses elements of a large set while
/// the kernel resizes the set's hash table, which it does after the transaction.
const RESIZING: [Duration; 5] = [
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
];

/// A pod's netns, by two sockets that were opened in it.
pub struct PodNetns {
    nftables: Nftables,
    route: Route,
}

impl PodNetns {
    /// Take over the sockets: `AF_NETLINK` of protocol `NETLINK_NETFILTER` and of `NETLINK_ROUTE`.
    ///
    /// # Errors
    /// [`Error::Setup`] when one of them is no netlink socket.
    pub fn new(nfnetlink: OwnedFd, rtnetlink: OwnedFd) -> Result<Self, Error> {
        Ok(Self { nftables: Nftables::new(nfnetlink)?, route: Route::new(rtnetlink)? })
    }

    /// Make the netns hold exactly `plan` of what is ours, whatever an earlier plan left. Tells about the tables.
    ///
    /// The tables come first, all at once, since they alone decide whether traffic passes the proxy. Every step may be
    /// repeated: after a failure between them, applying the same plan again completes it.
    ///
    /// # Errors
    /// [`Error`].
    pub fn apply(&mut self, plan: &Plan) -> Result<Applied, Error> {
        let applied = self.nftables.apply(&plan.tables)?;
        self.route.set_passthrough(plan.passthrough_ipv6)?;
        self.route.set_policy_route(&plan.policy_route)?;
        Ok(applied)
    }

    /// See [`Route::addresses`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        self.route.addresses()
    }

    /// See [`Backend::observe`](crate::Backend::observe). A table that differs from its fingerprint does so for good:
    /// it was read several times.
    ///
    /// # Errors
    /// [`Error`].
    pub fn observe(&mut self) -> Result<Vec<Table>, Error> {
        settled(|| self.nftables.observe())
    }

    /// See [`Nftables::has_istio_rules`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn has_istio_rules(&mut self) -> Result<bool, Error> {
        self.nftables.has_istio_rules()
    }

    /// See [`Nftables::outlines`].
    ///
    /// # Errors
    /// [`Error`].
    pub fn outlines(&mut self) -> Result<Vec<Table>, Error> {
        self.nftables.outlines()
    }
}

fn settled(mut read: impl FnMut() -> Result<Vec<Table>, Error>) -> Result<Vec<Table>, Error> {
    let mut tables = read()?;
    for pause in RESIZING {
        if !tables.iter().any(|table| Fingerprint::verify(table) == Err(FingerprintError::Differs)) {
            break;
        }
        sleep(pause);
        tables = read()?;
    }
    Ok(tables)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use ruleset::{Elements, Family, Set};

    use super::*;

    fn table(ports: u16) -> Table {
        let set = |name: &str, elements| Set {
            name: name.to_owned(),
            elements: Elements::Port(elements),
            comment: None,
        };
        let sets = vec![set("ports", (0..ports).collect())];
        Fingerprint::seal(Table { family: Family::Inet, name: crate::TABLE.to_owned(), sets, chains: vec![] })
    }

    /// The same, read without its last element.
    fn torn() -> Table {
        let mut table = table(100);
        for set in &mut table.sets {
            if let Elements::Port(ports) = &mut set.elements {
                ports.pop();
            }
        }
        table
    }

    /// What comes out of tables that are whole after some readings, and how often they were read.
    fn reading(torn_first: usize) -> (Table, usize) {
        let mut count = 0;
        let tables = settled(|| {
            count += 1;
            Ok(vec![if count > torn_first { table(100) } else { torn() }])
        });
        (tables.unwrap().remove(0), count)
    }

    #[test]
    fn tables_that_are_whole_are_read_once() {
        assert_eq!(reading(0), (table(100), 1));
    }

    #[test]
    fn tables_that_are_whole_at_last_are_whole() {
        assert_eq!(reading(1), (table(100), 2));
        assert_eq!(reading(RESIZING.len()), (table(100), RESIZING.len() + 1));
    }

    #[test]
    fn tables_that_stay_different_are_given_back_as_they_are() {
        assert_eq!(reading(usize::MAX), (torn(), RESIZING.len() + 1));
    }
}
