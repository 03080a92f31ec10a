// SPDX-License-Identifier: Apache-2.0
//! Whether the agent is ready, by name of what is in the way. Must never decide anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::metrics::Metrics;

/// How long a question may wait for the start to end. The kubelet waits 1 s for an answer, unless told otherwise.
const STARTING: Duration = Duration::from_millis(700);
/// When the start is over, come what may: what is still in the way then is to be told at once.
const STARTED: Duration = Duration::from_secs(5);

/// What must hold before the agent counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Blocker {
    /// The pod source has not read everything yet.
    Pods,
    /// Neither this agent nor one that it could replace serves the socket.
    Socket,
    /// The plugin or its configuration is not on the node.
    Install,
    /// Ambient mode is asked for and not there yet.
    Ambient,
}

/// The blockers that are looked at, and those that are left.
pub(crate) struct Readiness {
    checks: Vec<Blocker>,
    left: Mutex<BTreeMap<Blocker, String>>,
    metrics: Arc<Metrics>,
    /// Whether nothing was left, ever.
    started: watch::Sender<bool>,
    began: Instant,
}

impl Blocker {
    /// As in `/readyz?verbose` and in the metric.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Socket => "socket",
            Self::Install => "install",
            Self::Ambient => "ambient_not_supported",
        }
    }

    /// What is said of it from the start on.
    fn beginning(self) -> &'static str {
        match self {
            Self::Pods => "not all pods were read yet",
            Self::Socket => "not tried to serve the plugin yet",
            Self::Install => "not looked at the node's directories yet",
            Self::Ambient => "ambient mode is not there yet; sidecars are redirected: unset AMBIENT_ENABLED",
        }
    }
}

impl Readiness {
    /// Nothing of `checks` holds yet.
    pub(crate) fn new(checks: Vec<Blocker>, metrics: Arc<Metrics>) -> Self {
        let readiness = Self {
            checks: checks.clone(),
            left: Mutex::default(),
            metrics,
            started: watch::Sender::new(false),
            began: Instant::now(),
        };
        checks.into_iter().for_each(|blocker| readiness.block(blocker, blocker.beginning()));
        readiness
    }

    /// `blocker` is gone.
    pub(crate) fn clear(&self, blocker: Blocker) {
        let mut left = self.lock();
        left.remove(&blocker);
        let ready = left.is_empty();
        drop(left);
        self.metrics.blocked(blocker.name(), false);
        if ready {
            self.started.send_replace(true);
        }
    }

    /// Wait while the agent starts, but not for long. The start takes 50 ms, and after a refusal the kubelet asks again only
    /// after its whole period, 10 s unless told otherwise.
    pub(crate) async fn settle(&self) {
        if self.began.elapsed() > STARTED {
            return;
        }
        let _ = timeout(STARTING, self.started.subscribe().wait_for(|started| *started)).await;
    }

    /// `blocker` is there, or there again, for this reason.
    pub(crate) fn block(&self, blocker: Blocker, reason: &str) {
        // One blocker, one line.
        self.lock().insert(blocker, reason.replace('\n', " "));
        self.metrics.blocked(blocker.name(), true);
    }

    /// What is left, with reasons.
    pub(crate) fn left(&self) -> Vec<(&'static str, String)> {
        self.lock().iter().map(|(blocker, reason)| (blocker.name(), reason.clone())).collect()
    }

    /// Whether all is well, and one line for each check, as Kubernetes' own servers write them.
    pub(crate) fn report(&self) -> (bool, String) {
        let left = self.lock();
        let mut text = String::new();
        for blocker in &self.checks {
            let name = blocker.name();
            let _ = match left.get(blocker) {
                None => writeln!(text, "[+]{name} ok"),
                Some(reason) => writeln!(text, "[-]{name} failed: {reason}"),
            };
        }
        text += if left.is_empty() { "readyz check passed\n" } else { "readyz check failed\n" };
        (left.is_empty(), text)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Blocker, String>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_question_waits_for_the_start_to_end_and_later_for_nothing() {
        let readiness = Readiness::new(vec![Blocker::Pods, Blocker::Socket], Arc::new(Metrics::new()));
        let begin = tokio::time::Instant::now();
        readiness.settle().await;
        assert_eq!(begin.elapsed(), STARTING);
        readiness.clear(Blocker::Pods);
        let clear = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            readiness.clear(Blocker::Socket);
        };
        tokio::join!(readiness.settle(), clear);
        assert_eq!(begin.elapsed(), STARTING + Duration::from_millis(50));
        readiness.block(Blocker::Socket, "lost");
        readiness.settle().await;
        assert_eq!(begin.elapsed(), STARTING + Duration::from_millis(50));
        let stuck = Readiness::new(vec![Blocker::Ambient], Arc::new(Metrics::new()));
        tokio::time::sleep(STARTED + Duration::from_millis(1)).await;
        let begin = Instant::now();
        stuck.settle().await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[test]
    fn every_check_is_named_with_its_reason_until_it_holds_and_when_it_fails_again() {
        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::new(vec![Blocker::Pods, Blocker::Socket], Arc::clone(&metrics));
        assert_eq!(
            readiness.report(),
            (
                false,
                "[-]pods failed: not all pods were read yet\n[-]socket failed: not tried to serve the plugin yet\n\
                 readyz check failed\n"
                    .to_owned()
            )
        );
        readiness.clear(Blocker::Pods);
        readiness.block(Blocker::Socket, "two\nlines");
        assert_eq!(
            readiness.report(),
            (false, "[+]pods ok\n[-]socket failed: two lines\nreadyz check failed\n".to_owned())
        );
        assert_eq!(readiness.left(), [("socket", "two lines".to_owned())]);
        let scrape = metrics.render();
        for line in ["waylay_blocked{blocker=\"pods\"} 0", "waylay_blocked{blocker=\"socket\"} 1"] {
            assert!(scrape.lines().any(|l| l == line), "{line}\n{scrape}");
        }
        readiness.clear(Blocker::Socket);
        assert_eq!(readiness.report(), (true, "[+]pods ok\n[+]socket ok\nreadyz check passed\n".to_owned()));
    }
}
