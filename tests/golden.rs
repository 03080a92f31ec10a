// SPDX-License-Identifier: Apache-2.0
//! Ten pods as Istio's injector leaves them, from `pod.yaml` to packets. Each has a directory in `tests/golden/`:
//!
//! - `pod.yaml`: the pod; `status.podIPs` says which families it has.
//! - `rules.nft`: what it compiles to. After a wanted change: `UPDATE_GOLDEN=1 cargo test -p waylay-tests --test golden`,
//!   and review the diff as code.
//! - `traffic.csv`: what becomes of packets, written by hand from what redirection is to do, never from what our code
//!   says. Columns: `who` sends (`app` and `proxy` of the pod, another `uid:gid` in it, or who is beyond an interface:
//!   `client`, `net1`, `vm`); `from` this address and with this `mark`, or as the kernel chooses; `protocol` (`early` is
//!   TCP before the proxy listens, `invalid` a TCP segment of no connection); destination `to` and `port`; `expected`;
//!   what `also` is to be seen; `why`, which begins with the step of `docs/RULES.md`.
//!
//! Needs root. Everything happens in network namespaces of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, which prints what it ran")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use agent_api::netns::Netlink;
use harness::check::{self, Until, for_each};
use harness::golden::Golden;
use harness::lab::{Lab, Servers};
use harness::mutation::mutants;
use harness::netns::Netns;
use harness::packet::Verdict;
use harness::probe::PATIENCE;
use harness::{observer, sequence};
use kernel::PodNetns;
use redirect::{Ipv6Decision, decide_ipv6};
use ruleset::{Form, Plan, Table};

/// Directory, rows of its traffic, what becomes of IPv6, and what it is about.
const CASES: [(&str, usize, Ipv6Decision, &str); 10] = [
    ("web", 38, Ipv6Decision::Absent, "all defaults"),
    ("native-sidecar", 21, Ipv6Decision::Bypass, "the proxy is an init container; IPv6 is left alone"),
    ("dns-capture", 28, Ipv6Decision::Absent, "DNS proxy"),
    ("tproxy", 41, Ipv6Decision::Served, "TPROXY mode, the proxy runs as root"),
    ("openshift", 18, Ipv6Decision::Absent, "uid and gid by the namespace's ranges"),
    ("database", 30, Ipv6Decision::Absent, "excluded prefixes and ports"),
    ("dual-stack", 31, Ipv6Decision::Served, "both families"),
    ("ipv6-only", 29, Ipv6Decision::Served, "IPv6 only, DNS proxy"),
    ("kubevirt", 28, Ipv6Decision::Absent, "a virtual machine and a second network"),
    ("narrow-lists", 31, Ipv6Decision::Absent, "included prefixes and ports, invalid segments dropped"),
];
/// Rows in all.
const TOTAL: usize = 295;
/// Rows that every case has at least.
const MIN_ROWS: usize = 15;
/// The IPv4 addresses of the lab's pod.
const IPV4: &str = "addr del 10.77.0.2/24 dev eth0\naddr del 10.78.0.2/24 dev net1\n\
                    addr del 10.79.0.1/24 dev vm0\naddr del 10.96.9.9/32 dev lo\n";
/// Rules whose absence no row shows: case, chain and how the rule begins, why.
const EQUIVALENT: [(&str, &str, &str); 4] = [
    ("dns-capture", "raw_output: meta l4proto udp th sport 15053 meta skuid 1337 ", BOTH_IDS),
    ("dns-capture", "raw_output: meta l4proto udp th sport 15053 meta skgid 1337 ", BOTH_IDS),
    ("ipv6-only", "raw_output: meta l4proto udp th sport 15053 meta skuid 1337 ", BOTH_IDS),
    ("ipv6-only", "raw_output: meta l4proto udp th sport 15053 meta skgid 1337 ", BOTH_IDS),
];
const BOTH_IDS: &str = "the DNS proxy's socket has both ids of the proxy: the other rule knows it";

/// All directories.
fn all() -> Vec<Golden> {
    CASES.iter().map(|(name, ..)| Golden::load(name)).collect()
}

/// A lab whose pod has the families of `golden` and holds `plan`.
fn lab(golden: &Golden, plan: &Plan, inbound: bool, others: bool) -> Lab {
    let [ipv4, ipv6] = golden.families();
    let lab = Lab::new(Servers { proxy: golden.proxy(), inbound, others, ipv6, rp_filter: 0 });
    if !ipv4 {
        lab.pod.ip(IPV4);
    }
    let sockets = lab.pod.run(|| [Netlink::Netfilter, Netlink::Route].map(|kind| kind.open().unwrap()));
    let [netfilter, route] = sockets;
    let present = PodNetns::new(netfilter, route).unwrap().addresses().unwrap();
    let present: Vec<IpAddr> = present.into_iter().map(|address| address.addr).collect();
    let (config, decision) = golden.config();
    let policy = config.ipv6_policy.unwrap_or_default();
    assert_eq!(decide_ipv6(policy, config.dual_stack, &[], &present), Ok(decision), "{}", golden.name);
    observer::start(&lab.pod);
    lab.program(plan);
    if plan.passthrough_ipv6 {
        wait_for_passthrough(&lab.pod);
    }
    lab
}

/// Where the rows of one pod are sent.
struct Labs<'a> {
    golden: &'a Golden,
    main: Lab,
    /// Without an inbound listener.
    early: Option<Lab>,
    /// With what captures and nothing else.
    bare: Option<Lab>,
}

impl<'a> Labs<'a> {
    fn new(golden: &'a Golden, plan: &Plan) -> Self {
        Self {
            golden,
            main: lab(golden, plan, true, true),
            early: (!golden.early.is_empty()).then(|| lab(golden, plan, false, true)),
            bare: (!golden.invalid.is_empty()).then(|| lab(golden, plan, true, false)),
        }
    }

    /// One line for each row that fails with `tables`.
    fn failures(&self, tables: &[Table], until: Until) -> Vec<String> {
        let mut failures = Vec::new();
        let enough = |failures: &Vec<String>| until == Until::FirstFailure && !failures.is_empty();
        for (lab, rows) in [(Some(&self.main), &self.golden.rows), (self.early.as_ref(), &self.golden.early)]
        {
            if let Some(lab) = lab.filter(|_| !enough(&failures)) {
                lab.apply(tables);
                failures.extend(check::run(lab, rows, until));
            }
        }
        for (port, verdict) in &self.golden.invalid {
            if enough(&failures) {
                break;
            }
            let dropped = sequence::invalid_is_dropped(self.bare.as_ref().unwrap(), &tables[0], *port);
            if dropped != (*verdict == Verdict::Drop) {
                failures.push(format!("{}: invalid to {port} is dropped: {dropped}", self.golden.name));
            }
        }
        failures
    }
}

/// The kernel adds the route to a new address when a worker of its gets round to it.
fn wait_for_passthrough(pod: &Netns) {
    let deadline = Instant::now() + PATIENCE;
    while pod.program("ip", &["-6", "route", "show", "table", "local", "::6"], "").is_empty() {
        assert!(Instant::now() < deadline, "no route to ::6");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn there_is_one_directory_for_each_case_of_the_table_with_its_rows() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let names = |dir: &Path| -> BTreeSet<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names(&dir), CASES.iter().map(|(name, ..)| (*name).to_owned()).collect());
    let mut total = 0;
    for (golden, (name, wanted, ipv6, about)) in all().iter().zip(CASES) {
        let rows = golden.row_count();
        println!("{name}: {rows} rows, {}: {about}", ipv6.code());
        assert_eq!(
            names(&golden.dir),
            ["pod.yaml", "rules.nft", "traffic.csv"].map(String::from).into(),
            "{name}"
        );
        assert_eq!(golden.config().1, ipv6, "{name}");
        assert_eq!(rows, wanted, "{name}");
        assert!(rows >= MIN_ROWS, "{name}");
        total += rows;
    }
    println!("{} pods, {total} rows of traffic", CASES.len());
    assert_eq!(total, TOTAL);
}

#[test]
fn pods_compile_to_the_reviewed_rules_and_nft_accepts_them() {
    let netns = Netns::fresh();
    for golden in all() {
        let plan = golden.plan();
        let path = golden.dir.join("rules.nft");
        let tables: String = plan.tables.iter().map(ruleset::render).collect();
        let rest =
            format!("# passthrough_ipv6 {}\n# policy_route {:?}\n", plan.passthrough_ipv6, plan.policy_route);
        let text = format!("# SPDX-License-Identifier: Apache-2.0\n{tables}{rest}");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{}", golden.name);
        netns.program("nft", &["--check", "-f", path.to_str().unwrap()], "");
    }
    assert_eq!(netns.program("nft", &["list", "ruleset"], ""), "", "a check leaves nothing");
}

#[test]
fn every_row_of_traffic_gets_its_verdict_in_both_forms() {
    let golden = all();
    let runs: Vec<_> = Form::ALL.into_iter().flat_map(|form| golden.iter().map(move |g| (form, g))).collect();
    let results = for_each(runs, |(form, golden)| {
        let plan = golden.plan().in_form(form);
        let failures = Labs::new(golden, &plan).failures(&plan.tables, Until::End);
        let failures: Vec<String> = failures.into_iter().map(|line| format!("{line} ({form:?})")).collect();
        (golden.row_count(), failures)
    });
    let run: usize = results.iter().map(|(rows, _)| rows).sum();
    let failures: Vec<String> = results.into_iter().flat_map(|(_, failures)| failures).collect();
    println!("traffic of golden pods, in both forms: {run} run, {} failed", failures.len());
    assert_eq!(run, Form::ALL.len() * TOTAL);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// How many rules of `golden` are missed by its traffic, and a line for each that is not.
fn remove_each_rule(golden: &Golden) -> (usize, Vec<String>) {
    let plan = golden.plan();
    let (labs, mut noticed, mut unnoticed) = (Labs::new(golden, &plan), 0, Vec::new());
    assert_eq!(labs.failures(&plan.tables, Until::End), [""; 0], "{} with all rules", golden.name);
    let [_, ipv6] = golden.families();
    // Who has no IPv6 sends none past the rule that leaves it alone.
    for mutant in mutants(&plan.tables[0]).into_iter().filter(|m| ipv6 || m.reason != "ipv6_left_alone") {
        if labs.failures(std::slice::from_ref(&mutant.table), Until::FirstFailure).is_empty() {
            unnoticed.push(format!("{}: {}: {}", golden.name, mutant.chain, mutant.rule));
        } else {
            noticed += 1;
        }
    }
    (noticed, unnoticed)
}

#[test]
fn without_any_single_rule_of_a_pod_a_row_of_its_traffic_goes_wrong() {
    let results = for_each(all(), |golden| remove_each_rule(&golden));
    let noticed: usize = results.iter().map(|(noticed, _)| noticed).sum();
    let unnoticed: Vec<String> = results.into_iter().flat_map(|(_, lines)| lines).collect();
    println!("rules of golden pods removed: {noticed} noticed, {} equivalent", unnoticed.len());
    let known = |line: &&String| {
        let rule = EQUIVALENT.iter().find(|(case, rule, _)| line.starts_with(&format!("{case}: {rule}")));
        rule.inspect(|(.., why)| println!("equivalent: {line}: {why}")).is_some()
    };
    let (equivalent, wrong): (Vec<&String>, Vec<&String>) = unnoticed.iter().partition(known);
    assert!(wrong.is_empty(), "no row shows that it is missing: {wrong:#?}");
    assert_eq!(
        equivalent.len(),
        EQUIVALENT.len(),
        "listed as equivalent, but a row shows it: {equivalent:#?}"
    );
}
