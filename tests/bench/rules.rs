// SPDX-License-Identifier: Apache-2.0
//! Rules: how many, how long they take to compile and to apply, and how that grows with the lists of a pod.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use agent_api::netns::Netlink;
use kernel::{Applied, Backend as _, Nftables};
use nix::sched::{CloneFlags, unshare};
use redirect::{Config, Dns, Ipv6, Mode, OwnerGroups, Pod, annotations};
use ruleset::Table;

use crate::report::{Report, median};

/// Fresh network namespaces for each way.
const ROUNDS: usize = 100;
/// Fewer for the long lists, which take up to a hundred times as long.
const ROUNDS_LONG: usize = 15;
/// Lengths of lists.
const LENGTHS: [u32; 3] = [0, 1_000, 10_000];

pub(crate) fn measure(report: &mut Report) {
    let default = Config { ipv6: Ipv6::Capture, ..Config::default() };
    let tproxy_dns = Config {
        mode: Mode::Tproxy,
        dns: Dns::All,
        drop_invalid: true,
        owner_groups: OwnerGroups::AllBut([2000, 2001].into()),
        ..default.clone()
    };
    for (name, config, rules_max, ratio_max) in
        [("default", &default, 20.0, Some(0.15)), ("TPROXY and DNS", &tproxy_dns, 45.0, None)]
    {
        let tables = redirect::compile(config).tables;
        let rules: usize = tables.iter().flat_map(|t| &t.chains).map(|c| c.rules.len()).sum();
        report.limited(&format!("rules, {name}, dual stack"), rules as f64, "", rules_max);
        let text: String = tables.iter().map(ruleset::render).collect();
        let (ours, nft): (Vec<_>, Vec<_>) =
            (0..ROUNDS).map(|_| (in_netns(|| apply(&tables)), in_netns(|| nft_f(&text)))).unzip();
        let (ours, nft) = (median(ours), median(nft));
        let label = format!("rules applied, {name}");
        match ratio_max {
            Some(limit) => report.limited(&label, ours / nft, "x nft -f", limit),
            None => report.note(&label, ours / nft, "x nft -f"),
        }
        report.note(&label, ours, "us");
    }
    long_lists(report);
}

fn long_lists(report: &mut Report) {
    let mut per_prefix = Vec::new();
    for length in LENGTHS {
        let pod = Pod::default().with_annotations(BTreeMap::from([
            (annotations::STATUS.into(), "{}".into()),
            (annotations::EXCLUDE_OUTBOUND_CIDRS.into(), prefixes(length)),
        ]));
        let compile = || {
            let begin = Instant::now();
            let config = Config::from_pod(&pod, &BTreeMap::new()).unwrap();
            let plan = redirect::compile(&Config { ipv6: Ipv6::Capture, ..config });
            (begin.elapsed().as_secs_f64() * 1e6, plan.tables)
        };
        let compiled = median((0..ROUNDS_LONG).map(|_| compile().0).collect());
        let tables = compile().1;
        let applied = median((0..ROUNDS_LONG).map(|_| in_netns(|| apply(&tables))).collect());
        report.note(&format!("{length} excluded CIDRs, annotation to rules"), compiled, "us");
        report.note(&format!("{length} excluded CIDRs, applied"), applied, "us");
        per_prefix.push((f64::from(length), compiled, applied));
    }
    let (none, most) = (per_prefix[0], per_prefix[LENGTHS.len() - 1]);
    report.note("each excluded CIDR, annotation to rules", (most.1 - none.1) / most.0, "us");
    report.note("each excluded CIDR, applied", (most.2 - none.2) / most.0, "us");
}

/// Prefixes with a gap after each, so that none merge.
fn prefixes(count: u32) -> String {
    let prefix = |n: u32| format!("10.{}.{}.0/25", n >> 8, n & 0xff);
    (0..count).map(prefix).collect::<Vec<_>>().join(",")
}

/// Microseconds that the agent's way takes, on a socket as a plugin hands it over. Closing it comes after the answer.
fn apply(tables: &[Table]) -> f64 {
    let socket = Netlink::Netfilter.open().unwrap();
    let begin = Instant::now();
    let mut kernel = Nftables::new(socket).unwrap();
    let applied = kernel.apply(tables).unwrap();
    let took = begin.elapsed().as_secs_f64() * 1e6;
    assert_eq!(applied, Applied::Created);
    took
}

/// Microseconds that the `nft` program takes, with its start.
fn nft_f(text: &str) -> f64 {
    let begin = Instant::now();
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
    begin.elapsed().as_secs_f64() * 1e6
}

/// What `measure` says in a fresh network namespace.
fn in_netns(measure: impl FnOnce() -> f64 + Send) -> f64 {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
            measure()
        });
        inside.join().unwrap()
    })
}
