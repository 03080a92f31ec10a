// SPDX-License-Identifier: Apache-2.0
//! What a job does in the pod's netns, over the sockets that the plugin opened there: write the plan, or compare.
//!
//! Blocks inside system calls: for the threads of the pool only. Every step is idempotent, so that a failure after a
//! part of them is mended by asking again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use agent_api::netns::Netns;
use kernel::route::Address;
use kernel::{Applied, Error, PodNetns};
use redirect::{Config, Ipv6, Ipv6Decision, Ipv6Policy, compile, decide_ipv6};
use ruleset::{Fingerprint, FingerprintError, Plan};

use super::descriptors::Descriptors;
use super::failure::Failure;
use super::{lo, self_test};

/// How long after its request an ADD waits for `lo`, when nobody sets it up.
pub(crate) const LO_WAIT: Duration = Duration::from_secs(3);
const LO_POLL: Duration = Duration::from_millis(2);

/// The pod's netns, open for work. Dropping it may block for 10 ms.
pub(crate) struct Sandboxed {
    pod: PodNetns,
    _netns: Netns,
}

/// What an ADD is to write.
pub(crate) struct Wanted {
    /// The pod's settings; what is done with IPv6 is still open.
    pub(crate) config: Config,
    /// What is done with IPv6 that the proxy does not serve.
    pub(crate) ipv6_policy: Ipv6Policy,
    /// The addresses that the plugins before ours reported.
    pub(crate) addresses: Vec<IpAddr>,
}

/// What an ADD found.
pub(crate) enum Found {
    /// Rules of Istio, as while the existing plugin and this one are in the same list: nothing is to be written.
    IstioRules,
    /// Nothing in the way.
    Clear {
        /// What is done with IPv6.
        ipv6: Ipv6Decision,
        /// Whether `::6` is to go to an `lo` that is not up, or not for long enough: [`Sandboxed::wait_for_lo`] comes before
        /// [`Sandboxed::add`].
        lo_is_late: bool,
    },
}

impl Sandboxed {
    /// Take over verified descriptors.
    ///
    /// # Errors
    /// [`Failure::Kernel`] when a socket cannot be set up.
    pub(crate) fn new(descriptors: Descriptors) -> Result<Self, Failure> {
        let Descriptors { netns, nfnetlink, rtnetlink, .. } = descriptors;
        let pod = PodNetns::new(nfnetlink, rtnetlink).map_err(kernel("set up netlink"))?;
        Ok(Self { pod, _netns: netns })
    }

    /// Look who was here before, and decide about IPv6 by the addresses that are there.
    ///
    /// # Errors
    /// [`Failure`].
    pub(crate) fn look(&mut self, wanted: &Wanted) -> Result<Found, Failure> {
        let Wanted { config, ipv6_policy, addresses } = wanted;
        if self.pod.has_istio_rules().map_err(kernel("look for rules of Istio"))? {
            return Ok(Found::IstioRules);
        }
        let found = self.addresses()?;
        let present: Vec<IpAddr> = found.iter().map(|address| address.addr).collect();
        let ipv6 = decide_ipv6(*ipv6_policy, config.dual_stack, addresses, &present)?;
        let lo_is_late = ipv6.treatment() == Ipv6::Capture && !lo::is_settled(&found);
        Ok(Found::Clear { ipv6, lo_is_late })
    }

    /// Wait until `lo` may get `::6`, or until `deadline`: for a thread that nobody else needs.
    ///
    /// # Errors
    /// [`Failure`]; asking again is safe.
    pub(crate) fn wait_for_lo(&mut self, deadline: Instant) -> Result<(), Failure> {
        while !lo::is_settled(&self.addresses()?) && Instant::now() < deadline {
            std::thread::sleep(LO_POLL);
        }
        Ok(())
    }

    /// Compile, and write. The reason code says what there was; with it, how many rules were written.
    ///
    /// # Errors
    /// [`Failure`]; asking again is safe.
    pub(crate) fn add(
        &mut self,
        wanted: Wanted,
        ipv6: Ipv6Decision,
    ) -> Result<(&'static str, usize), Failure> {
        let config = Config { ipv6: ipv6.treatment(), ..wanted.config };
        let plan = compile(&config).in_form(self_test::form());
        match self.pod.apply(&plan).map_err(kernel("write the rules"))? {
            Applied::Created => Ok(("programmed", rules(&plan))),
            Applied::Unchanged => Ok(("unchanged", 0)),
            Applied::Replaced => Ok(("replaced", rules(&plan))),
        }
    }

    fn addresses(&mut self) -> Result<Vec<Address>, Failure> {
        self.pod.addresses().map_err(kernel("read the addresses"))
    }

    /// Compare the live tables with the fingerprints in them; `redirected` says whether there must be any. Today's pod
    /// is not looked at: the rules are those of the pod as it was at ADD.
    ///
    /// # Errors
    /// [`Failure`] when they differ, are gone or cannot be read.
    pub(crate) fn check(&mut self, redirected: bool) -> Result<&'static str, Failure> {
        let tables = match self.pod.observe() {
            Ok(tables) => tables,
            Err(source @ Error::Decode { .. }) => {
                // Another release may write what this one cannot read; its fingerprint can be read always.
                let outlines = self.pod.outlines().map_err(kernel("read the fingerprints"))?;
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

fn rules(plan: &Plan) -> usize {
    plan.tables.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum()
}

fn kernel(attempt: &'static str) -> impl FnOnce(Error) -> Failure {
    move |source| Failure::Kernel { attempt, source }
}
