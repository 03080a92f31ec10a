// SPDX-License-Identifier: Apache-2.0
//! Sends packets and compares what became of them with what was to.

use std::sync::Mutex;
use std::time::Duration;

use crate::lab::Lab;
use crate::observer::{self, Observed};
use crate::packet::{Expected, Packet, Verdict, Way};
use crate::probe::{Outcome, PATIENCE, SILENCE, judge, probe};

/// One test at a time: they wait for answers, and share two cores with whatever else runs.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A packet with its name and what is to become of it.
#[derive(Clone, Debug)]
pub struct Case {
    /// Row of the matrix, or the number of a generated packet.
    pub id: String,
    /// The packet.
    pub packet: Packet,
    /// What is to become of it.
    pub expected: Expected,
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// All cases, with all the patience that a busy machine needs.
    End,
    /// The first that fails, where failures are expected: silence is one soon.
    FirstFailure,
}

/// Run `cases` in `lab`, which is observed. Returns one line for each failure.
#[must_use]
pub fn run(lab: &Lab, cases: &[Case], until: Until) -> Vec<String> {
    // What was observed is read now and then, so that a difference that only shows there ends the run early, too.
    const AT_ONCE: usize = 250;
    let mut failures = Vec::new();
    for cases in cases.chunks(AT_ONCE) {
        let mut ports = Vec::new();
        for case in cases {
            let port = lab.fresh_port();
            ports.push(port);
            if let Err(got) = verdict(lab, case, port, until) {
                let wanted = case.expected.verdict;
                failures.push(format!("{}: {}: expected {wanted}, got {got}", case.id, case.packet));
                if until == Until::FirstFailure {
                    return failures;
                }
            }
        }
        let observed = observer::take(&lab.pod);
        for (case, port) in cases.iter().zip(ports) {
            let mut wrong = marks(case, port, &observed);
            if !wrong.is_empty() && until == Until::End {
                // The packet path adds to the observer's sets without waiting for memory or for a table that grows, and
                // may fail to. What is really missing is missing again.
                let port = lab.fresh_port();
                let again = verdict(lab, case, port, until).err();
                wrong = again.into_iter().chain(marks(case, port, &observer::take(&lab.pod))).collect();
            }
            failures.extend(wrong.iter().map(|what| format!("{}: {}: {what}", case.id, case.packet)));
        }
        if until == Until::FirstFailure && !failures.is_empty() {
            return failures;
        }
    }
    failures
}

/// Send the packet; the error says what came instead of the verdict.
fn verdict(lab: &Lab, case: &Case, port: u16, until: Until) -> Result<(), String> {
    let patience: Duration = match (case.expected.verdict, until) {
        (Verdict::Drop, _) | (_, Until::FirstFailure) => SILENCE,
        _ => PATIENCE,
    };
    let outcome = probe(lab, &case.packet, port, patience);
    // Where the packet was going nobody listens, and where it could be sent to somebody does.
    if matches!(outcome, Outcome::Refused) && !lab.servers.serve(&case.packet) {
        let passed = case.expected.verdict == Verdict::Pass;
        return if passed { Ok(()) } else { Err("PASS, as far as a refusal tells".to_owned()) };
    }
    match judge(&case.packet, &outcome) {
        Ok(verdict) if verdict == case.expected.verdict => Ok(()),
        Ok(verdict) => Err(verdict.to_string()),
        Err(what) => Err(what),
    }
}

/// What was observed of the packet from `port` and differs.
fn marks(case: &Case, port: u16, observed: &Observed) -> Vec<String> {
    let expected = &case.expected;
    let number = |set: &'static str, value: Option<u32>| (set, value.map(|value| vec![value]));
    let mut wanted = vec![
        number("zones", expected.zone.map(u32::from)),
        number("lo_marks", expected.lo_mark),
        number("marks", expected.mark),
        number("later_marks", expected.later_mark),
        number("connection_marks", expected.connection_mark),
        number("answer_marks", expected.answer_mark),
    ];
    let from_network = matches!(case.packet.way, Way::Out(..)) && expected.answer_tracked.is_some();
    if from_network {
        let seen = if expected.answer_tracked == Some(true) { vec![1] } else { vec![] };
        wanted.push(("answers", Some(seen)));
    }
    wanted
        .into_iter()
        .filter_map(|(set, value)| {
            let (value, found) = (value?, observed.values(set, port));
            (found != value).then(|| format!("expected {set} {value:?}, got {found:?}"))
        })
        .collect()
}

/// `work` for each item, on two threads.
pub fn for_each<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (queue, results) = (Mutex::new(items.into_iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(item) = { queue.lock().unwrap().next() } {
                    let result = work(item);
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    results.into_inner().unwrap()
}
