// SPDX-License-Identifier: Apache-2.0
//! What a job does in the pod's netns, over the sockets that the plugin opened there: write the plan, or compare.
//!
//! Blocks inside system calls: for the threads of the pool only. Every step is idempotent, so that a failure after a
//! part of them is mended by asking again.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use agent_api::netns::Netns;
use kernel::route::Address;
use kernel::{Applied, Error, PodNetns};
use redirect::{Config, Ipv6Decision, Ipv6Policy, compile, decide_ipv6};
use ruleset::{Fingerprint, FingerprintError};

use super::descriptors::Descriptors;
use super::failure::Failure;
use super::self_test;

/// How long after its request an ADD waits for `lo`, when nobody sets it up.
pub(crate) const LO_WAIT: Duration = Duration::from_millis(250);
/// How long `lo` is up before it gets `::6`. containerd runs the CNI plugin `loopback` beside the plugins before ours: it
/// sets `lo` up, lists its addresses and fails when there is another than `::1`. That takes it less than 1 ms, if it is not
/// interrupted in between; ages are up to 10 ms too long.
const LO_AGE: Duration = Duration::from_millis(30);
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

/// What an ADD did.
pub(crate) struct Added {
    /// The reason code.
    pub(crate) reason: &'static str,
    /// What is done with IPv6; nothing when no rules were written.
    pub(crate) ipv6: Option<Ipv6Decision>,
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

    /// Decide about IPv6, compile, and write; an address on `lo` waits for it until `lo_deadline` at most.
    ///
    /// # Errors
    /// [`Failure`]; asking again is safe.
    pub(crate) fn add(&mut self, wanted: Wanted, lo_deadline: Instant) -> Result<Added, Failure> {
        let Wanted { mut config, ipv6_policy, addresses } = wanted;
        // As while the existing plugin and this one are in the same list.
        if self.pod.has_istio_rules().map_err(kernel("look for rules of Istio"))? {
            return Ok(Added { reason: redirect::Reason::RedirectedByIstio.code(), ipv6: None });
        }
        let found = self.addresses()?;
        let present: Vec<IpAddr> = found.iter().map(|address| address.addr).collect();
        let ipv6 = decide_ipv6(ipv6_policy, config.dual_stack, &addresses, &present)?;
        config.ipv6 = ipv6.treatment();
        let plan = compile(&config).in_form(self_test::form());
        if plan.passthrough_ipv6 {
            self.wait_for_lo(found, lo_deadline)?;
        }
        let reason = match self.pod.apply(&plan).map_err(kernel("write the rules"))? {
            Applied::Created => "programmed",
            Applied::Unchanged => "unchanged",
            Applied::Replaced => "replaced",
        };
        Ok(Added { reason, ipv6: Some(ipv6) })
    }

    fn addresses(&mut self) -> Result<Vec<Address>, Failure> {
        self.pod.addresses().map_err(kernel("read the addresses"))
    }

    fn wait_for_lo(&mut self, mut found: Vec<Address>, deadline: Instant) -> Result<(), Failure> {
        let settled = |address: &Address| address.addr == Ipv6Addr::LOCALHOST && address.age >= LO_AGE;
        while !found.iter().any(settled) && Instant::now() < deadline {
            std::thread::sleep(LO_POLL);
            found = self.addresses()?;
        }
        Ok(())
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

fn kernel(attempt: &'static str) -> impl FnOnce(Error) -> Failure {
    move |source| Failure::Kernel { attempt, source }
}
