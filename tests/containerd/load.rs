// SPDX-License-Identifier: Apache-2.0
//! Pods that keep coming while something is done to the agent, and what became of each.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::node::Programmed;
use serde_json::json;

use crate::lab::{Lab, Pod, Source};

/// Two pods a second.
const PERIOD: Duration = Duration::from_millis(500);

/// What became of all pods.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// When each pod was asked for, and how long the runtime took.
    started: Vec<(Instant, Duration)>,
    failed: Vec<String>,
    /// Attempts of which that came, see [`Lab::run`].
    refused_by_loopback: u32,
    /// Times in which something was wrong.
    pub(crate) disturbed: Vec<Range<Instant>>,
}

/// Start pods until `disturb` has returned the times in which the agent was disturbed.
pub(crate) fn pods_while(lab: &Lab, disturb: impl FnOnce() -> Vec<Range<Instant>>) -> Outcome {
    let over = AtomicBool::new(false);
    let results = std::thread::scope(|scope| {
        let pods = scope.spawn(|| {
            let (mut threads, mut due) = (Vec::new(), Instant::now());
            while !over.load(Ordering::Relaxed) {
                let n = threads.len();
                threads.push(scope.spawn(move || start_and_remove(lab, n)));
                due += PERIOD;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        // Also when it panics: the scope waits for the threads.
        let ends = Ends(&over);
        let disturbed = disturb();
        drop(ends);
        (pods.join().unwrap(), disturbed)
    });
    let mut outcome = Outcome { disturbed: results.1, ..Outcome::default() };
    outcome.refused_by_loopback = lab.refused_by_loopback.load(Ordering::Relaxed);
    for result in results.0 {
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

fn start_and_remove(lab: &Lab, n: usize) -> Result<(Instant, Duration), String> {
    let source = if n.is_multiple_of(2) { Source::Runtime } else { Source::Manifest };
    let pod = mesh_pod(&format!("web-{n}"), source);
    let in_pod = |error: String| format!("{} ({source:?}): {error}", pod.name);
    lab.write_manifest(&pod);
    let begin = Instant::now();
    let id = lab.run(&pod).map_err(in_pod)?;
    let took = begin.elapsed();
    let (sandbox, _) = lab.look_into(&pod, &id).map_err(in_pod)?;
    if sandbox.programmed() != Programmed::Complete {
        return Err(in_pod("started without redirection".into()));
    }
    let rules: String = sandbox.tables().iter().map(ruleset::render).collect();
    if !rules.contains("th dport 7777 redirect to :15006") {
        return Err(in_pod(format!("not by its annotations: {rules}")));
    }
    drop(sandbox);
    lab.remove(&id).map_err(in_pod)?;
    Ok((begin, took))
}

impl Outcome {
    /// Assert that every pod started, redirected, and that at least `met` of them started while something was wrong.
    #[track_caller]
    pub(crate) fn assert_all_started(&self, met: usize) {
        println!("{self}");
        assert!(self.failed.is_empty(), "{self}");
        assert!(self.met() >= met, "{met} pods were to meet a disturbance: {self}");
    }

    /// How many pods were on their way in a disturbed time.
    fn met(&self) -> usize {
        let meets = |(begin, took): &&(Instant, Duration)| {
            self.disturbed.iter().any(|time| *begin < time.end && *begin + *took > time.start)
        };
        self.started.iter().filter(meets).count()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut waits: Vec<Duration> = self.started.iter().map(|(_, took)| *took).collect();
        waits.sort_unstable();
        write!(
            f,
            "{} pods started redirected, {} of them during {} disturbances, median {:?}, longest {:?}; \
             {} failed, {} times loopback refused",
            waits.len(),
            self.met(),
            self.disturbed.len(),
            waits.get(waits.len() / 2).copied().unwrap_or_default(),
            waits.last().copied().unwrap_or_default(),
            self.failed.len(),
            self.refused_by_loopback,
        )?;
        self.failed.iter().try_for_each(|failure| write!(f, "\n{failure}"))
    }
}
