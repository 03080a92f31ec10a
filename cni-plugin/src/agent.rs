// SPDX-License-Identifier: Apache-2.0
//! Talking to the agent: a question until it is answered or the time is over, and a notice that nobody waits for. Owns
//! when to ask again; never says what a missing answer means for a verb.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::frame::FrameError;
use agent_api::{Answer, ExchangeError, Notice, Outcome, PROTOCOL, Request, exchange, path};
use cni::{Code, Error};
use nix::errno::Errno;

/// Longest wait for one answer, when no other agent takes the socket meanwhile: that ends an exchange at once. Asking anew
/// is harmless, because ADD and CHECK are idempotent.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Shortest and longest pause between two attempts. A kernel without a listener answers in microseconds, and a node
/// starts many pods at once: the pauses grow and are spread.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Why there is no answer.
pub(crate) enum NoAnswer {
    /// Asking again cannot help.
    Final(Error),
    /// The time is over; what happened last.
    TimeOver(String),
}

/// Ask until there is an answer that settles the matter, for at most `limit`.
pub(crate) fn ask(
    run_dir: &Path,
    request: &mut Request,
    fds: &[BorrowedFd<'_>],
    limit: Duration,
) -> Result<Answer, NoAnswer> {
    let socket = path::requests(run_dir);
    let until = Instant::now() + limit;
    let mut pauses = Pauses::new();
    loop {
        let attempt = until.min(Instant::now() + ATTEMPT);
        let wait = attempt.saturating_duration_since(Instant::now());
        request.wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let trouble = match exchange(&socket, request, fds, attempt) {
            Ok(answer) if !PROTOCOL.overlaps(answer.protocol) => format!(
                "it speaks protocol {} to {}, this plugin {} to {}",
                answer.protocol.oldest, answer.protocol.current, PROTOCOL.oldest, PROTOCOL.current
            ),
            Ok(answer) if answer.outcome == Outcome::Retry => said(answer),
            Ok(answer) => return Ok(answer),
            Err(error) => describe(run_dir, error).map_err(NoAnswer::Final)?,
        };
        let pause = pauses.next();
        if Instant::now() + pause >= until {
            return Err(NoAnswer::TimeOver(trouble));
        }
        std::thread::sleep(pause);
    }
}

/// The agent's text, or at least its reason code.
pub(crate) fn said(answer: Answer) -> String {
    if answer.message.is_empty() { answer.reason } else { answer.message }
}

/// What a failed exchange looks like to a person, or the error when it can never succeed.
fn describe(run_dir: &Path, error: ExchangeError) -> Result<String, Error> {
    match error {
        ExchangeError::Send(FrameError::TooLong(_) | FrameError::Io(Errno::EMSGSIZE)) => Err(Error::new(
            Code::RequestTooLarge,
            "the pod's traffic.sidecar.istio.io annotations are too large for one message to the agent, which takes \
             512 KiB: shorten the lists",
        )),
        ExchangeError::Socket(Errno::ENAMETOOLONG) => Err(Error::new(
            Code::InvalidConfig,
            &format!(
                "network config has cni_agent_run_dir \"{}\": must be shorter than 90 bytes, because a socket in it has \
                 a path of at most 107; correct the istio-cni entry of the node's CNI configuration",
                run_dir.display()
            ),
        )),
        ExchangeError::Receive(FrameError::Io(Errno::EAGAIN)) => {
            Ok("it took the request and gave no answer".into())
        }
        other => Ok(other.to_string()),
    }
}

/// Tell the agent, without waiting; whether it was told. When it is down or its queue is full, it does not learn of it.
pub(crate) fn tell(run_dir: &Path, notice: &Notice) -> bool {
    let Ok(socket) = UnixDatagram::unbound() else { return false };
    socket.set_nonblocking(true).is_ok() && socket.send_to(&notice.encode(), path::notices(run_dir)).is_ok()
}

/// Growing, spread pauses.
struct Pauses {
    ceiling: Duration,
    random: u64,
}

impl Pauses {
    fn new() -> Self {
        // Spreading needs different numbers in different processes, not good ones.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let seed = u64::from(std::process::id()) << 32 ^ u64::from(now.subsec_nanos());
        Self { ceiling: PAUSE_MIN, random: seed | 1 }
    }

    fn next(&mut self) -> Duration {
        self.ceiling = (self.ceiling * 2).min(PAUSE_MAX);
        // xorshift64 (Marsaglia): never zero when it did not begin so.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let span = (self.ceiling - PAUSE_MIN).as_micros() as u64;
        PAUSE_MIN + Duration::from_micros(self.random % (span + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_between_10_and_250_ms_and_differ() {
        let mut pauses = Pauses::new();
        let taken: Vec<Duration> = (0..200).map(|_| pauses.next()).collect();
        assert!(taken.iter().all(|pause| (PAUSE_MIN..=PAUSE_MAX).contains(pause)), "{taken:?}");
        assert!(taken[0] <= 2 * PAUSE_MIN, "the first pause is short: {taken:?}");
        assert!(
            taken.iter().any(|pause| *pause > PAUSE_MAX / 2)
                && taken.iter().any(|pause| *pause < PAUSE_MAX / 2)
        );
    }
}
