// SPDX-License-Identifier: Apache-2.0
//! ADD, ADD again and CHECK of one pod, with rules changed by somebody else in between; logs and counters of it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use agent_api::{Operation, Outcome};
use common::{Agent, Dir, PodNetns, ask, request, wait};

#[test]
fn check_compares_with_what_add_wrote_and_not_with_today_s_pod() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let agent = Agent::start(&dir);
    let pod = PodNetns::new();
    let exchange = |operation| {
        let answer = ask(&dir, &request(operation, "a"), &pod.fds()).unwrap();
        (answer.outcome, answer.reason)
    };
    let done = |reason: &str| (Outcome::Done, reason.to_owned());
    assert_eq!(exchange(Operation::Check), done("not_redirected"));
    assert_eq!(exchange(Operation::Add), done("programmed"));
    assert_eq!(exchange(Operation::Add), done("unchanged"));
    dir.pod("a", "sidecar.istio.io/status: '', traffic.sidecar.istio.io/excludeInboundPorts: '80,'");
    assert_eq!(exchange(Operation::Check), done("rules_as_written"));
    pod.command("nft flush chain inet waylay nat_output");
    assert_eq!(exchange(Operation::Check), (Outcome::Fail(107), "rules_differ".to_owned()));
    dir.mesh_pod("a");
    wait("replaced rules", || exchange(Operation::Add) == done("replaced"), || agent.log());
    assert_eq!(exchange(Operation::Check), done("rules_as_written"));
    pod.command("nft flush ruleset");
    assert_eq!(exchange(Operation::Check), (Outcome::Fail(107), "rules_gone".to_owned()));
    assert_eq!(exchange(Operation::Add), done("programmed"));
}

#[test]
fn each_decision_is_one_line_and_one_count() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    dir.pod("plain", "");
    let agent = Agent::spawn(
        &dir,
        &["--bounding-set=-all,+net_admin"],
        &["--log_as_json", "--log_output_level=info"],
    );
    agent.wait_log("took the socket");
    let pod = PodNetns::new();
    for name in ["a", "plain"] {
        assert_eq!(ask(&dir, &request(Operation::Add, name), &pod.fds()).unwrap().outcome, Outcome::Done);
    }
    let lines = || -> Vec<serde_json::Value> {
        let log = agent.log();
        // Logged after the answer, each by its own thread: in any order.
        let mut lines: Vec<_> = log
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .filter(|l: &serde_json::Value| l["op"] == "add")
            .collect();
        lines.sort_by_key(|line| line["pod.name"].to_string());
        lines
    };
    wait("two lines", || lines().len() == 2, || agent.log());
    let line = &lines()[0];
    assert_eq!(
        (
            line["level"].as_str(),
            line["reason"].as_str(),
            line["pod.name"].as_str(),
            line["pod.uid"].as_str()
        ),
        (Some("INFO"), Some("programmed"), Some("a"), Some("u"))
    );
    assert!(
        line["netns.inode"].as_u64().unwrap() > 0 && line["elapsed_ms"].as_f64().unwrap() > 0.0,
        "{line}"
    );
    assert_eq!(lines()[1]["reason"], "no_sidecar");
    let metrics = agent.metrics();
    for line in [
        "waylay_adds_total{result=\"done\",reason=\"programmed\"} 1",
        "waylay_adds_total{result=\"done\",reason=\"no_sidecar\"} 1",
        "waylay_add_duration_seconds_count 2",
        "waylay_rules_written_total 10",
        "waylay_socket_holder 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
}

#[test]
fn ipv6_and_tproxy_get_their_address_and_policy_routes_once() {
    let dir = Dir::new();
    dir.pod("a", "sidecar.istio.io/status: '', sidecar.istio.io/interceptionMode: TPROXY");
    let _agent = Agent::start(&dir);
    let (v4, v6) = (PodNetns::new(), PodNetns::new());
    v6.command("ip address flush dev lo");
    v6.command("ip address add fd00::1/64 dev lo nodad");
    for pod in [&v4, &v6] {
        for reason in ["programmed", "unchanged"] {
            let answer = ask(&dir, &request(Operation::Add, "a"), &pod.fds()).unwrap();
            assert_eq!(answer.reason, reason, "{}", answer.message);
        }
    }
    let lines =
        |pod: &PodNetns, line| pod.command(line).lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>();
    let marked =
        |pod, line| lines(pod, line).into_iter().filter(|l| l.contains("fwmark 0x539 lookup 133")).count();
    assert_eq!((marked(&v4, "ip -4 rule"), marked(&v4, "ip -6 rule")), (1, 0));
    assert_eq!((marked(&v6, "ip -4 rule"), marked(&v6, "ip -6 rule")), (1, 1));
    assert_eq!(lines(&v6, "ip -6 route show table 133").len(), 1);
    let passthrough =
        |pod| lines(pod, "ip -6 -o address show dev lo").iter().filter(|l| l.contains(" ::6/128 ")).count();
    assert_eq!((passthrough(&v4), passthrough(&v6)), (0, 1));
}

#[test]
fn a_pod_without_an_address_is_told_so_and_left_alone() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let _agent = Agent::start(&dir);
    let pod = PodNetns::new();
    pod.command("ip address flush dev lo");
    let answer = ask(&dir, &request(Operation::Add, "a"), &pod.fds()).unwrap();
    assert_eq!(
        (answer.outcome, answer.reason.as_str()),
        (Outcome::Fail(110), "no_address"),
        "{}",
        answer.message
    );
    assert_eq!(pod.rules(), "");
}

#[test]
fn rules_of_another_release_that_this_one_cannot_read_are_told_by_their_fingerprint() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let _agent = Agent::start(&dir);
    let pod = PodNetns::new();
    let check = || {
        let answer = ask(&dir, &request(Operation::Check, "a"), &pod.fds()).unwrap();
        (answer.outcome, answer.reason)
    };
    for (form, expected) in [
        (2, (Outcome::Done, "other_release".to_owned())),
        (1, (Outcome::Fail(107), "rules_differ".to_owned())),
    ] {
        // `limit` is no expression of this release.
        let rules = format!(
            "table inet waylay {{\n set fingerprint {{ type mark; comment \"form {form} 0123456789abcdef\"; }}\n \
             chain out {{ type filter hook output priority 0; policy accept;\n limit rate 5/second accept;\n }}\n }}\n"
        );
        let file = dir.0.join("rules.nft");
        std::fs::write(&file, format!("flush ruleset\n{rules}")).unwrap();
        pod.inside(move || {
            let output = std::process::Command::new("nft").arg("-f").arg(&file).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
        assert_eq!(check(), expected, "form {form}");
    }
}
