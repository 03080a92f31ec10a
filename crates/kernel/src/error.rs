// SPDX-License-Identifier: Apache-2.0
//! What can go wrong, and whether trying again may help.

use nix::errno::Errno;

/// Why the kernel's state could not be read or changed.
///
/// In every case but [`Error::Timeout`] and [`Error::NoAck`] nothing was changed by the failed operation: a
/// transaction is all or nothing. After those two nobody knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The socket could not be set up: no netlink socket, or closed.
    #[error("set up the netlink socket: {errno}")]
    Setup {
        /// Cause.
        errno: Errno,
    },
    /// `send(2)` failed.
    #[error("send {what}: {errno}")]
    Send {
        /// The operation.
        what: &'static str,
        /// Cause.
        errno: Errno,
    },
    /// `recvmsg(2)` failed.
    #[error("receive the answer to {what}: {errno}")]
    Recv {
        /// The operation.
        what: &'static str,
        /// Cause.
        errno: Errno,
    },
    /// No answer within 2 s.
    #[error("{what}: no answer from the kernel within 2 s")]
    Timeout {
        /// The operation.
        what: &'static str,
    },
    /// The kernel answered, but did not acknowledge the last operation.
    #[error("{what}: the kernel did not acknowledge it")]
    NoAck {
        /// The operation.
        what: &'static str,
    },
    /// Somebody else changed the tables each time they were read.
    #[error("{what}: the tables kept changing")]
    Interrupted {
        /// The operation.
        what: &'static str,
    },
    /// The kernel refused an operation. EPERM: whoever opened the socket lacked CAP_NET_ADMIN, or we do.
    #[error("{what}: {errno}{}", extack.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// Table, chain, rule index and the rule's nft text, as far as they apply.
        what: String,
        /// Cause.
        errno: Errno,
        /// The kernel's own explanation (`NLMSGERR_ATTR_MSG`), if it gave one.
        extack: Option<String>,
    },
    /// The live object is none that this release writes: another program changed it, or another release wrote it.
    #[error("read {object}: {reason}")]
    Decode {
        /// The table, set, chain or rule.
        object: String,
        /// What is not understood.
        reason: &'static str,
    },
    /// The table is not legal; nothing was sent.
    #[error("table {family} {name} is not legal")]
    Invalid {
        /// Family of the table.
        family: ruleset::Family,
        /// Name of the table.
        name: String,
        /// What is wrong with it.
        source: ruleset::ValidateError,
    },
    /// The table does not have our name; nothing was sent.
    #[error("table {name} is not ours: it must be named {}", crate::TABLE)]
    NotOurs {
        /// Name of the table.
        name: String,
    },
    /// An object that a netlink message cannot hold; nothing was sent.
    #[error("{what} does not fit a netlink attribute of 64 KiB")]
    TooLarge {
        /// The object.
        what: String,
    },
    /// The `nft` program failed (back end `NftJson` only).
    #[cfg(feature = "nft-json")]
    #[error("run nft")]
    Nft {
        /// Cause.
        source: nftables::helper::NftablesError,
    },
}

impl Error {
    /// Whether the same call may succeed later with nothing else changed.
    #[must_use]
    pub fn transient(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::NoAck { .. } | Self::Interrupted { .. } => true,
            Self::Setup { errno }
            | Self::Send { errno, .. }
            | Self::Recv { errno, .. }
            | Self::Refused { errno, .. } => passes(*errno),
            Self::Decode { .. } | Self::Invalid { .. } | Self::NotOurs { .. } | Self::TooLarge { .. } => {
                false
            }
            #[cfg(feature = "nft-json")]
            Self::Nft { .. } => false,
        }
    }
}

fn passes(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EAGAIN | Errno::EBUSY | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM | Errno::ERESTART
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> Error {
        Error::Refused { what: String::from("add table inet waylay"), errno, extack: None }
    }

    #[test]
    fn shortage_and_contention_pass_but_a_missing_feature_stays() {
        for errno in [Errno::ENOMEM, Errno::EBUSY, Errno::EINTR, Errno::EAGAIN, Errno::ENOBUFS] {
            assert!(refused(errno).transient(), "{errno}");
        }
        for errno in [Errno::EOPNOTSUPP, Errno::ENOENT, Errno::EPERM, Errno::EINVAL, Errno::EEXIST] {
            assert!(!refused(errno).transient(), "{errno}");
        }
        assert!(Error::Timeout { what: "x" }.transient() && Error::NoAck { what: "x" }.transient());
    }

    #[test]
    fn the_kernels_own_words_follow_the_errno() {
        let error = Error::Refused {
            what: String::from("add table inet waylay"),
            errno: Errno::EINVAL,
            extack: Some(String::from("bad flag")),
        };
        assert_eq!(error.to_string(), "add table inet waylay: EINVAL: Invalid argument (bad flag)");
    }
}
