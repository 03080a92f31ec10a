// SPDX-License-Identifier: Apache-2.0
//! What the agent may do: with CAP_NET_ADMIN alone it works, with more it drops the rest, without it it says so.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::os::unix::fs::chown;

use agent_api::{Operation, Outcome};
use common::{Agent, Dir, PodNetns, ask, request};

/// Bits of `/proc/<pid>/status`.
const NET_ADMIN: u64 = 1 << 12;
const DAC_OVERRIDE: u64 = 1 << 1;

fn sets(agent: &Agent) -> [u64; 5] {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .map(|key| u64::from_str_radix(&agent.status(key), 16).unwrap())
}

fn every_thread_has(agent: &Agent, wanted: u64) {
    for thread in fs::read_dir(format!("/proc/{}/task", agent.child.id())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        let name = status.lines().next().unwrap();
        for line in status.lines().filter(|l| l.starts_with("CapPrm") || l.starts_with("CapEff")) {
            assert_eq!(u64::from_str_radix(line[7..].trim(), 16).unwrap(), wanted, "{name}: {line}");
        }
    }
}

#[test]
fn net_admin_alone_in_a_netns_of_its_own_is_enough_to_program_a_pod() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let agent = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &[]);
    agent.wait_log("took the socket");
    every_thread_has(&agent, NET_ADMIN);
    let pod = PodNetns::new();
    let answer = ask(&dir, &request(Operation::Add, "a"), &pod.fds()).unwrap();
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Done, "programmed"), "{}", answer.message);
    assert!(pod.rules().contains("table inet waylay"), "{}", pod.rules());
}

#[test]
fn everything_else_is_dropped_from_every_set_of_every_thread() {
    let dir = Dir::new();
    let agent = Agent::spawn(&dir, &["--inh-caps=+net_raw,+sys_admin", "--ambient-caps=+net_raw"], &[]);
    agent.wait_log("took the socket");
    assert_eq!(sets(&agent), [0, NET_ADMIN, NET_ADMIN, 0, 0]);
    every_thread_has(&agent, NET_ADMIN);
}

#[test]
fn dac_override_stays_only_where_the_run_directory_is_somebody_else_s() {
    let dir = Dir::new();
    chown(dir.run(), Some(12345), Some(12345)).unwrap();
    let agent = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin,+dac_override"], &[]);
    agent.wait_log("took the socket");
    every_thread_has(&agent, NET_ADMIN | DAC_OVERRIDE);
    drop(agent);
    let (code, text) = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &[]).failed();
    assert_eq!(code, Some(1));
    assert!(text.contains("bind the sockets in") && text.contains("Permission denied"), "{text}");
}

#[test]
fn without_net_admin_the_agent_names_it_and_fails() {
    let dir = Dir::new();
    let (code, text) = Agent::spawn(&dir, &["--bounding-set=-all,+net_raw"], &[]).failed();
    assert_eq!(code, Some(1));
    assert!(text.contains("capability CAP_NET_ADMIN is missing"), "{text}");
}

#[test]
fn the_limit_of_open_files_is_raised() {
    let dir = Dir::new();
    let agent = Agent::spawn(&dir, &["prlimit", "--nofile=64:1000"], &[]);
    agent.wait_log("took the socket");
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.child.id())).unwrap();
    let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["1000", "1000"]);
}

#[test]
fn unknown_flags_exit_with_1_and_unknown_variables_are_ignored() {
    let dir = Dir::new();
    let (code, text) = Agent::spawn(&dir, &["--no-new-privs"], &["--unknown"]).failed();
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--unknown"), "{text}");
    let env = ["env", "AMBIENT_ENABLED=true", "REPAIR_ENABLED=", "MONITORING_PORT="];
    let agent = Agent::spawn(&dir, &env, &[]);
    agent.wait_log("took the socket");
    assert!(agent.log().contains("\"monitoring_port\":null"), "{}", agent.log());
}

#[test]
fn a_run_directory_with_too_long_a_path_is_named_with_the_limit() {
    let dir = Dir::new();
    let root = dir.0.to_str().unwrap().len() + 1;
    for (len, works) in [(72, true), (73, false)] {
        let run = dir.0.join("r".repeat(len - root));
        let flag = format!("--cni-agent-run-dir={}", run.display());
        let agent = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &[&flag]);
        if works {
            agent.wait_log("took the socket");
            continue;
        }
        let (code, text) = agent.failed();
        assert_eq!(code, Some(1), "{text}");
        let expected = format!("bind the sockets in {}: its path has 73 bytes, and", run.display());
        assert!(text.contains(&expected) && text.contains("leave room for 72"), "{text}");
    }
}
