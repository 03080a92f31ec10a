// SPDX-License-Identifier: Apache-2.0
//! One exchange with the agent: connect, ask, wait for the answer. Whether to try again is the caller's to say.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
    sockopt::SndBuf, sockopt::SndBufForce,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::frame::{self, FrameError};
use crate::message::{Answer, DecodeError, Request};

/// Bytes that any system's default send buffer takes (`net.core.wmem_default` is 212,992, and a message counts about
/// twice).
const SMALL: usize = 64 * 1024;
/// Pause between two looks at the socket's name while there is no answer. An agent that hangs loses the name to another
/// one, and what it has accepted is lost with it.
const LOOK: Duration = Duration::from_millis(100);

/// Device and inode of the socket that the path leads to; nothing while it leads nowhere.
type Holder = Option<(u64, u64)>;

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
    /// No answer came, and the path leads to the socket of another agent by now.
    #[error("another agent took the socket before there was an answer")]
    Replaced,
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
    let address = UnixAddr::new(path).map_err(ExchangeError::Socket)?;
    let asked = dial(&socket, path, &address, until)?;
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    frame::send(socket.as_fd(), &bytes, &raw).map_err(ExchangeError::Send)?;
    wait(&socket, path, asked, until)?;
    let frame = frame::receive(socket.as_fd()).map_err(ExchangeError::Receive)?;
    Ok(Answer::decode(&frame.bytes)?)
}

/// Connect, and say to whom.
fn dial(socket: &OwnedFd, path: &Path, address: &UnixAddr, until: Instant) -> Result<Holder, ExchangeError> {
    loop {
        // Before connecting: one that is replaced in between is noticed, and at worst one that is not asked again.
        let asked = holder(path);
        // A full backlog makes connect wait, which SO_SNDTIMEO bounds, too (unix(7)); then the name may lead elsewhere.
        setsockopt(socket, SendTimeout, &timeval(until)).map_err(ExchangeError::Socket)?;
        match connect(socket.as_raw_fd(), address) {
            Ok(()) => return Ok(asked),
            Err(Errno::EAGAIN) if Instant::now() < until => {}
            Err(errno) => return Err(ExchangeError::Connect(errno)),
        }
    }
}

/// Wait until there is something to receive, an answer or the end of the connection.
fn wait(socket: &OwnedFd, path: &Path, asked: Holder, until: Instant) -> Result<(), ExchangeError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up: a wait of no milliseconds is none.
        let timeout =
            PollTimeout::try_from(left.min(LOOK) + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(1..) => return Ok(()),
            Ok(_) if Instant::now() >= until => {
                return Err(ExchangeError::Receive(FrameError::Io(Errno::EAGAIN)));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(ExchangeError::Receive(FrameError::Io(errno))),
        }
        let now = holder(path);
        if now.is_some() && now != asked {
            return Err(ExchangeError::Replaced);
        }
    }
}

fn holder(path: &Path) -> Holder {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// The time until the next look; never zero, which would mean no timeout at all.
fn timeval(until: Instant) -> TimeVal {
    let left = until.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), LOOK);
    TimeVal::microseconds(i64::try_from(left.as_micros()).unwrap_or(i64::MAX))
}
