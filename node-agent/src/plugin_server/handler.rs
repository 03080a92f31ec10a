// SPDX-License-Identifier: Apache-2.0
//! From a request to its answer: decide here, then let a thread of the pool do the work and answer.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::netns::NetnsId;
use agent_api::{Notice, NoticeKind, Operation, PassReason, Request, Sandbox, Versions};
use redirect::{Config, Decision, Ipv6Policy, decide};
use tokio::time::Instant;

use super::descriptors::{Descriptors, verify};
use super::failure::Failure;
use super::program::{Sandboxed, Wanted};
use super::recent::{Event, Verb};
use super::records::Records;
use super::reply::{Connection, Reply};
use super::self_test;
use super::session::Refusal;
use crate::observability::metrics::Metrics;
use crate::pods::{Key, Known, PodSource};
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
    /// Where descriptors are closed.
    pub(crate) closer: Closer,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// What is done with IPv6 that a proxy does not serve, unless the pod says otherwise.
    pub(crate) ipv6_policy: Ipv6Policy,
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
    reply: Reply,
    attachment: String,
    /// How long the plugin waits; zero when it does not say.
    wait: Duration,
    closer: Closer,
    records: Arc<Mutex<Records>>,
}

impl Handler {
    /// Answer `request`, soon, from whatever thread.
    pub(crate) async fn handle(&self, connection: Connection, request: Request, fds: Vec<OwnedFd>) {
        let metrics = Arc::clone(&self.metrics);
        let sandbox = request.sandbox.clone();
        let mut reply = Reply::new(connection, self.versions, metrics, request.operation, sandbox);
        reply.records = Some(Arc::clone(&self.records));
        let mut left = Left { fds, descriptors: None };
        match self.decide(&request, &mut left, &mut reply.inode).await {
            Err(failure) => reply.send(Err(failure)),
            Ok(Work::Answer(reason)) => reply.send(Ok(reason)),
            Ok(work) => {
                let (closer, records) = (self.closer.clone(), Arc::clone(&self.records));
                let wait = Duration::from_millis(request.wait_ms);
                let attachment = attachment(&request.sandbox);
                self.pool.submit(Box::new(Exchange { work, reply, attachment, wait, closer, records }));
            }
        }
        if !left.fds.is_empty() || left.descriptors.is_some() {
            self.closer.close(left);
        }
    }

    async fn decide(&self, request: &Request, left: &mut Left, inode: &mut u64) -> Result<Work, Failure> {
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
        *inode = descriptors.id.inode;
        if request.operation == Operation::Check {
            let redirected = lock(&self.records).contains(&attachment(&request.sandbox));
            return Ok(Work::Check(descriptors, redirected));
        }
        match self.decide_add(request).await {
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

    async fn decide_add(&self, request: &Request) -> Result<Decided, Failure> {
        let Sandbox { namespace, name, uid, .. } = &request.sandbox;
        let key = Key { namespace, name, uid: uid.as_deref() };
        let known = self
            .pods
            .find(key, Instant::now() + POD_WAIT)
            .await
            .map_err(|absent| Failure::Pod { pod: format!("{namespace}/{name}"), absent })?;
        let mut pod = match known {
            Known::Pod(pod) => pod,
            Known::Static => return Ok(Decided::Pass("static_pod")),
        };
        if let Some(annotations) = request.annotations.clone() {
            pod = Arc::new(Arc::unwrap_or_clone(pod).with_annotations(annotations));
        }
        match decide(&pod) {
            Decision::Pass(reason) => Ok(Decided::Pass(reason.code())),
            Decision::Redirect => {
                let config = Config::from_pod(&pod, &request.environment)?;
                for warning in &config.warnings {
                    tracing::warn!(pod.namespace = namespace, pod.name = name, "{warning}");
                }
                let ipv6_policy = config.ipv6_policy.unwrap_or(self.ipv6_policy);
                let addresses = request.addresses.clone();
                Ok(Decided::Redirect(Box::new(Wanted { config, ipv6_policy, addresses })))
            }
        }
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
        match notice.kind {
            NoticeKind::Del => {
                let mut records = lock(&self.records);
                records.remove(&attachment(&notice.sandbox));
                records.see(&notice.sandbox, Verb::Del, event);
            }
            NoticeKind::Pass => lock(&self.records).see(&notice.sandbox, Verb::Add(0, None), event),
            NoticeKind::Unknown => {}
        }
        tracing::info!(
            op = if notice.kind == NoticeKind::Pass { "add" } else { kind },
            result = "told",
            reason,
            pod.namespace = notice.sandbox.namespace,
            pod.name = notice.sandbox.name,
            pod.uid = notice.sandbox.uid.as_deref().unwrap_or_default(),
            container_id = notice.sandbox.container_id,
            "plugin did without the agent"
        );
    }
}

impl Job for Exchange {
    fn run(self: Box<Self>) {
        let Self { work, mut reply, attachment, wait, closer, records } = *self;
        // It asks again, or has failed; what would be written now could be of a sandbox that is gone.
        if !wait.is_zero() && reply.age() > wait {
            reply.give_up(&Refusal::GaveUp);
            return closer.close(work);
        }
        let (descriptors, wanted, redirected) = match work {
            Work::Answer(reason) => return reply.send(Ok(reason)),
            Work::Ping => return reply.send(self_test::run().map(|()| "alive")),
            Work::Add(wanted, descriptors) => (descriptors, Some(wanted), true),
            Work::Check(descriptors, redirected) => (descriptors, None, redirected),
        };
        let mut sandboxed = match Sandboxed::new(descriptors) {
            Ok(sandboxed) => sandboxed,
            Err(failure) => return reply.send(Err(failure)),
        };
        let result = match wanted {
            Some(wanted) => sandboxed.add(*wanted).map(|added| {
                lock(&records).insert(&attachment);
                reply.ipv6 = Some(added.ipv6);
                added.reason
            }),
            None => sandboxed.check(redirected),
        };
        reply.send(result);
        closer.close(sandboxed);
    }

    fn refuse(self: Box<Self>) {
        self.reply.send(Err(Failure::Busy));
        self.closer.close(self.work);
    }
}

/// What ADD and DEL come in pairs for: several networks may run the plugin in one sandbox.
fn attachment(sandbox: &Sandbox) -> String {
    format!("{} {}", sandbox.container_id, sandbox.ifname)
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reason as one of those that we know: a peer's text never becomes a label.
fn pass_reason(text: &str) -> &'static str {
    PassReason::ALL.into_iter().map(PassReason::code).find(|code| *code == text).unwrap_or("other")
}
