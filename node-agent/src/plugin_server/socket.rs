// SPDX-License-Identifier: Apache-2.0
//! The two sockets and their names in the run directory.
//!
//! Each agent binds both at names of its own and listens for its whole life. The public names are hard links to them:
//! taking the role is a `rename(2)` of a new link over the old one, so that there is a working socket at any time, the
//! agent that loses the names loses no connection, and it can take them back without binding anew.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, SystemTime};

use agent_api::path;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};

/// Names of agents that died without cleaning up go at the start of the next one, when they are this old: a younger
/// one may be about to listen.
const STALE: Duration = Duration::from_secs(10);
/// Longest address of a socket in bytes: `sun_path` without its NUL (unix(7)).
const ADDRESS: usize = 107;
/// Longest name that an agent adds to the run directory. A process id has up to 22 bits.
const LONGEST: &str = "/waylay-notice.sock.3fffff-ffffffff";

/// Whose the public names are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Both are this agent's.
    Us,
    /// Requests go to another agent.
    Other,
    /// Requests come here and notices do not: another agent is between its two renames, or died there.
    Torn,
    /// There is no request socket.
    Nobody,
}

/// The names of one agent's sockets.
#[derive(Debug)]
pub(crate) struct Names {
    requests: Name,
    notices: Name,
}

#[derive(Debug)]
struct Name {
    own: PathBuf,
    public: PathBuf,
    /// Device and inode once bound. The socket keeps its inode, so that no other file can have the number.
    id: Option<(u64, u64)>,
}

/// Both sockets, non-blocking.
pub(crate) struct Sockets {
    /// `SOCK_SEQPACKET`, listening.
    pub(crate) requests: OwnedFd,
    /// `SOCK_DGRAM`.
    pub(crate) notices: OwnedFd,
}

/// Bind both sockets in `run_dir`, beside the public names.
///
/// # Errors
/// Those of socket(2), bind(2) and chmod(2), and [`io::ErrorKind::InvalidInput`] when the path of `run_dir` is too long.
pub(crate) fn bind_beside(run_dir: &Path) -> io::Result<(Sockets, Names)> {
    let (len, limit) = (run_dir.as_os_str().len(), ADDRESS - LONGEST.len());
    if len > limit {
        let text = format!("its path has {len} bytes, and the addresses of sockets leave room for {limit}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // In containers every agent is process 1.
    let id = format!("{:x}-{:x}", process::id(), since_epoch.as_micros() & 0xffff_ffff);
    let mut names = Names {
        requests: Name::new(path::requests(run_dir), &id),
        notices: Name::new(path::notices(run_dir), &id),
    };
    let requests = names.requests.bind(SockType::SeqPacket)?;
    // As many as `net.core.somaxconn` allows.
    listen(&requests, Backlog::MAXALLOWABLE)?;
    let notices = names.notices.bind(SockType::Datagram)?;
    Ok((Sockets { requests, notices }, names))
}

/// Remove what agents that died left in `run_dir`.
pub(crate) fn sweep(run_dir: &Path) {
    let Ok(entries) = fs::read_dir(run_dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let kind = match entry.file_name().to_str() {
            Some(name) if name.starts_with("waylay.sock.") => SockType::SeqPacket,
            Some(name) if name.starts_with("waylay-notice.sock.") => SockType::Datagram,
            _ => continue,
        };
        let stale = entry.metadata().is_ok_and(|m| {
            m.file_type().is_socket() && m.modified().is_ok_and(|t| t.elapsed().is_ok_and(|age| age > STALE))
        });
        if stale && refuses(&path, kind) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether nobody has the socket at `path` open any more.
fn refuses(path: &Path, kind: SockType) -> bool {
    let probe = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None);
    match (probe, UnixAddr::new(path)) {
        (Ok(probe), Ok(address)) => connect(probe.as_raw_fd(), &address) == Err(Errno::ECONNREFUSED),
        _ => false,
    }
}

impl Names {
    /// Whose the public names are.
    pub(crate) fn holder(&self) -> Holder {
        match (self.requests.is_ours(), self.notices.is_ours()) {
            (None, _) => Holder::Nobody,
            (Some(false), _) => Holder::Other,
            (Some(true), Some(true)) => Holder::Us,
            (Some(true), _) => Holder::Torn,
        }
    }

    /// Whether requests come to this agent now.
    pub(crate) fn are_ours(&self) -> bool {
        matches!(self.holder(), Holder::Us | Holder::Torn)
    }

    /// Take both public names. Notices first: whoever has the requests has both.
    ///
    /// # Errors
    /// Those of link(2) and rename(2); whatever was not taken is another agent's still. [`io::ErrorKind::NotFound`]:
    /// this agent's own names are gone, or the run directory is, and asking again does not help.
    pub(crate) fn take(&self) -> io::Result<()> {
        self.notices.take()?;
        self.requests.take()
    }

    /// Remove this agent's own names, at its end; the public ones stay, so that a plugin finds a socket that refuses.
    pub(crate) fn withdraw(&self) {
        let _ = (remove(&self.requests.own), remove(&self.notices.own));
    }

    /// The public name of the request socket.
    pub(crate) fn public(&self) -> &Path {
        &self.requests.public
    }
}

impl Name {
    fn new(public: PathBuf, id: &str) -> Self {
        let mut own = public.clone().into_os_string();
        own.push(format!(".{id}"));
        Self { own: own.into(), public, id: None }
    }

    fn bind(&mut self, kind: SockType) -> io::Result<OwnedFd> {
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&self.own)?)?;
        // Nobody but root; the peer's uid is looked at all the same.
        fs::set_permissions(&self.own, Permissions::from_mode(0o600))?;
        self.id = Some(id(&self.own)?);
        Ok(fd)
    }

    fn take(&self) -> io::Result<()> {
        let mut link = self.own.clone().into_os_string();
        link.push("~");
        let link = PathBuf::from(link);
        remove(&link)?;
        fs::hard_link(&self.own, &link)?;
        let renamed = fs::rename(&link, &self.public);
        // rename(2) does nothing when both are the same file already.
        remove(&link)?;
        renamed
    }

    /// Whether the public name leads to our socket; nothing when it leads nowhere.
    fn is_ours(&self) -> Option<bool> {
        Some(Some(id(&self.public).ok()?) == self.id)
    }
}

fn id(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
