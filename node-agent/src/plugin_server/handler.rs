// SPDX-License-Identifier: Apache-2.0
//! From a request to its answer: decide here, then let a thread of the pool do the work and answer.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::netns::NetnsId;
use agent_api::{Notice, NoticeKind, Operation, PassReason, Request, Sandbox, Versions};
use redirect::{Config, Decision, Ipv6Decision, Pod, Reason, decide};
use tokio::time::Instant;

use super::descriptors::{Descriptors, verify};
use super::failure::Failure;
use super::program::{Found, LO_WAIT, Sandboxed, Wanted};
use super::recent::{Event, Verb};
use super::records::Records;
use super::reply::{Connection, Reply};
use super::self_test;
use super::session::Refusal;
use crate::observability::events::Events;
use crate::observability::lines::POD;
use crate::observability::metrics::Metrics;
use crate::pods::{Absent, Key, Known, PodSource};
use crate::policy::{Bypass, Mode, Policy};
use crate::pool::{Closer, Job, Pool};

/// How long an ADD waits for its pod to become known.
pub(crate) const POD_WAIT: Duration = Duration::from_secs(2);

/// All that answering needs.
pub(crate) struct Handler {
    /// What this agent speaks.
    pub(crate) versions: Versions,
    /// The agent's own netns, which is never programmed.
    pub(crate) own_netns: NetnsId,
    /// Where pods are known from.
    pub(crate) pods: Arc<dyn PodSource>,
    /// Where jobs run.
    pub(crate) pool: Pool,
    /// Where they wait for `lo`, so that no other has to wait with them.
    pub(crate) late: Pool,
    /// Where descriptors are closed.
    pub(crate) closer: Closer,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// What the settings say about pods.
    pub(crate) policy: Policy,
    /// Where pods are told of.
    pub(crate) events: Events,
    /// Which sandboxes were redirected.
    pub(crate) records: Arc<Mutex<Records>>,
}

/// What came with a request and was not handed on: to be closed after the answer, by another thread.
struct Left {
    fds: Vec<OwnedFd>,
    descriptors: Option<Descriptors>,
}

/// What is left to do for an answer.
enum Work {
    /// Nothing.
    Answer(&'static str),
    /// Show that the pool is alive, and that the kernel talks to it.
    Ping,
    /// Write rules.
    Add(Box<Wanted>, Descriptors),
    /// The same, once `lo` is up.
    AddLate(Box<Wanted>, Sandboxed, Ipv6Decision),
    /// Compare rules; whether there must be any.
    Check(Descriptors, bool),
}

/// What an ADD is to do.
enum Decided {
    /// Nothing, for this reason.
    Pass(&'static str),
    /// Write these rules.
    Redirect(Box<Wanted>),
}

/// [`Work`] with the answer that it ends in.
struct Exchange {
    work: Work,
    end: End,
}

/// What answers, and what that needs.
struct End {
    reply: Reply,
    sandbox: Sandbox,
    /// How long the plugin waits; zero when it does not say.
    wait: Duration,
    closer: Closer,
    records: Arc<Mutex<Records>>,
    late: Pool,
}

impl Handler {
    /// Answer `request`, soon, from whatever thread.
    pub(crate) async fn handle(&self, connection: Connection, request: Request, fds: Vec<OwnedFd>) {
        let metrics = Arc::clone(&self.metrics);
        let sandbox = request.sandbox.clone();
        let mut reply = Reply::new(connection, self.versions, metrics, request.operation, sandbox);
        reply.records = Some(Arc::clone(&self.records));
        reply.events = Some(self.events.clone());
        let mut left = Left { fds, descriptors: None };
        match self.decide(&request, &mut left, &mut reply).await {
            Err(failure) => reply.send(Err(failure)),
            Ok(Work::Answer(reason)) => {
                record(&self.records, &request.sandbox, false, reason);
                reply.send(Ok(reason));
            }
            Ok(work) => {
                let end = End {
                    reply,
                    sandbox: request.sandbox,
                    wait: Duration::from_millis(request.wait_ms),
                    closer: self.closer.clone(),
                    records: Arc::clone(&self.records),
                    late: self.late.clone(),
                };
                self.pool.submit(Box::new(Exchange { work, end }));
            }
        }
        if !left.fds.is_empty() || left.descriptors.is_some() {
            self.closer.close(left);
        }
    }

    async fn decide(&self, request: &Request, left: &mut Left, reply: &mut Reply) -> Result<Work, Failure> {
        let (ours, theirs) = (self.versions, request.protocol);
        if !ours.overlaps(theirs) {
            return Err(Failure::Versions { ours, theirs });
        }
        match request.operation {
            Operation::Unknown => return Err(Failure::Operation { ours, theirs }),
            Operation::Ping => return Ok(Work::Ping),
            Operation::Add | Operation::Check => {}
        }
        let descriptors = verify(&mut left.fds, self.own_netns)?;
        reply.inode = descriptors.id.inode;
        if request.operation == Operation::Check {
            let redirected = lock(&self.records).redirected(&request.sandbox);
            return Ok(Work::Check(descriptors, redirected));
        }
        let decided = self.decide_add(request, reply).await;
        match if self.policy.mode == Mode::Observe { Ok(observe(request, decided)) } else { decided } {
            Ok(Decided::Redirect(wanted)) => Ok(Work::Add(wanted, descriptors)),
            Ok(Decided::Pass(reason)) => {
                left.descriptors = Some(descriptors);
                Ok(Work::Answer(reason))
            }
            Err(failure) => {
                left.descriptors = Some(descriptors);
                Err(failure)
            }
        }
    }

    async fn decide_add(&self, request: &Request, reply: &mut Reply) -> Result<Decided, Failure> {
        let Sandbox { namespace, name, uid, .. } = &request.sandbox;
        let key = Key { namespace, name, uid: uid.as_deref() };
        let deadline = Instant::now() + POD_WAIT;
        let unknown = |absent| Failure::Pod { pod: format!("{namespace}/{name}"), absent };
        let mut pod = match self.pods.find(key, deadline).await.map_err(unknown)? {
            Known::Pod(pod) => pod,
            Known::Static => return Ok(Decided::Pass("static_pod")),
        };
        if self.is_excluded(&pod, deadline).await.map_err(unknown)? {
            return Ok(Decided::Pass("excluded_by_selector"));
        }
        if let Some(annotations) = &request.annotations {
            if pod.differs(annotations) {
                tracing::info!(
                    pod.namespace = namespace,
                    pod.name = name,
                    "the annotations that the runtime handed over are not those that are known of the pod; the runtime's count"
                );
            }
            pod = Arc::new(Arc::unwrap_or_clone(pod).with_annotations(annotations.clone()));
        }
        match decide(&pod) {
            Decision::Pass(reason) => Ok(Decided::Pass(reason.code())),
            Decision::Redirect => self.settings(&pod, request, reply),
        }
    }

    async fn is_excluded(&self, pod: &Pod, deadline: Instant) -> Result<bool, Absent> {
        let Policy { excluded_pods, excluded_namespaces, .. } = &self.policy;
        if excluded_pods.matches(&pod.metadata.labels) {
            return Ok(true);
        }
        if excluded_namespaces.is_empty() {
            return Ok(false);
        }
        let labels = self.pods.namespace_labels(&pod.metadata.namespace, deadline).await?;
        Ok(excluded_namespaces.matches(&labels))
    }

    /// The settings of a pod that is to be redirected.
    fn settings(&self, pod: &Pod, request: &Request, reply: &mut Reply) -> Result<Decided, Failure> {
        if let Some(class) = self.policy.runtime_classes.of(pod) {
            if self.policy.runtime_class == Bypass::Refuse {
                return Err(Failure::RuntimeClass { class: class.to_owned() });
            }
            reply.runtime_class = Some(class.to_owned());
        }
        let config = Config::from_pod(pod, &request.environment)?;
        for warning in &config.warnings {
            tracing::warn!(
                pod.namespace = request.sandbox.namespace,
                pod.name = request.sandbox.name,
                "{warning}"
            );
        }
        let ipv6_policy = config.ipv6_policy.unwrap_or(self.policy.ipv6);
        let addresses = request.addresses.clone();
        Ok(Decided::Redirect(Box::new(Wanted { config, ipv6_policy, addresses })))
    }

    /// Take note of what the plugin did without asking.
    pub(crate) fn notice(&self, notice: &Notice) {
        let (kind, reason) = match notice.kind {
            NoticeKind::Del => ("del", ""),
            NoticeKind::Pass => ("pass", pass_reason(&notice.reason)),
            NoticeKind::Unknown => ("unknown", ""),
        };
        self.metrics.notice(kind, reason);
        let event = Event::now("told", reason, "");
        let Sandbox { container_id, namespace, name, uid, .. } = &notice.sandbox;
        if notice.kind == NoticeKind::Pass {
            record(&self.records, &notice.sandbox, false, reason);
            lock(&self.records).see(&notice.sandbox, Verb::Add(0, None), event);
            let uid = uid.as_deref().unwrap_or_default();
            tracing::info!(
                target: POD,
                op = "add",
                result = "told",
                reason,
                pod.namespace = namespace,
                pod.name = name,
                pod.uid = uid,
                container_id,
                "plugin did without the agent"
            );
            return;
        }
        if notice.kind == NoticeKind::Del {
            let mut records = lock(&self.records);
            records.remove(&notice.sandbox);
            records.see(&notice.sandbox, Verb::Del, event);
        }
        // Nothing was decided: not worth what a line costs a node, which is more than all else here.
        tracing::debug!(
            op = kind,
            pod.namespace = namespace,
            pod.name = name,
            container_id,
            "plugin told of it"
        );
    }
}

impl Job for Exchange {
    fn run(self: Box<Self>) {
        let Self { work, end } = *self;
        // It asks again, or has failed; what would be written now could be of a sandbox that is gone.
        if end.reply.is_left() || !end.wait.is_zero() && end.reply.age() > end.wait {
            end.reply.give_up(&Refusal::GaveUp);
            return end.closer.close(work);
        }
        match work {
            Work::Answer(reason) => end.reply.send(Ok(reason)),
            Work::Ping => end.reply.send(self_test::run().map(|()| "alive")),
            Work::Check(descriptors, redirected) => match Sandboxed::new(descriptors) {
                Ok(mut sandboxed) => end.send(sandboxed.check(redirected), sandboxed),
                Err(failure) => end.reply.send(Err(failure)),
            },
            Work::Add(wanted, descriptors) => match Sandboxed::new(descriptors) {
                Ok(sandboxed) => end.look(wanted, sandboxed),
                Err(failure) => end.reply.send(Err(failure)),
            },
            Work::AddLate(wanted, sandboxed, ipv6) => end.wait_for_lo(wanted, sandboxed, ipv6),
        }
    }

    fn refuse(self: Box<Self>) {
        self.end.reply.send(Err(Failure::Busy));
        self.end.closer.close(self.work);
    }
}

impl End {
    fn look(self, wanted: Box<Wanted>, mut sandboxed: Sandboxed) {
        match sandboxed.look(&wanted) {
            Ok(Found::IstioRules) => {
                let reason = Reason::RedirectedByIstio.code();
                record(&self.records, &self.sandbox, false, reason);
                self.send(Ok(reason), sandboxed);
            }
            Ok(Found::Clear { ipv6, lo_is_late: true }) => {
                let late = self.late.clone();
                late.submit(Box::new(Exchange { work: Work::AddLate(wanted, sandboxed, ipv6), end: self }));
            }
            Ok(Found::Clear { ipv6, lo_is_late: false }) => self.add(*wanted, sandboxed, ipv6),
            Err(failure) => self.send(Err(failure), sandboxed),
        }
    }

    fn wait_for_lo(self, wanted: Box<Wanted>, mut sandboxed: Sandboxed, ipv6: Ipv6Decision) {
        // From the request on: those that wait in the queue wait at the same time.
        let deadline = std::time::Instant::now() + LO_WAIT.saturating_sub(self.reply.age());
        match sandboxed.wait_for_lo(deadline) {
            Ok(()) => self.add(*wanted, sandboxed, ipv6),
            Err(failure) => self.send(Err(failure), sandboxed),
        }
    }

    fn add(mut self, wanted: Wanted, mut sandboxed: Sandboxed, ipv6: Ipv6Decision) {
        let result = sandboxed.add(wanted, ipv6);
        if let Ok((reason, rules)) = result {
            record(&self.records, &self.sandbox, true, reason);
            self.reply.written = Some((ipv6, rules));
        }
        self.send(result.map(|(reason, _)| reason), sandboxed);
    }

    /// Answer, then close.
    fn send(self, result: Result<&'static str, Failure>, sandboxed: Sandboxed) {
        self.reply.send(result);
        self.closer.close(sandboxed);
    }
}

/// A dry run: whatever was decided, the pod starts as it is.
fn observe(request: &Request, decided: Result<Decided, Failure>) -> Decided {
    let (would, error) = match decided {
        Ok(Decided::Pass(reason)) => return Decided::Pass(reason),
        Ok(Decided::Redirect(_)) => ("programmed", String::new()),
        Err(failure) => (failure.reason(), failure.to_string()),
    };
    tracing::info!(
        target: POD,
        reason = "observed",
        would,
        error,
        pod.namespace = request.sandbox.namespace,
        pod.name = request.sandbox.name,
        "left alone: the agent observes only"
    );
    Decided::Pass("observed")
}

/// Remember that the ADD of `sandbox` was decided, before it is answered: a pod that runs has a record always.
fn record(records: &Mutex<Records>, sandbox: &Sandbox, redirected: bool, reason: &'static str) {
    if let Err(error) = lock(records).insert(sandbox, redirected, reason) {
        tracing::warn!(
            %error,
            pod.namespace = sandbox.namespace,
            pod.name = sandbox.name,
            container_id = sandbox.container_id,
            "keep a record of the sandbox; after a restart of the agent it counts as never redirected"
        );
    }
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reason as one of those that we know: a peer's text never becomes a label.
fn pass_reason(text: &str) -> &'static str {
    PassReason::ALL.into_iter().map(PassReason::code).find(|code| *code == text).unwrap_or("other")
}
