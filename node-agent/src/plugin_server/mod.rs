// SPDX-License-Identifier: Apache-2.0
//! The agent's side of the protocol: accept, verify, answer, once per connection.
//!
//! Believes nothing that a peer says without looking. Must never wait for anything without a limit, and never block the
//! event loop: what blocks is a job for the pool.

mod changes;
mod descriptors;
mod failure;
mod handler;
mod lo;
mod program;
mod recent;
mod records;
mod reply;
mod role;
mod self_test;
mod session;
mod socket;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use agent_api::Notice;
use agent_api::frame::{self, FrameError};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag, accept4, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::sleep;

pub(crate) use handler::Handler;
pub(crate) use records::{Records, forget};
pub(crate) use role::{Lost, run as hold_role};
#[cfg(feature = "fault-injection")]
pub(crate) use self_test::fault;
pub(crate) use self_test::known_form as rules_form;
pub(crate) use socket::{Names, Sockets, bind_beside, sweep};

use reply::Connection;
use session::{Refusal, admit};

/// Connections that may be open at once; more are closed. A node starts a few pods a second.
const CONNECTIONS: i64 = 4096;
/// Connections or notices in a row before other tasks get their turn.
const TURN: usize = 32;
/// Pause when accept(2) lacks descriptors or memory.
const SHORTAGE: Duration = Duration::from_millis(50);

/// Accept connections until `ending` becomes true.
///
/// # Errors
/// Those of registering the socket with the event loop.
pub(crate) async fn accept(
    listener: OwnedFd,
    handler: Arc<Handler>,
    mut ending: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = watch_readable(listener)?;
    loop {
        let mut ready = tokio::select! {
            ready = listener.readable() => ready?,
            _ = ending.wait_for(|ending| *ending) => return Ok(()),
        };
        for _ in 0..TURN {
            match accept4(listener.get_ref(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) {
                Ok(socket) => start(socket, &handler, &ending),
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(errno) => {
                    handler.metrics.refuse("accept_error");
                    tracing::error!(error = %errno, "accept a connection");
                    sleep(SHORTAGE).await;
                    break;
                }
            }
        }
        drop(ready);
        tokio::task::yield_now().await;
    }
}

/// Have the event loop tell when `fd` is readable. `T` is [`OwnedFd`] or a borrow of one.
#[allow(unsafe_code, reason = "tokio cannot tell that a type keeps its descriptor open")]
fn watch_readable<T: AsRawFd + AsFd>(fd: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: AsFd promises an open descriptor for as long as the value lives, which AsyncFd owns; both traits name the
    // same descriptor for the owned and borrowed types of std.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

fn start(socket: OwnedFd, handler: &Arc<Handler>, ending: &watch::Receiver<bool>) {
    let open = &handler.metrics.connections;
    let admitted = if open.get() < CONNECTIONS { admit(&socket) } else { Err(Refusal::Connections) };
    if let Err(refusal) = admitted {
        handler.metrics.refuse(refusal.reason());
        tracing::warn!(reason = refusal.reason(), error = %refusal, "refused a peer");
        return;
    }
    let connection = Connection::new(socket, open.clone());
    let (handler, ending) = (Arc::clone(handler), ending.clone());
    tokio::spawn(async move { session::serve(connection, &handler, ending).await });
}

/// Take notices for ever.
///
/// # Errors
/// Those of registering the socket with the event loop.
pub(crate) async fn take_notices(socket: OwnedFd, handler: Arc<Handler>) -> io::Result<()> {
    let socket = watch_readable(socket)?;
    loop {
        let mut ready = socket.readable().await?;
        for _ in 0..TURN {
            if take_notice(socket.get_ref(), &handler).is_none() {
                ready.clear_ready();
                break;
            }
        }
        drop(ready);
        tokio::task::yield_now().await;
    }
}

/// Take one notice, whatever it is; nothing when there is none.
fn take_notice(socket: &OwnedFd, handler: &Handler) -> Option<()> {
    let refuse = |reason: &'static str, error: &dyn std::fmt::Display| {
        handler.metrics.refuse(reason);
        tracing::warn!(reason, %error, "refused a notice");
    };
    match frame::receive(socket) {
        Ok(frame) => match Notice::decode(&frame.bytes) {
            Ok(notice) if handler.versions.overlaps(notice.protocol) => handler.notice(&notice),
            Ok(_) => refuse("protocol_versions", &"the plugin is more than one release apart"),
            Err(error) => refuse("malformed", &error),
        },
        Err(FrameError::Io(Errno::EAGAIN)) => return None,
        // An empty datagram, or one that is too long, stays in the queue until it is received in some length.
        Err(error @ (FrameError::Closed | FrameError::TooLong(_))) => {
            let _ = recv(socket.as_raw_fd(), &mut [0u8; 1], MsgFlags::MSG_DONTWAIT);
            refuse("malformed", &error);
        }
        Err(error) => refuse("receive_error", &error),
    }
    Some(())
}
