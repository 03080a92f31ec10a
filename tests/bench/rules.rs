// SPDX-License-Identifier: Apache-2.0
//! Rules: how many they are in the kernel, and how long they take to apply.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use agent_api::netns::Netlink;
use kernel::{Applied, Backend as _, Nftables};
use nix::sched::{CloneFlags, unshare};
use redirect::{Config, Dns, Ipv6, Mode, OwnerGroups};
use ruleset::Table;

use crate::report::{Report, median};

/// Fresh network namespaces for each way.
const ROUNDS: usize = 100;

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
        let rules = in_netns(|| in_kernel(&tables));
        report.limited(&format!("rules, {name}, dual stack"), rules, "", rules_max);
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
}

/// Microseconds that the agent's way takes, on a socket as a plugin hands it over. Closing it comes after the answer.
pub(crate) fn apply(tables: &[Table]) -> f64 {
    let socket = Netlink::Netfilter.open().unwrap();
    let begin = Instant::now();
    let mut kernel = Nftables::new(socket).unwrap();
    let applied = kernel.apply(tables).unwrap();
    let took = begin.elapsed().as_secs_f64() * 1e6;
    assert_eq!(applied, Applied::Created);
    took
}

/// How many rules the kernel has when `tables` are applied.
fn in_kernel(tables: &[Table]) -> f64 {
    let mut kernel = Nftables::new(Netlink::Netfilter.open().unwrap()).unwrap();
    kernel.apply(tables).unwrap();
    let observed = kernel.observe().unwrap();
    observed.iter().flat_map(|table| &table.chains).map(|chain| chain.rules.len()).sum::<usize>() as f64
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
pub(crate) fn in_netns(measure: impl FnOnce() -> f64 + Send) -> f64 {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
            measure()
        });
        inside.join().unwrap()
    })
}
