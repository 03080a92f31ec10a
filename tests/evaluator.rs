// SPDX-License-Identifier: Apache-2.0
//! The evaluator of the library against the kernel, with real packets, and against the second reading of the rules,
//! without; and both comparisons with a fault in one of the two, which has to show.
//!
//! Needs root. `WAYLAY_SEED` gives other settings and packets, `WAYLAY_PACKETS` more of them to the kernel.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, which prints what it ran")]

use std::str::FromStr;

use harness::cases;
use harness::check::{self, Case, Until, for_each};
use harness::lab::{Lab, Servers};
use harness::matrix::{Settings, configurations, rows};
use harness::packet::Verdict;
use harness::predict::{Predictor, differences};
use harness::random::{self, Packets, Random};
use ruleset::Form;
use ruleset::evaluate::Trace;

/// A number from the environment.
fn number<T: FromStr>(name: &str, default: T) -> T {
    std::env::var(name)
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

/// The same each time, so that a failure is the change's and not the day's.
fn seed() -> u64 {
    number("WAYLAY_SEED", 1)
}

/// Compare the evaluator with the second reading on every generated packet of `settings`; how many those are.
fn compare(name: &str, settings: &Settings) -> usize {
    let generated = cases::generate(settings);
    for form in Form::ALL {
        let plan = redirect::compile(&settings.config()).in_form(form);
        let predictor = Predictor::new(&plan, Servers::of(settings));
        for (Case { packet, expected, .. }, steps) in &generated {
            let (predicted, trace) = predictor.predict(packet);
            let different = differences(expected, &predicted);
            assert!(
                different.is_empty(),
                "{name}, {form:?}: {packet}: {different:?}:\n{expected:?}, {steps:?}\n{predicted:?}, {}\n{}",
                path(&trace),
                settings.text
            );
        }
    }
    Form::ALL.len() * generated.len()
}

fn path(trace: &Trace) -> String {
    let steps = trace.steps.iter().map(|step| format!("{}[{}] {}", step.chain, step.index, step.reason));
    steps.collect::<Vec<_>>().join(" > ")
}

#[test]
fn the_evaluator_agrees_with_the_second_reading() {
    let compared: usize = configurations().iter().map(|(name, settings)| compare(name, settings)).sum();
    assert!(compared > 100_000, "{compared}");
}

#[test]
fn the_evaluator_agrees_with_the_second_reading_for_random_settings() {
    const SETTINGS: usize = 300;
    let (seed, default) = (seed(), rows()[0].settings.clone());
    let mut random = Random::new(seed);
    let settings = (0..SETTINGS).map(|_| random::combination(&mut random, &default)).collect();
    let compared: usize = for_each(settings, |settings| compare("random", &settings)).into_iter().sum();
    println!("seed {seed}: {SETTINGS} random settings, {compared} packets compared");
    assert!(compared > 1_000_000, "{compared}");
}

/// Random settings, the form in which they are programmed, and random packets with what the evaluator predicts.
struct Draw {
    seed: u64,
    settings: Settings,
    form: Form,
    cases: Vec<(Case, Trace)>,
}

impl Draw {
    /// How many packets share a lab.
    const PACKETS: usize = 200;

    fn new(seed: u64, default: &Settings) -> Self {
        // Silence takes half a second to notice.
        const SILENT: usize = 1;
        let mut random = Random::new(seed);
        let settings = random::settings(&mut random, default);
        let form = random.pick(&Form::ALL);
        let plan = redirect::compile(&settings.config()).in_form(form);
        let (predictor, packets) = (Predictor::new(&plan, Servers::of(&settings)), Packets::new(&settings));
        let (mut cases, mut silent): (Vec<(Case, Trace)>, _) = (Vec::new(), 0);
        while cases.len() < Self::PACKETS {
            let packet = packets.next(&mut random);
            let (expected, trace) = predictor.predict(&packet);
            silent += usize::from(expected.verdict == Verdict::Drop);
            if expected.verdict != Verdict::Drop || silent <= SILENT {
                cases.push((Case { id: format!("R{:03}", cases.len()), packet, expected }, trace));
            }
        }
        Self { seed, settings, form, cases }
    }

    /// One text for each packet of which the kernel makes something else than the evaluator.
    fn run(&self) -> Vec<String> {
        let plan = redirect::compile(&self.settings.config()).in_form(self.form);
        let lab = Lab::programmed(Servers::of(&self.settings), &plan);
        let cases: Vec<Case> = self.cases.iter().map(|(case, _)| case.clone()).collect();
        let failures = check::run(&lab, &cases, Until::End);
        failures.iter().map(|failure| self.report(failure)).collect()
    }

    fn report(&self, failure: &str) -> String {
        let of = |(case, _): &&(Case, Trace)| failure.starts_with(&case.id);
        let (case, trace) = self.cases.iter().find(of).expect("a failure begins with its case");
        format!(
            "{failure}\n    predicted {:?}\n    by {}\n    with {:?}, {}\n    again: WAYLAY_SEED={} WAYLAY_PACKETS=1",
            case.expected,
            path(trace),
            self.form,
            self.settings.text,
            self.seed
        )
    }
}

#[test]
fn the_kernel_does_with_random_packets_what_the_evaluator_predicts() {
    let (seed, wanted): (u64, usize) = (seed(), number("WAYLAY_PACKETS", 20_000));
    let (start, default) = (std::time::Instant::now(), rows()[0].settings.clone());
    let draws = wanted.div_ceil(Draw::PACKETS) as u64;
    println!("seed {seed}: {draws} random settings");
    let results = for_each((0..draws).collect(), |draw| {
        let draw = Draw::new(seed.wrapping_add(draw), &default);
        (draw.cases.len(), draw.run())
    });
    let sent: usize = results.iter().map(|(sent, _)| sent).sum();
    let failures: Vec<String> = results.into_iter().flat_map(|(_, failures)| failures).collect();
    println!(
        "random packets to the kernel: {sent} sent, {} unlike predicted, in {:.0?}",
        failures.len(),
        start.elapsed()
    );
    assert!(sent >= wanted, "{sent}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
