// SPDX-License-Identifier: Apache-2.0
//! Why something is not in place, on one line: the attempt, the path, the cause, what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// What a caller treats differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Another agent holds the role: nothing is to be written.
    NotHolder,
    /// The primary network's file is not there yet. Its writer will cause an event.
    NoPrimary,
    /// A file is being written. Its end will cause an event; look again in some seconds all the same.
    BeingWritten,
    /// A file changed while it was being edited, several times in a row. Try again.
    Changed,
    /// A file of somebody else has a name that the settings give us.
    NotOurs,
    /// Somebody answers each restoration at once, so the next one waits.
    Fight,
    /// The system refused. Try again later.
    Refused,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallError {
    /// What a caller treats differently.
    pub kind: Kind,
    /// The path.
    pub path: PathBuf,
    attempt: &'static str,
    cause: String,
    hint: &'static str,
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |text: &str| text.replace(|c: char| c.is_control(), " ");
        write!(f, "{} {}: {}", self.attempt, line(&self.path.to_string_lossy()), line(&self.cause))?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

impl std::error::Error for InstallError {}

impl InstallError {
    pub(crate) fn new(
        kind: Kind,
        attempt: &'static str,
        path: &Path,
        cause: impl Into<String>,
        hint: &'static str,
    ) -> Self {
        Self { kind, path: path.to_owned(), attempt, cause: cause.into(), hint }
    }

    pub(crate) fn io(attempt: &'static str, path: &Path, error: &io::Error) -> Self {
        let errno = error.raw_os_error().map(Errno::from_raw);
        let cause = errno.map_or_else(|| error.to_string(), |errno| errno.desc().to_lowercase());
        Self::new(Kind::Refused, attempt, path, cause, errno.map_or("", hint))
    }

    pub(crate) fn not_holder(path: &Path) -> Self {
        let cause = "another agent holds the role";
        Self::new(Kind::NotHolder, "write", path, cause, "nothing was changed")
    }

    pub(crate) fn held_back(path: &Path) -> Self {
        let cause = "somebody takes our entry out as soon as it is there";
        let hint =
            "make the other side stop, with Cilium by cni.exclusive=false; it is put back after a pause";
        Self::new(Kind::Fight, "keep our entry in", path, cause, hint)
    }

    pub(crate) fn changed(path: &Path) -> Self {
        let cause = "somebody else changes it at the same time";
        Self::new(Kind::Changed, "edit", path, cause, "find out who writes it; it is tried again")
    }
}

/// What an administrator can do about it.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EROFS => {
            "mount it writable, or configure the directory that the runtime uses on this platform"
        }
        Errno::EACCES => {
            "the directory belongs to another user: give the container DAC_OVERRIDE, or check its SELinux type"
        }
        Errno::EPERM => "see lsattr for an immutable file or directory, and the security module's log",
        Errno::ENOSPC | Errno::EDQUOT => "free space on the node's disk",
        Errno::ENOENT | Errno::ENOTDIR => "check the mount and the configured path",
        Errno::EISDIR => "a directory has the file's name: remove it",
        _ => "",
    }
}
