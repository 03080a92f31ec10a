// SPDX-License-Identifier: Apache-2.0
//! Who serves the public names: one agent at a time, the newest that works.
//!
//! An agent takes the names once it could answer an ADD, which it tries on its own netns each time before it takes them.
//! While it holds them it sleeps until the run directory changes. An agent that finds them taken stands by: it goes on with what it has accepted, asks the other one four times a second
//! whether it is alive and could answer an ADD, and takes them back at the first question without such an answer. Both
//! then serve whoever connected to them, so that being wrong about it costs nothing.
//!
//! [`Role`] decides, without I/O; [`run`] is the thread that looks, asks and renames. It is a thread so that it goes on
//! whatever the event loop does.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent_api::{Answer, ExchangeError, Operation, Outcome, Request, Sandbox, Versions, exchange};
use cni::Code;

use super::changes::Changes;
use super::self_test;
use super::socket::{Holder, Names};

/// Pause between two looks of an agent that does not hold the names, or cannot be told of a change.
const PERIOD: Duration = Duration::from_millis(250);
/// How long the other agent may take to answer. With [`PERIOD`] before it, an agent that dies or hangs is replaced
/// after 550 ms, and one that dies just after it took the names after 800 ms.
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// Pause after the names could not be taken.
const REFUSED_PERIOD: Duration = Duration::from_secs(1);

/// What this agent is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It has never held the names.
    Newcomer,
    /// It holds them.
    Holder,
    /// It holds the requests, and another agent has taken the notices only.
    Torn,
    /// Another agent holds them.
    Standby,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Look again later.
    Wait,
    /// Ask the holder whether it is alive.
    Probe,
    /// Take the names.
    Take,
}

impl Role {
    /// What to do after a look at the names.
    pub(crate) fn see(&mut self, holder: Holder) -> Action {
        let (next, action) = match (*self, holder) {
            (Self::Newcomer, _) | (_, Holder::Nobody) => (*self, Action::Take),
            (_, Holder::Us) => (Self::Holder, Action::Wait),
            // One look apart: the other agent died between its renames.
            (Self::Torn, Holder::Torn) => (Self::Torn, Action::Take),
            (_, Holder::Torn) => (Self::Torn, Action::Wait),
            (_, Holder::Other) => (Self::Standby, Action::Probe),
        };
        *self = next;
        action
    }

    /// What to do after a question.
    pub(crate) fn probed(alive: bool) -> Action {
        if alive { Action::Wait } else { Action::Take }
    }

    /// The names were taken.
    pub(crate) fn took(&mut self) {
        *self = Self::Holder;
    }
}

/// The names cannot be taken any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "take the socket: this agent's own sockets were removed from the run directory; only a restart makes new ones"
)]
pub(crate) struct Lost(#[source] io::Error);

/// Hold the names or stand by until `ending`. `backed` is told at every look why neither this agent, nor one that
/// this one would replace, answers the plugin; nothing when one does.
///
/// # Errors
/// [`Lost`].
pub(crate) fn run(
    names: &Names,
    versions: Versions,
    ending: &AtomicBool,
    held: impl Fn(bool),
    backed: impl Fn(Option<&str>),
) -> Result<(), Lost> {
    let mut role = Role::Newcomer;
    let mut told = None;
    // Before the first look: what changes after it causes an event.
    let mut changes = Changes::of(names.public().parent().unwrap_or(Path::new("/")));
    while !ending.load(Ordering::Acquire) {
        let before = role;
        let mut action = role.see(names.holder());
        if action == Action::Probe {
            action = Role::probed(alive(names.public(), versions));
        }
        let mut unfit = None;
        if action == Action::Take && !ending.load(Ordering::Acquire) {
            unfit = take(names, &mut role)?;
        }
        backed(unfit.as_deref());
        held(unfit.is_none() && matches!(role, Role::Holder | Role::Torn));
        if role == Role::Standby && before != Role::Standby {
            tracing::info!(socket = %names.public().display(), "another agent took the socket; standing by");
        }
        // Once for each change: it is tried every second.
        if let Some(error) = unfit.as_ref().filter(|_| told != unfit) {
            tracing::error!(socket = %names.public().display(), error, "cannot serve the plugin; trying again");
        }
        match role {
            _ if unfit.is_some() => thread::sleep(REFUSED_PERIOD),
            Role::Holder => changes.wait(PERIOD),
            _ => thread::sleep(PERIOD),
        }
        told = unfit;
    }
    Ok(())
}

/// Take the names. What comes back is why not, for now.
fn take(names: &Names, role: &mut Role) -> Result<Option<String>, Lost> {
    if let Err(error) = self_test::run() {
        return Ok(Some(error.to_string()));
    }
    match names.take() {
        Ok(()) => {
            tracing::info!(socket = %names.public().display(), before = ?role, "took the socket");
            role.took();
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Lost(error)),
        Err(error) => Ok(Some(format!("take the socket: {error}"))),
    }
}

/// Whether the holder answers, and could answer an ADD.
fn alive(public: &Path, versions: Versions) -> bool {
    let request = Request {
        protocol: versions,
        operation: Operation::Ping,
        sandbox: Sandbox::default(),
        annotations: None,
        environment: Default::default(),
        addresses: Vec::new(),
        wait_ms: PROBE_TIMEOUT.as_millis() as u64,
    };
    match exchange(public, &request, &[], Instant::now() + PROBE_TIMEOUT) {
        Ok(answer) if serves(&answer) => true,
        Ok(answer) => {
            tracing::warn!(error = answer.message, "the agent that holds the socket cannot answer an ADD");
            false
        }
        // A third agent took it just now, and could answer then.
        Err(ExchangeError::Replaced) => true,
        Err(error) => {
            tracing::warn!(%error, "the agent that holds the socket does not answer");
            false
        }
    }
}

/// One that is too busy or of too different a release is alive all the same; one that the kernel refuses to talk to is
/// of no use.
fn serves(answer: &Answer) -> bool {
    answer.outcome != Outcome::Fail(Code::RulesNotApplied.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_takes_the_names_whoever_has_them() {
        for holder in [Holder::Nobody, Holder::Other, Holder::Torn] {
            assert_eq!(Role::Newcomer.see(holder), Action::Take);
        }
    }

    #[test]
    fn a_failed_attempt_to_take_them_is_repeated() {
        let mut role = Role::Newcomer;
        assert_eq!((role.see(Holder::Other), role), (Action::Take, Role::Newcomer));
        assert_eq!(role.see(Holder::Other), Action::Take);
    }

    #[test]
    fn a_holder_that_lost_them_stands_by_and_asks_at_every_look() {
        let mut role = Role::Holder;
        assert_eq!(role.see(Holder::Us), Action::Wait);
        for _ in 0..2 {
            assert_eq!((role.see(Holder::Other), role), (Action::Probe, Role::Standby));
        }
        assert_eq!(Role::probed(true), Action::Wait);
    }

    #[test]
    fn a_standby_takes_them_back_from_a_silent_holder_or_from_nobody() {
        let mut role = Role::Standby;
        assert_eq!(Role::probed(false), Action::Take);
        assert_eq!(role.see(Holder::Nobody), Action::Take);
        role.took();
        assert_eq!((role.see(Holder::Us), role), (Action::Wait, Role::Holder));
    }

    #[test]
    fn names_torn_apart_are_taken_back_at_the_second_look() {
        let mut role = Role::Holder;
        assert_eq!(role.see(Holder::Torn), Action::Wait);
        assert_eq!(role.see(Holder::Torn), Action::Take);
        let mut role = Role::Holder;
        assert_eq!(role.see(Holder::Torn), Action::Wait);
        assert_eq!((role.see(Holder::Other), role), (Action::Probe, Role::Standby));
    }

    #[test]
    fn a_holder_that_the_kernel_refuses_is_replaced_and_a_busy_or_distant_one_is_not() {
        let answer = |outcome| Answer {
            protocol: agent_api::PROTOCOL,
            outcome,
            reason: String::new(),
            message: String::new(),
        };
        for outcome in [Outcome::Done, Outcome::Retry, Outcome::Fail(Code::Refused.number())] {
            assert!(serves(&answer(outcome)), "{outcome:?}");
        }
        assert!(!serves(&answer(Outcome::Fail(Code::RulesNotApplied.number()))));
    }
}
