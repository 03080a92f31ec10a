// SPDX-License-Identifier: Apache-2.0
//! The admin socket: HTTP for root on the node, where a port could be switched off or open to others.
//!
//! Each agent has a name of its own in the run directory, so that an older and a newer one can both be asked. A name
//! goes with its agent; of an agent that was killed it stays until the next one starts.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime};

/// What the names begin with; the rest tells agents apart.
const PREFIX: &str = "waylay-admin.sock.";
/// A younger name that nobody listens on may be of an agent that is about to.
const STALE: Duration = Duration::from_secs(10);

/// A bound socket, whose name goes with the value.
#[derive(Debug)]
pub(crate) struct AdminSocket {
    /// Listening, non-blocking.
    pub(crate) listener: Option<UnixListener>,
    path: PathBuf,
}

impl AdminSocket {
    /// Bind it in `run_dir`, and remove what agents that were killed left there.
    ///
    /// # Errors
    /// Those of bind(2) and chmod(2).
    pub(crate) fn bind(run_dir: &Path) -> io::Result<Self> {
        for path in names(run_dir) {
            let old = fs::symlink_metadata(&path).and_then(|m| m.modified()).ok();
            let stale = old.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > STALE);
            if stale
                && UnixStream::connect(&path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            {
                let _ = fs::remove_file(path);
            }
        }
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // In containers every agent is process 1.
        let id = format!("{:x}-{:x}", process::id(), since_epoch.as_micros() & 0xffff_ffff);
        let path = run_dir.join(format!("{PREFIX}{id}"));
        let listener = UnixListener::bind(&path)?;
        let socket = Self { listener: Some(listener), path };
        // Nobody but root; the peer's uid is looked at all the same.
        fs::set_permissions(&socket.path, Permissions::from_mode(0o600))?;
        if let Some(listener) = &socket.listener {
            listener.set_nonblocking(true)?;
        }
        Ok(socket)
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The admin sockets in `run_dir`, whether or not somebody listens.
pub(crate) fn names(run_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(run_dir) else { return Vec::new() };
    let mut names: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .map(|entry| entry.path())
        .collect();
    names.sort();
    names
}

/// What tells the agent behind `path` from others.
pub(crate) fn agent_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()?.strip_prefix(PREFIX)).unwrap_or_default()
}
