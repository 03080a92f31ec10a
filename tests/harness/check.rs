// SPDX-License-Identifier: Apache-2.0
//! Sends packets and compares what became of them with what was to.

use std::time::Duration;

use crate::lab::Lab;
use crate::observer::{self, Observed};
use crate::packet::{Expected, Packet, Verdict, Way};
use crate::probe::{PATIENCE, SILENCE, judge, probe};

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
    match judge(&case.packet, &probe(lab, &case.packet, port, patience)) {
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
