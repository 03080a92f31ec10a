// SPDX-License-Identifier: Apache-2.0
//! One connection: who is it, what does it ask. One request each, then one answer.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use agent_api::frame::{self, Frame, FrameError};
use agent_api::{Operation, Request, Sandbox, fault_point};
use nix::errno::Errno;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use tokio::sync::watch;
use tokio::time::sleep;

use super::failure::Failure;
use super::handler::Handler;
use super::reply::{Connection, Reply};
use super::watch_readable;

/// How long a peer may take for its request.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// Not root.
    #[error("the peer's uid is {0}, not 0")]
    Uid(u32),
    /// The kernel does not say who it is.
    #[error("read the peer's credentials: {0}")]
    Credentials(Errno),
    /// More connections than the limit.
    #[error("too many connections are open")]
    Connections,
    /// Nothing came.
    #[error("no request within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// It hung up without a request.
    #[error("closed before a request")]
    Closed,
    /// The agent ends, and nothing was asked yet.
    #[error("the agent ends")]
    Shutdown,
    /// The request waited in the queue for longer than the plugin waits for an answer.
    #[error("the plugin gave up before the work began")]
    GaveUp,
    /// The message is longer than any request.
    #[error("{0}")]
    TooLong(FrameError),
    /// Another error of the socket.
    #[error("receive the request: {0}")]
    Receive(FrameError),
    /// Not a request.
    #[error("{0}")]
    Malformed(#[from] agent_api::DecodeError),
}

impl Refusal {
    /// The reason code.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Uid(_) | Self::Credentials(_) => "peer_uid",
            Self::Connections => "too_many_connections",
            Self::Timeout => "timeout",
            Self::Closed => "closed_early",
            Self::Shutdown => "shutdown",
            Self::GaveUp => "plugin_gave_up",
            Self::TooLong(_) => "too_long",
            Self::Receive(_) => "receive_error",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// The peer must be root: nobody else may have the rules of a netns written.
///
/// # Errors
/// [`Refusal`] when it is not, or nobody knows.
pub(crate) fn admit(socket: &OwnedFd) -> Result<(), Refusal> {
    match getsockopt(socket, PeerCredentials) {
        Ok(credentials) if credentials.uid() == 0 => Ok(()),
        Ok(credentials) => Err(Refusal::Uid(credentials.uid())),
        Err(errno) => Err(Refusal::Credentials(errno)),
    }
}

/// Serve one connection to its end; `ending` becomes true when the agent ends.
pub(crate) async fn serve(connection: Connection, handler: &Handler, ending: watch::Receiver<bool>) {
    fault_point("agent:request:receive:before");
    let received = receive(&connection, ending).await;
    fault_point("agent:request:receive:after");
    let frame = match received {
        Ok(frame) => frame,
        Err(Refusal::Receive(FrameError::DescriptorsDenied)) => {
            // The bytes came, but cannot be believed without their descriptors; the plugin is told why.
            let metrics = Arc::clone(&handler.metrics);
            let nobody = Sandbox::default();
            return Reply::new(connection, handler.versions, metrics, Operation::Unknown, nobody)
                .send(Err(Failure::Frame(FrameError::DescriptorsDenied)));
        }
        Err(refusal) => return refuse(handler, &refusal),
    };
    match Request::decode(&frame.bytes) {
        Ok(request) => handler.handle(connection, request, frame.fds).await,
        Err(error) => {
            drop(connection);
            refuse(handler, &error.into());
            handler.closer.close(frame.fds);
        }
    }
}

fn refuse(handler: &Handler, refusal: &Refusal) {
    handler.metrics.refuse(refusal.reason());
    tracing::warn!(reason = refusal.reason(), error = %refusal, "refused a peer");
}

async fn receive(connection: &Connection, ending: watch::Receiver<bool>) -> Result<Frame, Refusal> {
    // Most plugins have sent by now: no need to ask epoll.
    let first = match frame::receive(connection.socket()) {
        Err(FrameError::Io(Errno::EAGAIN)) => wait(connection, ending).await?,
        first => first,
    };
    first.map_err(|error| match error {
        FrameError::Closed => Refusal::Closed,
        FrameError::TooLong(_) => Refusal::TooLong(error),
        error => Refusal::Receive(error),
    })
}

async fn wait(
    connection: &Connection,
    mut ending: watch::Receiver<bool>,
) -> Result<Result<Frame, FrameError>, Refusal> {
    let receive = |errno: std::io::Error| {
        let errno = Errno::from_raw(errno.raw_os_error().unwrap_or_default());
        Refusal::Receive(FrameError::Io(errno))
    };
    let socket = watch_readable(connection.socket().as_fd()).map_err(receive)?;
    let message = async {
        loop {
            let mut ready = socket.readable().await.map_err(receive)?;
            match frame::receive(connection.socket()) {
                Err(FrameError::Io(Errno::EAGAIN)) => ready.clear_ready(),
                received => return Ok(received),
            }
        }
    };
    tokio::select! {
        biased;
        message = message => message,
        () = sleep(REQUEST_TIMEOUT) => Err(Refusal::Timeout),
        _ = ending.wait_for(|ending| *ending) => Err(Refusal::Shutdown),
    }
}
