// SPDX-License-Identifier: Apache-2.0
//! Pods that keep coming while something is done to the agent, and what became of each.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use harness::node::Programmed;
use serde_json::json;

use crate::lab::{Lab, Pod, Source};

/// Two pods a second.
const PERIOD: Duration = Duration::from_millis(500);

/// What became of all pods.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    started: Vec<Started>,
    failed: Vec<String>,
    /// Times in which something was wrong.
    pub(crate) disturbed: Vec<Range<Instant>>,
}

/// A pod that runs.
#[derive(Debug)]
pub(crate) struct Started {
    /// When the runtime was asked for it.
    begin: Instant,
    /// How long the runtime took, at the last attempt.
    took: Duration,
    /// Attempts that failed.
    again: usize,
    redirected: bool,
}

/// When the runtime is asked for a pod.
pub(crate) struct Asked(Receiver<()>);

impl Asked {
    /// Wait for the next pod: what is done now meets one on its way, however fast the machine is.
    pub(crate) fn next(&self) {
        self.0.try_iter().for_each(drop);
        self.0.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

/// Start pods until `disturb` has returned the times in which the agent was disturbed. The `n`-th is started, looked at
/// and removed by `start`.
pub(crate) fn pods_while(
    start: impl Fn(usize) -> Result<Started, String> + Sync,
    disturb: impl FnOnce(&Asked) -> Vec<Range<Instant>>,
) -> Outcome {
    let over = AtomicBool::new(false);
    let start = &start;
    let (asks, asked) = mpsc::channel();
    let (results, disturbed) = std::thread::scope(|scope| {
        let over = &over;
        let pods = scope.spawn(move || {
            let (mut threads, mut due) = (Vec::new(), Instant::now());
            while !over.load(Ordering::Relaxed) {
                let n = threads.len();
                threads.push(scope.spawn(move || start(n)));
                // Nobody listens when the disturbances are over.
                asks.send(()).ok();
                due += PERIOD;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        // Also when it panics: the scope waits for the threads.
        let ends = Ends(over);
        let disturbed = disturb(&Asked(asked));
        drop(ends);
        (pods.join().unwrap(), disturbed)
    });
    let mut outcome = Outcome { disturbed, ..Outcome::default() };
    for result in results {
        match result {
            Ok(started) => outcome.started.push(started),
            Err(error) => outcome.failed.push(error),
        }
    }
    outcome
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A mesh pod that tells by a port in its rules that its annotations were read.
pub(crate) fn mesh_pod(name: &str, source: Source) -> Pod {
    let annotations =
        json!({"sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/includeInboundPorts": "7777"});
    Pod { name: name.to_owned(), source, annotations }
}

/// A mesh pod, half of them with annotations from either source, that must start at the first attempt.
pub(crate) fn start_and_remove(lab: &Lab, n: usize) -> Result<Started, String> {
    let source = if n.is_multiple_of(2) { Source::Runtime } else { Source::Manifest };
    attempt(lab, &mesh_pod(&format!("web-{n}"), source), 0)
}

/// Start `pod`, again after a failure as a kubelet does, but sooner and at most `again` times; look at it, and remove it.
pub(crate) fn attempt(lab: &Lab, pod: &Pod, again: usize) -> Result<Started, String> {
    let in_pod = |error: String| format!("{} ({:?}): {error}", pod.name, pod.source);
    lab.write_manifest(pod);
    let mut failures = 0;
    let (begin, id) = loop {
        let begin = Instant::now();
        match lab.run(pod) {
            Ok(id) => break (begin, id),
            Err(error) if failures == again => return Err(in_pod(error)),
            Err(_) => failures += 1,
        }
        std::thread::sleep(PERIOD);
    };
    let took = begin.elapsed();
    let (sandbox, _) = lab.look_into(pod, &id).map_err(in_pod)?;
    let redirected = sandbox.programmed() == Programmed::Complete;
    let rules: String = sandbox.tables().iter().map(ruleset::render).collect();
    if redirected && !rules.contains("th dport 7777 redirect to :15006") {
        return Err(in_pod(format!("not by its annotations: {rules}")));
    }
    drop(sandbox);
    lab.remove(&id).map_err(in_pod)?;
    Ok(Started { begin, took, again: failures, redirected })
}

impl Started {
    /// Whether it was on its way in one of `times`.
    fn meets(&self, times: &[Range<Instant>]) -> bool {
        times.iter().any(|time| self.begin < time.end && self.begin + self.took > time.start)
    }
}

impl Outcome {
    /// Assert that every pod started, redirected, and that at least `met` of them started while something was wrong.
    #[track_caller]
    pub(crate) fn assert_all_started(&self, met: usize) {
        println!("{self}");
        assert!(self.failed.is_empty() && self.started.iter().all(|pod| pod.redirected), "{self}");
        assert!(self.met() >= met, "{met} pods were to meet a disturbance: {self}");
    }

    /// Assert that every pod started in the end, and that of those that were asked for after `ready` and met none of
    /// `windows`, at least `enough`, all are redirected.
    #[track_caller]
    pub(crate) fn assert_redirected_since(&self, ready: Instant, windows: &[Range<Instant>], enough: usize) {
        let since: Vec<_> = self.started.iter().filter(|pod| pod.begin > ready).collect();
        let (risky, sure): (Vec<_>, Vec<_>) = since.into_iter().partition(|pod| pod.meets(windows));
        let bare = |pods: &[&Started]| pods.iter().filter(|pod| !pod.redirected).count();
        println!(
            "{self}; since the agent was ready {} met no window, {} of them not redirected; {} met one, {} of them not \
             redirected",
            sure.len(),
            bare(&sure),
            risky.len(),
            bare(&risky)
        );
        assert!(self.failed.is_empty() && bare(&sure) == 0 && sure.len() >= enough, "{self}");
    }

    /// How many pods were on their way in a disturbed time.
    fn met(&self) -> usize {
        self.started.iter().filter(|pod| pod.meets(&self.disturbed)).count()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waits: Vec<Duration> = self.started.iter().map(|pod| pod.took).collect();
        waits.sort_unstable();
        write!(
            f,
            "{} pods started, {} redirected, {} at a later attempt, {} during {} disturbances, median {:?}, longest {:?}; \
             {} failed",
            waits.len(),
            self.started.iter().filter(|pod| pod.redirected).count(),
            self.started.iter().filter(|pod| pod.again > 0).count(),
            self.met(),
            self.disturbed.len(),
            waits.get(waits.len() / 2).copied().unwrap_or_default(),
            waits.last().copied().unwrap_or_default(),
            self.failed.len(),
        )?;
        self.failed.iter().try_for_each(|failure| write!(f, "\n{failure}"))
    }
}
