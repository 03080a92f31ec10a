// SPDX-License-Identifier: Apache-2.0
//! The rules against real packets: every row of the matrix, and for every configuration of it and some more a list of
//! packets that takes each step of the rules, with the verdict of a second reading. Then the same once more without
//! each single rule, which has to show.
//!
//! Needs root. Everything happens in network namespaces of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, which prints what it ran")]

use std::collections::BTreeSet;
use std::time::Instant;

use agent_api::netns::Netlink;
use harness::check::{self, Case, Until, for_each};
use harness::lab::{Lab, Servers};
use harness::matrix::{Row, Settings, configurations, rows};
use harness::mutation::{Rig, mutants};
use harness::netns::Netns;
use harness::packet::{Expected, Packet, Protocol, Verdict, Way};
use harness::probe::{SILENCE, judge, probe};
use harness::{cases, oracle, sequence};
use kernel::{Applied, Backend as _, Nftables};
use ruleset::Form;
use serde_json::Value;

/// Rows of the matrix where we do something else than upstream does by accident, and why.
const DEVIATIONS: [(&str, Verdict, &str); 7] = [
    ("M106", Verdict::Pass, "the proxy's DNS over TCP is exempt whichever id it is known by"),
    ("M175", Verdict::Pass, "the tunnel port has a listener of its own in either mode"),
    ("M176", Verdict::Pass, "the tunnel port has a listener of its own in either mode"),
    ("M202", Verdict::Pass, "the tunnel port has a listener of its own in either mode"),
    ("M233", Verdict::Pass, "outbound exclusions hold on rerouted interfaces, too"),
    ("M234", Verdict::Pass, "outbound exclusions hold on rerouted interfaces, too"),
    ("M244", Verdict::Pass, "outbound exclusions hold on rerouted interfaces, too"),
];
/// Rows that are not run, and why.
const NOT_RUN: [(&str, &str); 0] = [];

/// All steps but O8, which nothing reaches while the proxy has one uid: O5 and O6 come first; and but T2, Z2 and Z4,
/// which are not about first packets of a client.
const STEPS: [&str; 40] = [
    "O1", "O2", "O3", "O4", "O5", "O6", "O7", "O9", "O10", "O11", "O12", "O13", "O14", "O15", "O16", "O17",
    "P1", "P2", "P3", "P4", "P5", "P6", "P7", "T1", "T3", "T4", "T5", "T6", "T7", "T8", "T9", "K1", "K2",
    "K3", "K4", "K5", "Z1", "Z3", "Z5", "Z6",
];

/// Rules whose absence no packet shows: configuration, chain, part of the rule, why.
const EQUIVALENT: [(&str, &str, &str, &str); 5] = [
    ("dns-port-excluded", "nat_output", "redirect to :15053", PORT_53_EXCLUDED),
    ("dns-port-excluded", "raw_output", "th sport 15053", PORT_53_EXCLUDED),
    ("tproxy, ipv4 only", "mangle_output", "nfproto ipv6", "no IPv6 connection is given the mark"),
    (
        "loopback included, dns",
        "nat_output",
        "ip6 daddr ::1 meta l4proto tcp redirect",
        "::1 is never captured",
    ),
    ("rerouted and excluded", "nat_prerouting", "iifname \"vm0\" accept", "the interface is excluded, too"),
];
const PORT_53_EXCLUDED: &str = "the settings capture DNS but exclude port 53: no query is redirected";

fn deviation(row: &Row) -> Option<Verdict> {
    DEVIATIONS.iter().find(|(id, ..)| *id == row.id).map(|(_, verdict, _)| *verdict)
}

fn is_sequence(row: &Row) -> bool {
    row.profile.starts_with("sp-")
}

/// What the matrix says besides the verdict, as far as the second reading knows it.
fn extras(row: &Row, expected: &Expected) -> bool {
    let value = |key: &str| {
        let mut pairs = row.extra.split("; ").filter_map(|pair| pair.split_once('='));
        pairs.find(|(k, _)| *k == key).map(|(_, value)| value.parse::<u32>().unwrap())
    };
    let agrees = |key, found: Option<u32>| value(key).is_none_or(|wanted| found == Some(wanted));
    let mark = deviation(row).is_some() || agrees("mark", expected.mark);
    mark && agrees("ct_zone", expected.zone.map(u32::from)) && agrees("mark_on_lo", expected.lo_mark)
}

#[test]
fn the_second_reading_agrees_with_every_row_but_for_our_deviations() {
    let mut deviating = Vec::new();
    for row in rows().iter().filter(|row| !is_sequence(row)) {
        let (expected, steps) = oracle::read(&row.settings, &row.packet);
        let wanted = deviation(row).unwrap_or(row.expected);
        assert_eq!(expected.verdict, wanted, "{} {}: {steps:?}", row.id, row.line);
        assert!(extras(row, &expected), "{} {}: {expected:?}", row.id, row.extra);
        if wanted != row.expected {
            assert_eq!(row.class, "quirk", "{}", row.id);
            deviating.push(row.id.as_str().to_owned());
        }
    }
    assert_eq!(deviating, DEVIATIONS.map(|(id, ..)| id));
}

/// The rows in groups that share a lab, in both forms, with each `rp_filter` in the pod.
fn run_rows(what: &str, rows: Vec<Row>, rp_filters: &[u8]) {
    let total = rows.len() * Form::ALL.len() * rp_filters.len();
    let (sequences, packets): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(is_sequence);
    let mut groups: Vec<Vec<Row>> = Vec::new();
    for row in packets {
        match groups.iter_mut().find(|group| group[0].settings == row.settings) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups.extend(sequences.into_iter().map(|row| vec![row]));
    let runs =
        Form::ALL.into_iter().flat_map(|form| rp_filters.iter().map(move |rp_filter| (form, *rp_filter)));
    let runs: Vec<_> = runs.flat_map(|run| groups.iter().map(move |group| (run, group))).collect();
    let results = for_each(runs, |((form, rp_filter), group)| {
        let sequence = is_sequence(&group[0]);
        let run = if sequence { run_sequence } else { run_packets };
        (group.len(), run(group, form, rp_filter))
    });
    report(what, results, total);
}

#[test]
fn every_row_of_the_matrix_gets_its_verdict() {
    let wanted = |row: &Row| NOT_RUN.iter().all(|(id, _)| *id != row.id);
    run_rows("rows of the matrix, in both forms", rows().into_iter().filter(wanted).collect(), &[0]);
    for (id, why) in NOT_RUN {
        println!("not run: {id}: {why}");
    }
}

/// The kernel may have been started with `ipv6.disable=1`: nothing here needs a socket or an address of IPv6.
#[test]
fn every_ipv4_row_gets_its_verdict_where_the_pod_has_no_ipv6() {
    let mut groups: Vec<Vec<Row>> = Vec::new();
    for mut row in rows().into_iter().filter(|row| row.packet.to.is_ipv4() && !is_sequence(row)) {
        row.settings = row.settings.with("ipv6=false");
        match groups.iter_mut().find(|group| group[0].settings == row.settings) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let total: usize = groups.iter().map(Vec::len).sum();
    assert!(total > 150, "{total}");
    let groups: Vec<_> =
        Form::ALL.into_iter().flat_map(|form| groups.iter().map(move |g| (form, g))).collect();
    let results = for_each(groups, |(form, group)| {
        let settings = &group[0].settings;
        let servers = Servers { ipv6: false, ..Servers::of(settings) };
        let cases: Vec<Case> = group.iter().map(case).collect();
        (group.len(), run_cases(settings, form, servers, &cases))
    });
    report("IPv4 rows without IPv6, in both forms", results, 2 * total);
}

/// A host may check whether it would answer by the interface that a packet came in by, or answer at all. What TPROXY
/// takes bears a mark, which routes it to `lo`.
#[test]
fn every_tproxy_row_gets_its_verdict_with_strict_and_with_loose_reverse_path_filtering() {
    let tproxy = |row: &Row| row.settings.value("mode") == "TPROXY";
    let what = "rows with TPROXY, in both forms, with rp_filter 1 and 2";
    run_rows(what, rows().into_iter().filter(tproxy).collect(), &[1, 2]);
}

#[test]
fn reverse_path_filtering_is_at_work_and_tproxy_stands_it_but_not_src_valid_mark() {
    let settings = rows().into_iter().find(|row| row.profile == "tproxy").unwrap().settings;
    let plan = redirect::compile(&settings.config());
    let packet = |way, from: &str, to: &str, port| Packet {
        way: Way::In(way),
        protocol: Protocol::Tcp,
        from: Some(from.parse().unwrap()),
        to: to.parse().unwrap(),
        port,
        mark: 0,
    };
    for rp_filter in [0, 1, 2] {
        let lab = Lab::new(Servers { rp_filter, ..Servers::of(&settings) });
        let verdict = |packet| judge(&packet, &probe(&lab, &packet, lab.fresh_port(), SILENCE));
        // The answer comes in by `eth0`, the way to its source leads through `net1`.
        let elsewhere = if rp_filter == 1 { Verdict::Drop } else { Verdict::Pass };
        assert_eq!(verdict(packet("vm0", "10.79.0.2", "198.18.0.5", 8080)), Ok(elsewhere), "{rp_filter}");
        lab.program(&plan);
        let captured = packet("eth0", "10.77.0.1", "10.77.0.2", 8080);
        assert_eq!(verdict(captured), Ok(Verdict::Tproxy(15006)), "{rp_filter}");
        // docs/RULES.md: the kernel then looks for the way back in table 133, too, where all is local.
        lab.pod.sysctl("ipv4/conf/all/src_valid_mark", "1");
        assert_eq!(verdict(captured), Ok(Verdict::Drop), "{rp_filter}, the mark counts");
    }
}

fn run_sequence(group: &[Row], form: Form, rp_filter: u8) -> Vec<String> {
    let [row] = group else { panic!("a sequence has a lab of its own") };
    match sequence::verdict(row, form, rp_filter) {
        Ok(verdict) if verdict == row.expected => Vec::new(),
        other => {
            vec![format!(
                "{} {} {}: expected {}, got {other:?}\n    with {form:?}, rp_filter {rp_filter}",
                row.id, row.profile, row.line, row.expected
            )]
        }
    }
}

fn run_packets(group: &[Row], form: Form, rp_filter: u8) -> Vec<String> {
    let settings = &group[0].settings;
    let servers = Servers { rp_filter, ..Servers::of(settings) };
    run_cases(settings, form, servers, &group.iter().map(case).collect::<Vec<_>>())
}

/// A row with its verdict, and whatever else the second reading says about its packet.
fn case(row: &Row) -> Case {
    let (expected, _) = oracle::read(&row.settings, &row.packet);
    let verdict = deviation(row).unwrap_or(row.expected);
    Case { id: row.id.clone(), packet: row.packet, expected: Expected { verdict, ..expected } }
}

fn run_cases(settings: &Settings, form: Form, servers: Servers, cases: &[Case]) -> Vec<String> {
    let lab = Lab::programmed(servers, &redirect::compile(&settings.config()).in_form(form));
    let failures = check::run(&lab, cases, Until::End);
    failures
        .into_iter()
        .map(|failure| {
            format!("{failure}\n    with {form:?}, rp_filter {}, {}", servers.rp_filter, settings.text)
        })
        .collect()
}

/// Print the sums and fail when something failed or was left out.
fn report(what: &str, results: Vec<(usize, Vec<String>)>, total: usize) {
    let run: usize = results.iter().map(|(run, _)| run).sum();
    let failures: Vec<String> = results.into_iter().flat_map(|(_, failures)| failures).collect();
    // One packet may fail in several ways: what tells it apart is its name, which comes first, and its settings, which
    // come last.
    let failed: BTreeSet<_> =
        failures.iter().map(|text| (text.split([':', ' ']).next(), text.lines().nth(1))).collect();
    println!("{what}: {run} run, {} passed", run.saturating_sub(failed.len()));
    assert_eq!(run, total, "{what}");
    assert!(failures.is_empty(), "{what}:\n{}", failures.join("\n"));
}

#[test]
fn generated_packets_take_every_step_and_get_the_verdict_of_the_second_reading() {
    let generated: Vec<_> = configurations()
        .into_iter()
        .map(|(_, settings)| {
            let (cases, traces): (Vec<Case>, Vec<oracle::Trace>) =
                cases::generate(&settings).into_iter().unzip();
            (settings, cases, traces)
        })
        .collect();
    let taken: BTreeSet<&str> =
        generated.iter().flat_map(|(_, _, traces)| traces.iter().flatten().copied()).collect();
    assert_eq!(taken, BTreeSet::from(STEPS));
    let total: usize = generated.iter().map(|(_, cases, _)| cases.len()).sum();
    let generated: Vec<_> =
        Form::ALL.into_iter().flat_map(|form| generated.iter().map(move |g| (form, g))).collect();
    let results = for_each(generated, |(form, (settings, cases, _))| {
        (cases.len(), run_cases(settings, form, Servers::of(settings), cases))
    });
    report("generated packets, in both forms", results, 2 * total);
}

/// The rule sets of `netns` as `nft` lists them, without what differs from run to run.
fn listing(netns: &Netns) -> Vec<Value> {
    let document: Value =
        serde_json::from_str(&netns.program("nft", &["-j", "list", "ruleset"], "")).unwrap();
    let mut objects = document["nftables"].as_array().unwrap().clone();
    objects.retain(|object| object.get("metainfo").is_none());
    for body in objects.iter_mut().flat_map(|object| object.as_object_mut().unwrap().values_mut()) {
        body.as_object_mut().unwrap().remove("handle");
        // The kernel keeps the elements of plain sets in no order.
        if let Some(elements) = body.get_mut("elem").and_then(Value::as_array_mut) {
            elements.sort_by_key(ToString::to_string);
        }
    }
    objects
}

#[test]
fn compiled_rules_list_the_same_whether_we_or_nft_write_them() {
    let configurations = configurations();
    let configurations = Form::ALL.into_iter().flat_map(|form| configurations.iter().map(move |c| (form, c)));
    for (form, (name, settings)) in configurations {
        let tables = redirect::compile(&settings.config()).in_form(form).tables;
        let (ours, theirs) = (Netns::fresh(), Netns::fresh());
        theirs.program("nft", &["-f", "-"], &tables.iter().map(ruleset::render).collect::<String>());
        ours.run(move || {
            let socket = Netlink::Netfilter.open().unwrap();
            assert_eq!(Nftables::new(socket).unwrap().apply(&tables).unwrap(), Applied::Created);
        });
        let (ours, theirs) = (listing(&ours), listing(&theirs));
        assert!(ours.len() > 5, "{name}: {ours:?}");
        assert_eq!(ours, theirs, "{name}");
    }
}

/// What removing each rule of one configuration showed.
#[derive(Default)]
struct Removed {
    noticed: usize,
    equivalent: Vec<String>,
    wrong: Vec<String>,
}

fn remove_each_rule(name: &str, settings: &Settings, rows: &[Row]) -> Removed {
    let own = |row: &&Row| row.settings == *settings && !is_sequence(row);
    let mut rig = Rig::new(settings, rows.iter().filter(own).map(case).collect());
    let mut removed = Removed::default();
    if let Some(failure) = rig.failure() {
        removed.wrong.push(format!("{name}: with all rules: {failure}"));
        return removed;
    }
    for mutant in mutants(rig.table()) {
        let named = format!("{name}: {}: {}", mutant.chain, mutant.rule);
        let known = |(config, chain, part, _): &&(&str, &str, &str, &str)| {
            *config == name && *chain == mutant.chain && mutant.rule.contains(part)
        };
        let known = EQUIVALENT.iter().find(known);
        let until = if known.is_some() { Until::End } else { Until::FirstFailure };
        match (rig.notice(&mutant, until), known) {
            (Some(_), None) => removed.noticed += 1,
            (None, Some((.., why))) => removed.equivalent.push(format!("{named}: {why}")),
            (None, None) => removed.wrong.push(format!("{named}: nothing shows that it is missing")),
            (Some(failure), Some(_)) => removed.wrong.push(format!("{named}: not equivalent: {failure}")),
        }
    }
    removed
}

#[test]
fn without_any_single_rule_some_packet_goes_wrong() {
    let (start, rows) = (Instant::now(), rows());
    let results = for_each(configurations(), |(name, settings)| remove_each_rule(&name, &settings, &rows));
    let noticed: usize = results.iter().map(|removed| removed.noticed).sum();
    let all =
        |lines: fn(&Removed) -> &Vec<String>| results.iter().flat_map(lines).cloned().collect::<Vec<_>>();
    let (equivalent, wrong) = (all(|removed| &removed.equivalent), all(|removed| &removed.wrong));
    println!(
        "rules removed: {}, noticed {noticed}, equivalent {}, in {:.0?}",
        noticed + equivalent.len() + wrong.len(),
        equivalent.len(),
        start.elapsed()
    );
    equivalent.iter().for_each(|line| println!("equivalent: {line}"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unused =
        EQUIVALENT.iter().find(|(config, ..)| !equivalent.iter().any(|line| line.starts_with(config)));
    assert_eq!(unused, None, "listed as equivalent, but there is no such rule");
}
