// SPDX-License-Identifier: Apache-2.0
//! What this process may do: keep CAP_NET_ADMIN, drop everything else, raise the limit of open files.
//!
//! Capabilities belong to threads: [`prepare`] must run before the first one is started.

use std::path::Path;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, faccessat};

/// Why the agent cannot work with what it was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegeError {
    /// The one capability that it needs is not there.
    #[error(
        "capability CAP_NET_ADMIN is missing: the kernel accepts rules from nobody else; add it to the container's \
         securityContext.capabilities"
    )]
    Missing,
    /// The sets cannot be read or changed.
    #[error("{attempt} the capabilities of the process")]
    Caps {
        /// What was tried.
        attempt: &'static str,
        /// Cause.
        source: CapsError,
    },
    /// The limit cannot be read or changed.
    #[error("raise the limit of open files")]
    Limit {
        /// Cause.
        source: Errno,
    },
}

/// Check for CAP_NET_ADMIN and drop every other capability from all sets. CAP_DAC_OVERRIDE stays when one of `dirs`
/// belongs to somebody else and cannot be written without.
///
/// # Errors
/// [`PrivilegeError`] naming what is missing.
pub(crate) fn prepare(dirs: &[&Path]) -> Result<CapsHashSet, PrivilegeError> {
    let change = |source| PrivilegeError::Caps { attempt: "change", source };
    let permitted = caps::read(None, CapSet::Permitted)
        .map_err(|source| PrivilegeError::Caps { attempt: "read", source })?;
    if !permitted.contains(&Capability::CAP_NET_ADMIN) {
        return Err(PrivilegeError::Missing);
    }
    // Only CAP_SETPCAP may change the bounding set. Without it that set stays; it matters to exec alone, and the agent
    // executes nothing.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(change)? {
        caps::clear(None, CapSet::Bounding).map_err(change)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(change)?;
    caps::clear(None, CapSet::Inheritable).map_err(change)?;
    let mut keep = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
    caps::set(None, CapSet::Effective, &keep).map_err(change)?;
    if permitted.contains(&Capability::CAP_DAC_OVERRIDE) && !dirs.iter().all(|dir| writable(dir)) {
        keep.insert(Capability::CAP_DAC_OVERRIDE);
        caps::set(None, CapSet::Effective, &keep).map_err(change)?;
    }
    caps::set(None, CapSet::Permitted, &keep).map_err(change)?;
    Ok(keep)
}

/// Raise the soft limit of open files to the hard one, and tell it: each ADD under way holds five descriptors.
///
/// # Errors
/// [`PrivilegeError::Limit`].
pub(crate) fn raise_open_files() -> Result<u64, PrivilegeError> {
    let limit = |source| PrivilegeError::Limit { source };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(limit)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(limit)?;
    Ok(hard)
}

/// Whether files can be made in `dir` with the capabilities in effect now.
fn writable(dir: &Path) -> bool {
    faccessat(AT_FDCWD, dir, AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).is_ok()
}
