// SPDX-License-Identifier: Apache-2.0
//! How the cost of rules grows with the lists of a pod: in the compiler, from the annotation's text on, and in the kernel.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use redirect::{Config, Ipv6, Pod, annotations};
use ruleset::Plan;

use crate::report::{Report, median};
use crate::rules::{apply, in_netns};

/// Lists that are applied: none, and two lengths whose cost for each prefix is compared.
const APPLIED: [u32; 3] = [0, 1_000, 10_000];
/// Lists that are compiled.
const COMPILED: [u32; 2] = [10_000, 100_000];
/// Fresh network namespaces for each list, in turn.
const ROUNDS_APPLIED: usize = 41;
/// Compilations of each list, in turn.
const ROUNDS_COMPILED: usize = 9;
/// Microseconds that the kernel may take for one prefix.
const PER_PREFIX: f64 = 3.5;
/// How much more one prefix may cost in a list ten times as long: what sorting takes, and no more.
const GROWTH_APPLIED: f64 = 1.5;
const GROWTH_COMPILED: f64 = 2.0;

/// How the prefixes of a list lie to each other.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// A gap after each, ascending: none merge. IPv4.
    Apart4,
    /// The same in IPv6.
    Apart6,
    /// The same in IPv4, descending.
    Reverse,
    /// The same in IPv4, in no order.
    Shuffled,
    /// Each begins where the one before ends: all merge into a few.
    Adjacent,
    /// Each of a network's prefixes within the one before, then the next network.
    Nested,
}

/// `count` prefixes as an annotation lists them.
pub(crate) fn prefixes(shape: Shape, count: u32) -> String {
    // A step that has no factor in common with any count here takes every number once.
    const STEP: u64 = 77_777_777;
    let mut text = String::new();
    for n in 0..count {
        let n = match shape {
            Shape::Reverse => count - 1 - n,
            Shape::Shuffled => (u64::from(n) * STEP % u64::from(count)) as u32,
            _ => n,
        };
        let comma = if text.is_empty() { "" } else { "," };
        // No destination of the bench is among them.
        let (network, len) = match shape {
            Shape::Apart4 | Shape::Reverse | Shape::Shuffled => (0x0a00_0000 + n * 0x80, 26),
            Shape::Adjacent => (0x0a00_0000 + n * 0x40, 26),
            Shape::Nested => (0x0a00_0000 + (n / 16) * 0x4000, 16 + n % 16),
            Shape::Apart6 => {
                let _ = write!(text, "{comma}fd00:{:x}:{:x}::/64", n >> 16, n & 0xffff);
                continue;
            }
        };
        let _ = write!(text, "{comma}{}/{len}", std::net::Ipv4Addr::from_bits(network));
    }
    text
}

pub(crate) fn measure(report: &mut Report) {
    for (name, shape) in [("IPv4", Shape::Apart4), ("IPv6", Shape::Apart6)] {
        applied(name, shape, report);
    }
    for (name, shape) in [
        ("apart, IPv4", Shape::Apart4),
        ("apart, IPv6", Shape::Apart6),
        ("descending", Shape::Reverse),
        ("in no order", Shape::Shuffled),
        ("adjacent", Shape::Adjacent),
        ("nested", Shape::Nested),
    ] {
        compiled(name, shape, report);
    }
}

fn applied(name: &str, shape: Shape, report: &mut Report) {
    let plans = APPLIED.map(|length| compile(&excluding(prefixes(shape, length))));
    let mut took = APPLIED.map(|_| Vec::new());
    for _ in 0..ROUNDS_APPLIED {
        for (plan, took) in plans.iter().zip(&mut took) {
            took.push(in_netns(|| apply(&plan.tables)));
        }
    }
    let [none, short, long] = took.map(median);
    let [short, long] = [(short, APPLIED[1]), (long, APPLIED[2])].map(|(t, n)| (t - none) / f64::from(n));
    report.limited(&format!("an excluded CIDR of 10000, {name}, applied"), long, "us", PER_PREFIX);
    report.limited(&format!("… and of 1000, {name}, applied"), short, "us", PER_PREFIX);
    report.limited(&format!("… the one to the other, {name}"), long / short, "x", GROWTH_APPLIED);
}

fn compiled(name: &str, shape: Shape, report: &mut Report) {
    let pods = COMPILED.map(|length| excluding(prefixes(shape, length)));
    let mut took = COMPILED.map(|_| Vec::new());
    for _ in 0..ROUNDS_COMPILED {
        for (pod, took) in pods.iter().zip(&mut took) {
            let begin = Instant::now();
            let plan = compile(pod);
            took.push(begin.elapsed().as_secs_f64() * 1e6);
            drop(plan);
        }
    }
    let [short, long] = took.map(median);
    let [short, long] = [(short, COMPILED[0]), (long, COMPILED[1])].map(|(t, n)| t / f64::from(n));
    report.note(&format!("an excluded CIDR of 100000, {name}, compiled"), long, "us");
    report.limited(&format!("… to one of 10000, {name}"), long / short, "x", GROWTH_COMPILED);
}

/// A pod that excludes `list`.
fn excluding(list: String) -> Pod {
    Pod::default().with_annotations(BTreeMap::from([
        (annotations::STATUS.into(), "{}".into()),
        (annotations::EXCLUDE_OUTBOUND_CIDRS.into(), list),
    ]))
}

fn compile(pod: &Pod) -> Plan {
    let config = Config::from_pod(pod, &BTreeMap::new()).unwrap();
    redirect::compile(&Config { ipv6: Ipv6::Capture, ..config })
}
