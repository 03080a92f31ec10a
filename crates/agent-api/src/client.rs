// SPDX-License-Identifier: Apache-2.0
//! One exchange with the agent: connect, ask, wait for the answer. Whether to try again is the caller's to say.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::ReceiveTimeout,
    sockopt::SendTimeout, sockopt::SndBuf, sockopt::SndBufForce,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::frame::{self, FrameError};
use crate::message::{Answer, DecodeError, Request};

/// Bytes that any system's default send buffer takes (`net.core.wmem_default` is 212,992, and a message counts about
/// twice).
const SMALL: usize = 64 * 1024;

/// Why an exchange gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The socket cannot be made or the path is too long for one.
    #[error("socket: {0}")]
    Socket(Errno),
    /// Nobody listens there.
    #[error("connect: {0}")]
    Connect(Errno),
    /// The request could not be sent.
    #[error("send: {0}")]
    Send(#[source] FrameError),
    /// No answer came: closed, reset or timed out.
    #[error("receive: {0}")]
    Receive(#[source] FrameError),
    /// The answer is not one.
    #[error("{0}")]
    Decode(#[from] DecodeError),
}

impl ExchangeError {
    /// Whether asking again may help. ADD and CHECK are idempotent, so that only a request that can never be sent is
    /// final.
    #[must_use]
    pub fn transient(&self) -> bool {
        !matches!(self, Self::Send(FrameError::TooLong(_)))
    }
}

/// Ask the agent at `path` and wait for its answer until `until`.
///
/// # Errors
/// [`ExchangeError`] when no answer came.
pub fn exchange(
    path: &Path,
    request: &Request,
    fds: &[BorrowedFd<'_>],
    until: Instant,
) -> Result<Answer, ExchangeError> {
    let bytes = request.encode();
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(ExchangeError::Socket)?;
    if bytes.len() > SMALL && setsockopt(&socket, SndBufForce, &(2 * frame::MAX_LEN)).is_err() {
        // Without CAP_NET_ADMIN the system's maximum has to do; if it does not, send says so.
        let _ = setsockopt(&socket, SndBuf, &(2 * frame::MAX_LEN));
    }
    let timeout = timeval(until);
    setsockopt(&socket, SendTimeout, &timeout).map_err(ExchangeError::Socket)?;
    let address = UnixAddr::new(path).map_err(ExchangeError::Socket)?;
    // A full backlog makes connect wait, which SO_SNDTIMEO bounds, too (unix(7)).
    connect(socket.as_raw_fd(), &address).map_err(ExchangeError::Connect)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    frame::send(socket.as_fd(), &bytes, &raw).map_err(ExchangeError::Send)?;
    setsockopt(&socket, ReceiveTimeout, &timeval(until)).map_err(ExchangeError::Socket)?;
    let frame = frame::receive(socket.as_fd()).map_err(ExchangeError::Receive)?;
    Ok(Answer::decode(&frame.bytes)?)
}

/// The time until `until`; never zero, which would mean no timeout at all.
fn timeval(until: Instant) -> TimeVal {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX))
}
