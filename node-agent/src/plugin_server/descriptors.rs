// SPDX-License-Identifier: Apache-2.0
//! The four descriptors of a request, believed only after they were looked at.

use std::os::fd::{AsFd as _, OwnedFd};

use agent_api::netns::{Netlink, Netns, NetnsError, NetnsId, SocketError, is_initial};
use nix::errno::Errno;

/// What the plugin handed over, verified.
#[derive(Debug)]
pub(crate) struct Descriptors {
    /// Which netns it is.
    pub(crate) id: NetnsId,
    /// The pod's netns: open, so that its inode number stays its own.
    pub(crate) netns: Netns,
    /// nf_tables inside it.
    pub(crate) nfnetlink: OwnedFd,
    /// Addresses and routes inside it.
    pub(crate) rtnetlink: OwnedFd,
}

/// Why descriptors are refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DescriptorError {
    /// Not four.
    #[error("the request came with {0} descriptors, not 4")]
    Count(usize),
    /// One that must be a netns is none.
    #[error("the descriptor of the {whose} network namespace: {source}")]
    NotNetns {
        /// `pod's` or `plugin's`.
        whose: &'static str,
        /// Cause.
        source: NetnsError,
    },
    /// The identity of a netns cannot be read.
    #[error("identify a network namespace: {0}")]
    Identify(#[from] Errno),
    /// The netns to program is somebody else's.
    #[error("the network namespace to program is {0}, not a pod's")]
    Netns(Foreign),
    /// A socket is not what it is said to be.
    #[error("the {name} socket: {source}")]
    Socket {
        /// `NETLINK_NETFILTER` or `NETLINK_ROUTE`.
        name: &'static str,
        /// Cause.
        source: SocketError,
    },
}

/// Whose netns must never be programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Foreign {
    /// The agent's.
    #[error("the agent's own")]
    Agent,
    /// The plugin's.
    #[error("the plugin's own")]
    Plugin,
    /// The node's.
    #[error("the node's")]
    Initial,
}

impl DescriptorError {
    /// The reason code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Count(_) => "descriptor_count",
            Self::NotNetns { .. } | Self::Identify(_) => "not_a_netns",
            Self::Netns(Foreign::Agent) => "netns_of_agent",
            Self::Netns(Foreign::Plugin) => "netns_of_plugin",
            Self::Netns(Foreign::Initial) => "netns_of_node",
            Self::Socket { source: SocketError::OtherNetns, .. } => "socket_of_other_netns",
            Self::Socket { .. } => "not_that_socket",
        }
    }
}

/// Check what a peer sent; `agent` is the agent's own netns. Sockets that are refused stay in `fds`: closing one may
/// wait for the kernel.
///
/// # Errors
/// [`DescriptorError`] for the first thing that is not as it must be.
pub(crate) fn verify(fds: &mut Vec<OwnedFd>, agent: NetnsId) -> Result<Descriptors, DescriptorError> {
    if fds.len() != 4 {
        return Err(DescriptorError::Count(fds.len()));
    }
    let open = |fd, whose| Netns::from_fd(fd).map_err(|source| DescriptorError::NotNetns { whose, source });
    let (pod, plugin) = (fds.remove(0), fds.remove(0));
    let netns = open(pod, "pod's")?;
    let id = netns.id()?;
    if id == agent {
        return Err(DescriptorError::Netns(Foreign::Agent));
    }
    if id == open(plugin, "plugin's")?.id()? {
        return Err(DescriptorError::Netns(Foreign::Plugin));
    }
    for (kind, name, fd) in
        [(Netlink::Netfilter, "NETLINK_NETFILTER", &fds[0]), (Netlink::Route, "NETLINK_ROUTE", &fds[1])]
    {
        kind.verify(fd.as_fd(), id).map_err(|source| DescriptorError::Socket { name, source })?;
    }
    if is_initial(id, fds[0].as_fd()) {
        return Err(DescriptorError::Netns(Foreign::Initial));
    }
    let (nfnetlink, rtnetlink) = (fds.remove(0), fds.remove(0));
    Ok(Descriptors { id, netns, nfnetlink, rtnetlink })
}
