// SPDX-License-Identifier: Apache-2.0
//! The evaluator of the library against the kernel, with real packets, and against the second reading of the rules,
//! without; and both comparisons with a fault in one of the two, which has to show.
//!
//! Needs root. `WAYLAY_SEED` gives other settings and packets, `WAYLAY_PACKETS` more of them to the kernel.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, which prints what it ran")]

use std::collections::BTreeSet;
use std::str::FromStr;

use harness::alteration::alterations;
use harness::cases;
use harness::check::{self, Case, Until, for_each};
use harness::lab::{Lab, Servers};
use harness::matrix::{Settings, configurations, rows};
use harness::oracle::{self, Fault};
use harness::packet::Verdict;
use harness::predict::{Predictor, differences};
use harness::random::{self, Packets, Random};
use ruleset::Form;
use ruleset::evaluate::Trace;

/// Faults that change nothing.
const EQUIVALENT_STEPS: [(Fault, &str); 3] = [
    (Fault::Skip("O17"), "the end of a chain passes, too"),
    (Fault::Skip("P7"), "the end of a chain passes, too"),
    (Fault::Skip("T3"), "what T5 leaves instead is given the same mark by T9"),
];
/// Faults of the rules that no packet shows here: part of the rule, part of the fault, why.
const UNSEEN: [(&str, &str, &str); 18] = [
    ("sport 15053", "", "needs a DNS proxy with one id of two: tests/packets.rs has it"),
    ("invalid_dropped", "", "needs a crafted segment: tests/packets.rs has it"),
    ("proxy_not_listening", "", "needs a proxy that does not listen: tests/packets.rs has it"),
    ("tproxy_divert", "", "needs a connection older than the rules: tests/packets.rs has it"),
    ("proxy_as_client", "missing", "no packet bears this mark but TCP on lo"),
    ("answer_to_proxy", "match 0 missing", "only TCP connections are given the mark"),
    ("proxy_self_call", "missing", "a mark on UDP, or on what leaves for the network, has no effect"),
    ("proxy_passthrough", "match 0 missing", "these sources exist on lo only"),
    ("excluded_outbound_port", "match 0 missing", "no other protocol with ports is sent"),
    ("iifname \"vm0\" meta l4proto tcp th dport", "match 1 missing", "only TCP is captured there at all"),
    ("dns_of_", "missing", "no TCP connection is observed for its zone"),
    ("dns_capture", "missing", "without UDP or TCP, the rule takes the other one to the same port"),
    ("inside_pod", "match 1 missing", "UDP on lo is captured to port 53 only"),
    ("rerouted_interface", "", "the interface is excluded, too, or only TCP is observed behind it"),
    ("ip6 daddr ::1", "outbound_capture", "::1 is never captured"),
    ("set inbound_ports_exclude", "element 3", "15090, to which no generated packet goes"),
    ("set exclude_interfaces", "element 1", "vm0, which is rerouted, too, and never captured inbound"),
    ("set tcp_udp", "element 1", "UDP to an excluded port passes anyway, unless it is DNS"),
];
/// Configurations whose rules are altered.
const ALTERED: [&str; 4] =
    ["tproxy with all else", "loopback included, dns", "rerouted and excluded", "dns, ipv4 only"];

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
        // A datagram may get lost on a busy machine, and nothing sends it again. What is really wrong is wrong again.
        let failed = |case: &&Case| failures.iter().any(|failure| failure.starts_with(&case.id));
        let again: Vec<Case> = cases.iter().filter(failed).cloned().collect();
        again.iter().for_each(|case| println!("once more: seed {}, {}: {}", self.seed, case.id, case.packet));
        let failures = check::run(&lab, &again, Until::End);
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
    let (seed, wanted): (u64, usize) = (seed(), number("WAYLAY_PACKETS", 40_000));
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

/// A fault for each step of the second reading, in each way; what of them no packet shows, and why.
#[test]
fn a_fault_in_any_step_of_the_second_reading_is_found_by_the_evaluator() {
    let mut compared = Vec::new();
    for (_, settings) in configurations() {
        let plan = redirect::compile(&settings.config());
        let predictor = Predictor::new(&plan, Servers::of(&settings));
        for (Case { packet, .. }, steps) in cases::generate(&settings) {
            let (predicted, _) = predictor.predict(&packet);
            compared.push((settings.clone(), packet, predicted, steps));
        }
    }
    let labels: BTreeSet<&str> = compared.iter().flat_map(|(.., steps)| steps.iter().copied()).collect();
    let faults = labels.iter().flat_map(|label| [Fault::Skip(label), Fault::Alter(label)]);
    let (mut found, mut missed) = (0, Vec::new());
    for fault in faults {
        let (Fault::Skip(label) | Fault::Alter(label)) = fault;
        let shows = compared.iter().filter(|(.., steps)| steps.contains(&label)).any(
            |(settings, packet, predicted, _)| {
                let (wrong, _) = oracle::read_with(settings, packet, Some(fault));
                !differences(&wrong, predicted).is_empty()
            },
        );
        if shows { found += 1 } else { missed.push(fault) }
    }
    println!(
        "faults in the second reading: {}, found {found}, equivalent {}",
        found + missed.len(),
        missed.len()
    );
    EQUIVALENT_STEPS.iter().for_each(|(fault, why)| println!("equivalent: {fault:?}: {why}"));
    assert_eq!(missed, EQUIVALENT_STEPS.map(|(fault, _)| fault));
}

/// The parts of the rules, one by one, in configurations that have all rules between them.
#[test]
fn a_fault_in_any_part_of_the_rules_is_found_by_the_second_reading() {
    let configurations: Vec<_> =
        configurations().into_iter().filter(|(name, _)| ALTERED.contains(&name.as_str())).collect();
    assert_eq!(configurations.len(), ALTERED.len());
    let results = for_each(configurations, |(name, settings)| {
        let plan = redirect::compile(&settings.config());
        let cases = cases::generate(&settings);
        let missed = alterations(&plan).into_iter().map(|altered| {
            let predictor = Predictor::new(&altered.plan, Servers::of(&settings));
            let shows = cases
                .iter()
                .any(|(case, _)| !differences(&case.expected, &predictor.predict(&case.packet).0).is_empty());
            (format!("{name}: {}", altered.what), shows)
        });
        missed.collect::<Vec<_>>()
    });
    let all: Vec<_> = results.into_iter().flatten().collect();
    let missed: Vec<&String> = all.iter().filter(|(_, shows)| !shows).map(|(what, _)| what).collect();
    println!(
        "faults in the rules: {}, found {}, unseen {}",
        all.len(),
        all.len() - missed.len(),
        missed.len()
    );
    let fits =
        |what: &str, (rule, fault, _): &(&str, &str, &str)| what.contains(rule) && what.contains(fault);
    for unseen in &UNSEEN {
        let times = missed.iter().filter(|what| fits(what, unseen)).count();
        println!("unseen: {times} of {} {}: {}", unseen.0, unseen.1, unseen.2);
        assert!(times > 0, "listed as unseen, but all are found: {unseen:?}");
    }
    let unknown: Vec<_> =
        missed.iter().filter(|what| !UNSEEN.iter().any(|unseen| fits(what, unseen))).collect();
    assert!(unknown.is_empty(), "no packet shows: {unknown:#?}");
}
