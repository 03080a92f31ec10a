// SPDX-License-Identifier: Apache-2.0
//! The pod's network namespace as the agent needs it: four descriptors. Owns what is refused before anything is
//! programmed; never programs anything.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agent_api::netns::{Netlink, Netns, NetnsError};
use cni::{Code, Error, Invocation};

/// Descriptors for one request, in the order of the protocol.
pub(crate) struct Descriptors {
    pod: Netns,
    own: Netns,
    nfnetlink: OwnedFd,
    rtnetlink: OwnedFd,
}

impl Descriptors {
    /// Open the netns that the runtime names and two netlink sockets inside it. The calling thread stays in there: the
    /// process ends soon, and neither files nor unix sockets with a path depend on the netns.
    ///
    /// # Errors
    /// Code 8 when it is the plugin's own; 102 to 104 when it is not there, not a netns or not usable.
    pub(crate) fn open(call: &Invocation) -> Result<Self, Error> {
        let pod = Netns::open(Path::new(&call.netns)).map_err(|error| not_usable(call, error))?;
        let own = Netns::own().map_err(|error| {
            Error::new(
                Code::NetnsUnusable,
                &format!("open /proc/thread-self/ns/net: {error}; is /proc mounted?"),
            )
        })?;
        let identify = |netns: &Netns| netns.id().map_err(|errno| not_usable(call, NetnsError::Io(errno)));
        if identify(&pod)? == identify(&own)? && !call.netns_override {
            return Err(Error::new(
                Code::OwnNetns,
                &format!(
                    "{} the network namespace of the container runtime itself; redirecting that would cut off the node",
                    named(call)
                ),
            ));
        }
        let failed = |attempt: &str, errno| {
            Error::new(
                Code::NetnsUnusable,
                &format!(
                    "{attempt} the network namespace \"{}\": {errno}; the runtime must run as root",
                    call.netns
                ),
            )
        };
        pod.enter().map_err(|errno| failed("enter", errno))?;
        let nfnetlink =
            Netlink::Netfilter.open().map_err(|errno| failed("open a netfilter socket in", errno))?;
        let rtnetlink = Netlink::Route.open().map_err(|errno| failed("open a route socket in", errno))?;
        Ok(Self { pod, own, nfnetlink, rtnetlink })
    }

    /// As they are passed.
    pub(crate) fn as_fds(&self) -> [BorrowedFd<'_>; 4] {
        [self.pod.as_fd(), self.own.as_fd(), self.nfnetlink.as_fd(), self.rtnetlink.as_fd()]
    }
}

fn named(call: &Invocation) -> String {
    format!("CNI_NETNS is \"{}\":", call.netns)
}

fn not_usable(call: &Invocation, error: NetnsError) -> Error {
    let (code, hint) = match error {
        NetnsError::Missing => {
            (Code::NetnsMissing, "the runtime has removed the sandbox, or runs in another mount namespace")
        }
        NetnsError::NotNamespace | NetnsError::NotNetwork => {
            (Code::NotANetns, "must be a network namespace; the runtime's mount on it may be missing here")
        }
        NetnsError::Io(_) => (Code::NetnsUnusable, "must be a network namespace that root can open"),
    };
    Error::new(code, &format!("{} {error}; {hint}", named(call)))
}
