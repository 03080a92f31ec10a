// SPDX-License-Identifier: Apache-2.0
//! One message of a `SOCK_SEQPACKET` or `SOCK_DGRAM` socket, bounded, with the descriptors that came along.
//!
//! Works on blocking sockets with timeouts and on non-blocking ones: it never loops.

use std::io::IoSlice;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};

/// Largest message in bytes. A pod's annotations are at most 256 KiB in all, and JSON adds little to the decisive ones.
pub const MAX_LEN: usize = 512 * 1024;

/// Most descriptors that the kernel passes in one message (`SCM_MAX_FD`, `net/scm.h`). Room for all of them means that
/// a truncated control message is never our buffer's fault, and that nothing a peer sends can leak.
const MAX_FDS: usize = 253;

/// A received message.
#[derive(Debug)]
pub struct Frame {
    /// The payload.
    pub bytes: Vec<u8>,
    /// The descriptors, close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Why no message came or went.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer closed the connection.
    #[error("the peer closed the connection")]
    Closed,
    /// Longer than [`MAX_LEN`].
    #[error("a message of {0} bytes is over the limit of {MAX_LEN}")]
    TooLong(usize),
    /// The kernel handed over fewer descriptors than the peer passed (`MSG_CTRUNC`, recvmsg(2)).
    #[error(
        "descriptors were taken away on the way: a security module (SELinux, AppArmor) denied them to the agent, or its \
         limit of open files is reached"
    )]
    DescriptorsDenied,
    /// The system call failed; `EAGAIN` is a timeout, or nothing there yet on a non-blocking socket.
    #[error("{0}")]
    Io(#[from] Errno),
}

/// Send `bytes` with `fds` as one message.
///
/// # Errors
/// [`FrameError::TooLong`] before anything is sent; [`FrameError::Io`] otherwise.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[RawFd]) -> Result<(), FrameError> {
    if bytes.len() > MAX_LEN {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receive one message.
///
/// # Errors
/// Any [`FrameError`]. After [`FrameError::TooLong`] the message is still queued: close the connection.
pub fn receive(socket: impl AsFd) -> Result<Frame, FrameError> {
    let fd = socket.as_fd().as_raw_fd();
    // The true length first, so that an idle or small peer costs no large buffer.
    let mut none = [0u8; 0];
    let len = recv(fd, &mut none, MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
    if len == 0 {
        return Err(FrameError::Closed);
    }
    if len > MAX_LEN {
        return Err(FrameError::TooLong(len));
    }
    receive_len(fd, len)
}

#[allow(unsafe_code, reason = "nix drops descriptors of a truncated control message without closing them")]
fn receive_len(fd: RawFd, len: usize) -> Result<Frame, FrameError> {
    let mut bytes = vec![0u8; len];
    // u64 aligns the buffer for cmsghdr.
    let mut control = vec![0u64; (size_of::<libc::cmsghdr>() + MAX_FDS * size_of::<RawFd>()).div_ceil(8) + 1];
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    // SAFETY: msghdr is plain data for which all zeroes is valid; the pointers set below outlive the call.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut iov;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = (control.len() * 8) as _;
    // SAFETY: header points to live buffers of the lengths it states.
    let got = unsafe { libc::recvmsg(fd, &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let got = Errno::result(got)?;
    let mut fds = Vec::new();
    // SAFETY: the CMSG macros walk the control buffer that recvmsg filled, within msg_controllen; each descriptor in
    // an SCM_RIGHTS message is new, open and ours alone.
    unsafe {
        let mut cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        while !cmsg.is_null() {
            if (*cmsg).cmsg_level == libc::SOL_SOCKET && (*cmsg).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(cmsg).cast::<RawFd>();
                let count = ((*cmsg).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for i in 0..count {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            cmsg = libc::CMSG_NXTHDR(&raw const header, cmsg);
        }
    }
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(FrameError::DescriptorsDenied);
    }
    if header.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(FrameError::TooLong(len + 1));
    }
    bytes.truncate(usize::try_from(got).unwrap_or(0));
    Ok(Frame { bytes, fds })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let pair =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&pair.0, sockopt::SndBufForce, &(2 * MAX_LEN)).unwrap();
        pair
    }

    #[test]
    fn bytes_and_descriptors_arrive_together() {
        let (a, b) = pair();
        send(&a, b"hello", &[0, 1, a.as_raw_fd()]).unwrap();
        let frame = receive(&b).unwrap();
        assert_eq!((frame.bytes.as_slice(), frame.fds.len()), (b"hello".as_slice(), 3));
    }

    #[test]
    fn the_longest_message_passes_and_one_byte_more_does_not() {
        let (a, b) = pair();
        send(&a, &vec![b'x'; MAX_LEN], &[]).unwrap();
        assert_eq!(receive(&b).unwrap().bytes.len(), MAX_LEN);
        assert!(matches!(send(&a, &vec![b'x'; MAX_LEN + 1], &[]), Err(FrameError::TooLong(_))));
        nix::sys::socket::send(a.as_raw_fd(), &vec![b'x'; MAX_LEN + 1], MsgFlags::empty()).unwrap();
        assert!(matches!(receive(&b), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn a_closed_peer_is_told_apart_from_an_error() {
        let (a, b) = pair();
        drop(a);
        assert!(matches!(receive(&b), Err(FrameError::Closed)));
    }

    #[test]
    fn all_descriptors_of_a_greedy_peer_are_received_and_so_closed() {
        let (a, b) = pair();
        send(&a, b"x", &[0; MAX_FDS]).unwrap();
        assert_eq!(receive(&b).unwrap().fds.len(), MAX_FDS);
    }
}
