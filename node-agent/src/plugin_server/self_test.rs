// SPDX-License-Identifier: Apache-2.0
//! Whether this process could answer an ADD, as far as the kernel is concerned: the same sockets and questions, in its
//! own netns.
//!
//! Must never change anything.

#[cfg(feature = "fault-injection")]
use std::cell::Cell;
use std::os::fd::OwnedFd;

use agent_api::netns::Netlink;
use kernel::route::Route;
use kernel::{Backend as _, Error, Nftables};

use super::failure::Failure;

#[cfg(feature = "fault-injection")]
thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Read tables and addresses of the own netns; some 100 us.
///
/// # Errors
/// [`Failure::SelfTest`].
pub(crate) fn run() -> Result<(), Failure> {
    #[cfg(feature = "fault-injection")]
    RUNNING.set(true);
    let result = questions();
    #[cfg(feature = "fault-injection")]
    RUNNING.set(false);
    result
}

/// The kill points of the kernel back end are those of ADDs: a self-test does not count.
#[cfg(feature = "fault-injection")]
pub(crate) fn fault(point: &'static str) {
    if !RUNNING.get() {
        agent_api::fault::point(point);
    }
}

fn questions() -> Result<(), Failure> {
    let refused = |attempt| move |source| Failure::SelfTest { attempt, source };
    let mut nftables =
        open(Netlink::Netfilter).and_then(Nftables::new).map_err(refused("set up nf_tables"))?;
    match nftables.observe() {
        // A table that somebody else made: the kernel did answer.
        Ok(_) | Err(Error::Decode { .. }) => {}
        Err(error) => return Err(refused("read the rules")(error)),
    }
    let mut route = open(Netlink::Route).and_then(Route::new).map_err(refused("set up routing"))?;
    route.addresses().map_err(refused("read the addresses"))?;
    Ok(())
}

fn open(kind: Netlink) -> Result<OwnedFd, Error> {
    kind.open().map_err(|errno| Error::Setup { errno })
}
