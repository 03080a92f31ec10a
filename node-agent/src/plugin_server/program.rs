// SPDX-License-Identifier: Apache-2.0
//! What a job does in the pod's netns, over the sockets that the plugin opened there: write the plan, or compare.
//!
//! Blocks inside system calls: for the threads of the pool only. Every step is idempotent, so that a failure after a
//! part of them is mended by asking again.

use agent_api::netns::Netns;
use kernel::route::Route;
use kernel::{Applied, Backend, Error, Nftables};
use redirect::{Config, compile, wants_ipv6};
use ruleset::{Fingerprint, FingerprintError};

use super::descriptors::Descriptors;
use super::failure::Failure;
use super::self_test;

/// The pod's netns, open for work. Dropping it may block for 10 ms.
pub(crate) struct Sandboxed {
    nftables: Nftables,
    route: Route,
    _netns: Netns,
}

impl Sandboxed {
    /// Take over verified descriptors.
    ///
    /// # Errors
    /// [`Failure::Kernel`] when a socket cannot be set up.
    pub(crate) fn new(descriptors: Descriptors) -> Result<Self, Failure> {
        let Descriptors { netns, nfnetlink, rtnetlink, .. } = descriptors;
        Ok(Self {
            nftables: Nftables::new(nfnetlink).map_err(kernel("set up nf_tables"))?,
            route: Route::new(rtnetlink).map_err(kernel("set up routing"))?,
            _netns: netns,
        })
    }

    /// Decide about IPv6, compile, and write. Tells what was done, as a reason code.
    ///
    /// # Errors
    /// [`Failure`]; asking again is safe.
    pub(crate) fn add(&mut self, mut config: Config) -> Result<&'static str, Failure> {
        let addresses = self.route.addresses().map_err(kernel("read the addresses"))?;
        config.ipv6 = wants_ipv6(config.dual_stack, addresses.into_iter().map(|address| address.addr))?;
        let plan = compile(&config).in_form(self_test::form());
        // The rules first: they alone decide whether traffic passes the proxy, and they come all or not at all.
        let applied = self.nftables.apply(&plan.tables).map_err(kernel("write the rules"))?;
        if plan.passthrough_ipv6 {
            self.route.add_passthrough().map_err(kernel("add address ::6"))?;
        }
        if let Some(wanted) = &plan.policy_route {
            self.route.add_policy_route(wanted).map_err(kernel("add the policy route"))?;
        }
        Ok(match applied {
            Applied::Created => "programmed",
            Applied::Unchanged => "unchanged",
            Applied::Replaced => "replaced",
        })
    }

    /// Compare the live tables with the fingerprints in them; `redirected` says whether there must be any. Today's pod
    /// is not looked at: the rules are those of the pod as it was at ADD.
    ///
    /// # Errors
    /// [`Failure`] when they differ, are gone or cannot be read.
    pub(crate) fn check(&mut self, redirected: bool) -> Result<&'static str, Failure> {
        let tables = match self.nftables.observe() {
            Ok(tables) => tables,
            Err(source @ Error::Decode { .. }) => {
                // Another release may write what this one cannot read; its fingerprint can be read always.
                let outlines = self.nftables.outlines().map_err(kernel("read the fingerprints"))?;
                let other = |table| Fingerprint::verify(table) == Err(FingerprintError::OtherForm);
                return if outlines.iter().any(other) {
                    Ok("other_release")
                } else {
                    Err(Failure::Unreadable(source))
                };
            }
            Err(source) => return Err(kernel("read the rules")(source)),
        };
        if tables.is_empty() {
            return if redirected { Err(Failure::Gone) } else { Ok("not_redirected") };
        }
        for table in &tables {
            match Fingerprint::verify(table) {
                Ok(_) => {}
                // Written by another release, which alone could say.
                Err(FingerprintError::OtherForm) => return Ok("other_release"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok("rules_as_written")
    }
}

fn kernel(attempt: &'static str) -> impl FnOnce(Error) -> Failure {
    move |source| Failure::Kernel { attempt, source }
}
