// SPDX-License-Identifier: Apache-2.0
//! From a request to its answer: decide here, then let a thread of the pool do the work and answer.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_api::netns::NetnsId;
use agent_api::{Notice, NoticeKind, Operation, PassReason, Request, Sandbox, Versions};
use redirect::{Config, Decision, decide};
use tokio::time::Instant;

use super::descriptors::{Descriptors, verify};
use super::failure::Failure;
use super::program::Sandboxed;
use super::records::Records;
use super::reply::{Connection, Reply};
use crate::observability::metrics::Metrics;
use crate::pods::{Key, PodSource};
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
    /// Which sandboxes were redirected.
    pub(crate) records: Arc<Mutex<Records>>,
}

/// What is left to do for an answer.
enum Work {
    /// Nothing.
    Answer(&'static str),
    /// Show that the pool is alive.
    Ping,
    /// Write rules.
    Add(Box<Config>, Descriptors),
    /// Compare rules; whether there must be any.
    Check(Descriptors, bool),
}

/// [`Work`] with the answer that it ends in.
struct Exchange {
    work: Work,
    reply: Reply,
    container_id: String,
    closer: Closer,
    records: Arc<Mutex<Records>>,
}

impl Handler {
    /// Answer `request`, soon, from whatever thread.
    pub(crate) async fn handle(&self, connection: Connection, request: Request, fds: Vec<OwnedFd>) {
        let metrics = Arc::clone(&self.metrics);
        let sandbox = request.sandbox.clone();
        let mut reply = Reply::new(connection, self.versions, metrics, request.operation, sandbox);
        match self.decide(request, fds, &mut reply.inode).await {
            Err(failure) => reply.send(Err(failure)),
            Ok((_, Work::Answer(reason))) => reply.send(Ok(reason)),
            Ok((Sandbox { container_id, .. }, work)) => {
                let (closer, records) = (self.closer.clone(), Arc::clone(&self.records));
                self.pool.submit(Box::new(Exchange { work, reply, container_id, closer, records }));
            }
        }
    }

    async fn decide(
        &self,
        request: Request,
        fds: Vec<OwnedFd>,
        inode: &mut u64,
    ) -> Result<(Sandbox, Work), Failure> {
        let (ours, theirs) = (self.versions, request.protocol);
        if !ours.overlaps(theirs) {
            return Err(Failure::Versions { ours, theirs });
        }
        let descriptors = || {
            let descriptors = verify(fds, self.own_netns)?;
            *inode = descriptors.id.inode;
            Ok::<_, Failure>(descriptors)
        };
        let work = match request.operation {
            Operation::Unknown => return Err(Failure::Operation { ours, theirs }),
            Operation::Ping => Work::Ping,
            Operation::Check => {
                let redirected = lock(&self.records).contains(&request.sandbox.container_id);
                Work::Check(descriptors()?, redirected)
            }
            Operation::Add => {
                let descriptors = descriptors()?;
                self.decide_add(&request, descriptors).await?
            }
        };
        Ok((request.sandbox, work))
    }

    async fn decide_add(&self, request: &Request, descriptors: Descriptors) -> Result<Work, Failure> {
        let Sandbox { namespace, name, uid, .. } = &request.sandbox;
        let key = Key { namespace, name, uid: uid.as_deref() };
        let mut pod = self
            .pods
            .find(key, Instant::now() + POD_WAIT)
            .await
            .map_err(|absent| Failure::Pod { pod: format!("{namespace}/{name}"), absent })?;
        if let Some(annotations) = request.annotations.clone().filter(|map| !map.is_empty()) {
            pod = Arc::new(Arc::unwrap_or_clone(pod).with_annotations(annotations));
        }
        match decide(&pod) {
            Decision::Pass(reason) => Ok(Work::Answer(reason.code())),
            Decision::Redirect => {
                let config = Config::from_pod(&pod, &request.environment)?;
                for warning in &config.warnings {
                    tracing::warn!(pod.namespace = namespace, pod.name = name, "{warning}");
                }
                Ok(Work::Add(Box::new(config), descriptors))
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
        if notice.kind == NoticeKind::Del {
            lock(&self.records).remove(&notice.sandbox.container_id);
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
        let Self { work, reply, container_id, closer, records } = *self;
        let (descriptors, config, redirected) = match work {
            Work::Answer(reason) => return reply.send(Ok(reason)),
            Work::Ping => return reply.send(Ok("alive")),
            Work::Add(config, descriptors) => (descriptors, Some(config), true),
            Work::Check(descriptors, redirected) => (descriptors, None, redirected),
        };
        let mut sandboxed = match Sandboxed::new(descriptors) {
            Ok(sandboxed) => sandboxed,
            Err(failure) => return reply.send(Err(failure)),
        };
        let result = match config {
            Some(config) => {
                let result = sandboxed.add(*config);
                if result.is_ok() {
                    lock(&records).insert(&container_id);
                }
                result
            }
            None => sandboxed.check(redirected),
        };
        reply.send(result);
        closer.close(sandboxed);
    }

    fn refuse(self: Box<Self>) {
        self.reply.send(Err(Failure::Busy));
    }
}

fn lock(records: &Mutex<Records>) -> MutexGuard<'_, Records> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The reason as one of those that we know: a peer's text never becomes a label.
fn pass_reason(text: &str) -> &'static str {
    PassReason::ALL.into_iter().map(PassReason::code).find(|code| *code == text).unwrap_or("other")
}
