// SPDX-License-Identifier: Apache-2.0
//! All that is ours in one pod's netns: the tables, and the address, policy rules and routes that go with them.

use std::os::fd::OwnedFd;

use ruleset::{Plan, Table};

use crate::backend::{Applied, Backend as _, Nftables};
use crate::error::Error;
use crate::route::{Address, Route};

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

    /// See [`Backend::observe`](crate::Backend::observe).
    ///
    /// # Errors
    /// [`Error`].
    pub fn observe(&mut self) -> Result<Vec<Table>, Error> {
        self.nftables.observe()
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
