// SPDX-License-Identifier: Apache-2.0
//! Network namespaces and sockets inside them: open, enter, identify, verify. The only `setns` of production code.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::sys::stat::{Mode, fstat};

/// `NS_GET_NSTYPE`, `linux/nsfs.h`, kernel 4.11.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
/// `SIOCGSKNS`, `linux/sockios.h`, kernel 4.10: the netns of a socket.
const SIOCGSKNS: libc::c_ulong = 0x894c;
/// `SO_NETNS_COOKIE`, `asm-generic/socket.h`, kernel 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;
/// Inode of the initial netns: fixed since kernel 6.18 (`NET_NS_INIT_INO`), and the first dynamic number before.
const INITIAL_INODES: [u64; 2] = [0xEFFF_FFF9, 0xF000_0000];
/// Cookie of the initial netns in kernels 5.14 to 6.17: it is the first that is made.
const INITIAL_COOKIE: u64 = 1;

/// What makes a network namespace the same as another: device and inode of its nsfs file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// Device of nsfs.
    pub dev: u64,
    /// Inode number, as in `net:[4026531840]`.
    pub inode: u64,
}

/// An open network namespace.
#[derive(Debug)]
pub struct Netns(OwnedFd);

/// Why a path or descriptor is not a usable netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetnsError {
    /// Nothing there.
    #[error("it does not exist")]
    Missing,
    /// A regular file, a directory, a socket …: where the namespace's bind mount is not visible, its mount point is an
    /// empty regular file.
    #[error("it is not a namespace")]
    NotNamespace,
    /// A namespace of another kind.
    #[error("it is a namespace, but not a network namespace")]
    NotNetwork,
    /// The system call failed.
    #[error("{0}")]
    Io(Errno),
}

/// Why a passed socket is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// Not a netlink socket of the protocol it is said to be.
    #[error("it is not a netlink socket of the claimed protocol")]
    Protocol,
    /// It belongs to another netns than the one that was passed with it.
    #[error("it belongs to another network namespace")]
    OtherNetns,
    /// The system call failed.
    #[error("{0}")]
    Io(Errno),
}

/// A netlink protocol that the plugin opens inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netlink {
    /// `NETLINK_NETFILTER`: nf_tables.
    Netfilter,
    /// `NETLINK_ROUTE`: addresses, routes, policy rules.
    Route,
}

impl Netns {
    /// Open the netns at `path`.
    ///
    /// # Errors
    /// [`NetnsError`] when there is none.
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // O_NONBLOCK: a FIFO at that path must not hold up the caller.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        match open(path, flags, Mode::empty()) {
            Ok(fd) => Self::from_fd(fd),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Err(NetnsError::Missing),
            // What open(2) says of sockets and of devices without a driver.
            Err(Errno::ENXIO) => Err(NetnsError::NotNamespace),
            Err(errno) => Err(NetnsError::Io(errno)),
        }
    }

    /// Open the calling thread's own netns.
    ///
    /// # Errors
    /// [`NetnsError`] when `/proc` is not mounted.
    pub fn own() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Take `fd` as a netns.
    ///
    /// # Errors
    /// [`NetnsError`] when it is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetnsError> {
        match ioctl(fd.as_fd(), NS_GET_NSTYPE) {
            Ok(libc::CLONE_NEWNET) => Ok(Self(fd)),
            Ok(_) => Err(NetnsError::NotNetwork),
            Err(Errno::ENOTTY | Errno::EINVAL) => Err(NetnsError::NotNamespace),
            Err(errno) => Err(NetnsError::Io(errno)),
        }
    }

    /// Which netns this is.
    ///
    /// # Errors
    /// [`Errno`] of fstat(2).
    pub fn id(&self) -> Result<NetnsId, Errno> {
        id_of(self.0.as_fd())
    }

    /// Move the calling thread into this netns, for good: a thread that did this must never be reused for anything
    /// else. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// [`Errno`] of setns(2).
    #[allow(clippy::disallowed_methods, reason = "this is the one place that enters a netns")]
    pub fn enter(&self) -> Result<(), Errno> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Netlink {
    fn protocol(self) -> SockProtocol {
        match self {
            Self::Netfilter => SockProtocol::NetlinkNetFilter,
            Self::Route => SockProtocol::NetlinkRoute,
        }
    }

    /// A socket of this protocol in the calling thread's netns; it stays bound to that netns wherever it is passed.
    ///
    /// # Errors
    /// [`Errno`] of socket(2).
    pub fn open(self) -> Result<OwnedFd, Errno> {
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, self.protocol())
    }

    /// Check that `fd` is a socket of this protocol inside the netns `id`. Needs CAP_NET_ADMIN over that netns.
    ///
    /// # Errors
    /// [`SocketError`] when it is not.
    pub fn verify(self, fd: BorrowedFd<'_>, id: NetnsId) -> Result<(), SocketError> {
        let domain = int_option(fd, libc::SO_DOMAIN)?;
        let protocol = int_option(fd, libc::SO_PROTOCOL)?;
        if (domain, protocol) != (libc::AF_NETLINK, self.protocol() as libc::c_int) {
            return Err(SocketError::Protocol);
        }
        let raw = ioctl(fd, SIOCGSKNS).map_err(SocketError::Io)?;
        // SAFETY: SIOCGSKNS returns a new descriptor that nobody else owns.
        #[allow(unsafe_code, reason = "the ioctl returns a raw descriptor")]
        let netns = unsafe { OwnedFd::from_raw_fd(raw) };
        if id_of(netns.as_fd()).map_err(SocketError::Io)? == id {
            Ok(())
        } else {
            Err(SocketError::OtherNetns)
        }
    }
}

/// Whether a netns is the initial one, the node's own: `socket` is any socket inside it. Certain on kernels from 5.14;
/// on older ones only by the inode number that they usually give it.
#[must_use]
pub fn is_initial(id: NetnsId, socket: BorrowedFd<'_>) -> bool {
    INITIAL_INODES.contains(&id.inode) || cookie(socket) == Some(INITIAL_COOKIE)
}

fn id_of(fd: BorrowedFd<'_>) -> Result<NetnsId, Errno> {
    let stat = fstat(fd)?;
    Ok(NetnsId { dev: stat.st_dev, inode: stat.st_ino })
}

#[allow(unsafe_code, reason = "neither ioctl is in nix, and neither takes an argument")]
fn ioctl(fd: BorrowedFd<'_>, request: libc::c_ulong) -> Result<libc::c_int, Errno> {
    // SAFETY: both requests take no argument and return an integer; fd is open.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), request as _) })
}

#[allow(unsafe_code, reason = "nix has no getter for these options")]
fn option<T: Default>(fd: BorrowedFd<'_>, name: libc::c_int) -> Result<T, Errno> {
    let mut value = T::default();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: value is a plain integer of `len` bytes and outlives the call.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len)
    };
    Errno::result(result).map(|_| value)
}

fn int_option(fd: BorrowedFd<'_>, name: libc::c_int) -> Result<libc::c_int, SocketError> {
    match option(fd, name) {
        Ok(value) => Ok(value),
        Err(Errno::ENOTSOCK) => Err(SocketError::Protocol),
        Err(errno) => Err(SocketError::Io(errno)),
    }
}

fn cookie(fd: BorrowedFd<'_>) -> Option<u64> {
    option(fd, SO_NETNS_COOKIE).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_and_other_namespaces_are_no_netns() {
        let error = |path: &str| Netns::open(Path::new(path)).unwrap_err();
        assert_eq!(error("/nonexistent/netns"), NetnsError::Missing);
        assert_eq!(error("/proc/self/status"), NetnsError::NotNamespace);
        assert_eq!(error("/tmp"), NetnsError::NotNamespace);
        assert_eq!(error("/proc/self/ns/mnt"), NetnsError::NotNetwork);
    }

    #[test]
    fn a_socket_belongs_to_the_netns_it_was_made_in() {
        let own = Netns::own().unwrap().id().unwrap();
        let (socket, inner) = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            (Netlink::Route.open().unwrap(), Netns::own().unwrap().id().unwrap())
        })
        .join()
        .unwrap();
        assert_ne!(own, inner);
        assert_eq!(Netlink::Route.verify(socket.as_fd(), inner), Ok(()));
        assert_eq!(Netlink::Route.verify(socket.as_fd(), own), Err(SocketError::OtherNetns));
        assert_eq!(Netlink::Netfilter.verify(socket.as_fd(), inner), Err(SocketError::Protocol));
        assert!(!is_initial(inner, socket.as_fd()));
    }

    #[test]
    fn a_file_is_no_socket() {
        let own = Netns::own().unwrap();
        assert_eq!(Netlink::Route.verify(own.as_fd(), own.id().unwrap()), Err(SocketError::Protocol));
    }
}
