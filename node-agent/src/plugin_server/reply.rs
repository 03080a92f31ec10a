// SPDX-License-Identifier: Apache-2.0
//! The one answer to one request, with its log line and its counters.
//!
//! Whoever holds a [`Reply`] owes the plugin an answer; dropping it, also by a panic, answers "defect".

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_api::frame::{self, FrameError};
use agent_api::{Answer, Operation, Outcome, Sandbox, Versions, fault_point};
use nix::sys::socket::{MsgFlags, recv};
use prometheus_client::metrics::gauge::Gauge;
use redirect::Ipv6Decision;

use super::failure::{Failure, op};
use super::recent::{Event, Verb};
use super::records::Records;
use super::session::Refusal;
use crate::observability::events::{Events, Said};
use crate::observability::lines::POD;
use crate::observability::metrics::Metrics;

/// What to do about IPv6 that goes past the proxy.
const IPV6_HINT: &str = "see annotation traffic.waylay.io/ipv6-policy";

/// The open connection of a plugin, counted.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// When it was accepted.
    pub(crate) since: Instant,
    open: Gauge,
}

/// An answer that is owed.
pub(crate) struct Reply {
    owed: Option<Connection>,
    versions: Versions,
    metrics: Arc<Metrics>,
    operation: Operation,
    sandbox: Sandbox,
    /// Inode of the pod's netns, 0 while unknown.
    pub(crate) inode: u64,
    /// Once rules are there: what is done with the pod's IPv6, and how many were written.
    pub(crate) written: Option<(Ipv6Decision, usize)>,
    /// The pod's runtime class, when its runtime does not heed the rules.
    pub(crate) runtime_class: Option<String>,
    /// Where pods are told of.
    pub(crate) events: Option<Events>,
    /// Where it is remembered what was answered.
    pub(crate) records: Option<Arc<Mutex<Records>>>,
}

impl Connection {
    /// Count `socket` as open.
    pub(crate) fn new(socket: OwnedFd, open: Gauge) -> Self {
        open.inc();
        Self { socket, since: Instant::now(), open }
    }

    /// The socket, non-blocking.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.open.dec();
    }
}

impl Reply {
    /// Owe an answer on `connection` to a request for `operation`.
    pub(crate) fn new(
        connection: Connection,
        versions: Versions,
        metrics: Arc<Metrics>,
        operation: Operation,
        sandbox: Sandbox,
    ) -> Self {
        Self {
            owed: Some(connection),
            versions,
            metrics,
            operation,
            sandbox,
            inode: 0,
            written: None,
            runtime_class: None,
            events: None,
            records: None,
        }
    }

    fn ipv6(&self) -> Option<Ipv6Decision> {
        self.written.map(|(ipv6, _)| ipv6)
    }

    /// Answer, then log and count.
    pub(crate) fn send(mut self, result: Result<&'static str, Failure>) {
        self.answer(&result);
    }

    /// How long ago the connection was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.owed.as_ref().map(|connection| connection.since.elapsed()).unwrap_or_default()
    }

    /// Whether the plugin has hung up: it has asked another agent, or was killed.
    pub(crate) fn is_left(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let peek = |connection: &Connection| recv(connection.socket.as_raw_fd(), &mut [0], flags);
        self.owed.as_ref().is_some_and(|connection| peek(connection) == Ok(0))
    }

    /// Hang up without an answer: nobody waits for it.
    pub(crate) fn give_up(mut self, refusal: &Refusal) {
        self.owed = None;
        self.metrics.refuse(refusal.reason());
        tracing::warn!(
            op = op(self.operation),
            reason = refusal.reason(),
            pod.namespace = self.sandbox.namespace,
            pod.name = self.sandbox.name,
            container_id = self.sandbox.container_id,
            "{refusal}"
        );
    }

    fn answer(&mut self, result: &Result<&'static str, Failure>) {
        let Some(connection) = self.owed.take() else { return };
        let (outcome, reason, message) = match result {
            Ok(reason) => (Outcome::Done, *reason, String::new()),
            Err(failure) => (failure.outcome(), failure.reason(), failure.to_string()),
        };
        let answer = Answer { protocol: self.versions, outcome, reason: reason.to_owned(), message };
        if self.operation == Operation::Ping {
            // Asked four times a second by the agent that stands by.
            let _ = frame::send(connection.socket(), &answer.encode(), &[]);
            return;
        }
        fault_point("agent:answer:send:before");
        let sent = frame::send(connection.socket(), &answer.encode(), &[]);
        fault_point("agent:answer:send:after");
        let elapsed = connection.since.elapsed();
        // The plugin waits for the answer, not for the log.
        drop(connection);
        self.count(&answer, reason, elapsed, result.as_ref().is_err_and(Failure::is_refusal));
        self.remember(&answer, reason);
        self.log(&answer, elapsed, sent.err().as_ref());
        self.tell(&answer, reason);
    }

    /// Tell whoever looks at the pod what they must know.
    fn tell(&self, answer: &Answer, reason: &'static str) {
        if self.operation != Operation::Add {
            return;
        }
        if matches!(reason, "invalid_annotation" | "runtime_class_bypass") {
            self.say(reason, answer.message.clone());
        }
        if answer.outcome != Outcome::Done {
            return;
        }
        if self.ipv6() == Some(Ipv6Decision::Bypass) {
            let reason = Ipv6Decision::Bypass.code();
            self.metrics.bypass(reason);
            self.say(reason, format!("the pod has an IPv6 address, and its proxy does not serve IPv6, which goes past it: {IPV6_HINT}"));
        }
        if let Some(class) = &self.runtime_class {
            self.metrics.bypass("runtime_class_bypass");
            let text = format!(
                "runtime class {class} does not heed the rules of the pod's network namespace: its traffic goes past its proxy"
            );
            tracing::warn!(
                reason = "runtime_class_bypass",
                pod.namespace = self.sandbox.namespace,
                pod.name = self.sandbox.name,
                "{text}"
            );
            self.say("runtime_class_bypass", text);
        }
    }

    fn say(&self, reason: &'static str, message: String) {
        let Sandbox { namespace, name, uid, .. } = &self.sandbox;
        if let Some(events) = &self.events {
            let uid = uid.clone().unwrap_or_default();
            events.say(Said { namespace: namespace.clone(), name: name.clone(), uid, reason, message });
        }
    }

    fn count(&self, answer: &Answer, reason: &'static str, elapsed: Duration, refused: bool) {
        let result = result(answer.outcome);
        match self.operation {
            Operation::Add => self.metrics.add(result, reason, elapsed),
            Operation::Check => self.metrics.check(result, reason),
            Operation::Ping | Operation::Unknown => {}
        }
        if let Some((ipv6, rules)) = self.written {
            self.metrics.ipv6(ipv6.code());
            self.metrics.rules_written.inc_by(u64::try_from(rules).unwrap_or(u64::MAX));
        }
        if refused {
            self.metrics.refuse(reason);
        }
    }

    fn remember(&self, answer: &Answer, reason: &'static str) {
        let verb = match self.operation {
            Operation::Add => Verb::Add(self.inode, self.ipv6().map(Ipv6Decision::code)),
            Operation::Check => Verb::Check,
            Operation::Ping | Operation::Unknown => return,
        };
        if let Some(records) = &self.records {
            let event = Event::now(result(answer.outcome), reason, &answer.message);
            records.lock().unwrap_or_else(PoisonError::into_inner).see(&self.sandbox, verb, event);
        }
    }

    fn log(&self, answer: &Answer, elapsed: Duration, unsent: Option<&FrameError>) {
        macro_rules! line {
            ($level:ident, $text:literal $(, $field:tt)*) => {
                tracing::$level!(
                    target: POD,
                    op = op(self.operation),
                    result = result(answer.outcome),
                    reason = answer.reason,
                    pod.namespace = self.sandbox.namespace,
                    pod.name = self.sandbox.name,
                    pod.uid = self.sandbox.uid.as_deref().unwrap_or_default(),
                    container_id = self.sandbox.container_id,
                    netns.inode = self.inode,
                    ipv6 = self.ipv6().map(Ipv6Decision::code),
                    elapsed_ms = elapsed.as_micros() as f64 / 1000.0,
                    $($field,)*
                    $text
                )
            };
        }
        let error = answer.message.as_str();
        match (unsent.map(ToString::to_string), answer.outcome) {
            (Some(unsent), _) => line!(warn, "answered, but the plugin is gone", unsent),
            (None, Outcome::Done) if self.operation == Operation::Check => line!(debug, "checked"),
            (None, Outcome::Done) if self.ipv6() == Some(Ipv6Decision::Bypass) => {
                line!(warn, "answered; the pod's IPv6 goes past its proxy")
            }
            (None, Outcome::Done) => line!(info, "answered"),
            (None, _) => line!(warn, "failed", error),
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.answer(&Err(Failure::Internal));
    }
}

fn result(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Retry => "retry",
        Outcome::Fail(_) => "fail",
    }
}
