// SPDX-License-Identifier: Apache-2.0
//! Pods of a real containerd while the agent is rolled, killed and broken: each starts, later at worst, and none starts
//! without redirection.
//!
//! Needs root. Everything happens in namespaces of its own.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code: figures are part of the report")]

mod burst;
mod cgroup;
mod cri;
mod installer;
mod lab;
mod load;
mod redirection;
mod runtime;
mod status;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use harness::node::{Agent, Node, agent_binary};
use nix::sys::signal::Signal;

use crate::lab::Lab;
use crate::load::{pods_while, start_and_remove};
use crate::runtime::{Runtime, on_each_runtime};

on_each_runtime! {
    pods_keep_starting_while_the_agent_is_rolled_twenty_times = crate::rolled_twenty_times;
    pods_keep_starting_while_the_agent_is_killed_twenty_times = crate::killed_twenty_times;
    a_release_that_crashes_at_start_holds_up_no_pod = crate::crashes_at_start;
    a_release_that_crashes_after_it_took_the_role_fails_no_pod = crate::crashes_after_it_took_the_role;
    a_release_that_hangs_after_it_took_the_role_fails_no_pod = crate::hangs_after_it_took_the_role;
    a_pod_is_redirected_in_both_directions_and_families = crate::redirection::both_directions_and_families;
    without_an_agent_a_pod_without_sidecar_starts_at_once_and_a_mesh_pod_when_it_comes =
        crate::redirection::without_an_agent;
    the_runtime_s_own_plugin_for_lo_never_meets_our_address = crate::burst::lo;
    the_node_stays_ready_while_the_agent_is_away = crate::status::agent_away;
    an_agent_installs_itself_at_the_end_of_a_list = crate::installer::list;
    an_agent_installs_itself_behind_a_single_plugin = crate::installer::single;
    an_agent_holds_its_entry_against_a_vendor_that_writes_every_second = crate::installer::restless_chained;
    an_agent_s_own_file_is_not_touched_by_a_vendor_that_writes_every_second = crate::installer::restless_own_file;
    an_agent_installs_itself_behind_multus = crate::installer::multus_chained;
    multus_finds_an_agent_s_file_for_pods_that_ask_for_it = crate::installer::multus_standalone;
}

/// Which agent serves the well-known name.
fn holder(node: &Node) -> Option<u64> {
    fs::metadata(agent_api::path::requests(&node.run_dir())).ok().map(|file| file.ino())
}

/// Wait until `done` says so.
fn wait_until(node: &Node, what: &str, done: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < give_up, "{what}\n{}", fs::read_to_string(node.log()).unwrap_or_default());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Start an agent beside the one that serves, and wait until it has taken the role.
fn start_newer(node: &Node) -> Agent {
    let before = holder(node);
    let newer = node.spawn_agent(agent_binary(), &[]);
    wait_until(node, "the newer agent does not take the role", || holder(node) != before);
    newer
}

/// Another moment of a pod's start for each `n`, in milliseconds: a sandbox takes 100 and more.
fn moment(n: u64) -> u64 {
    17 * n % 60
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn rolled_twenty_times(runtime: Runtime) {
    let lab = Lab::new(runtime);
    let node = &lab.node;
    let mut agent = node.start_agent();
    let outcome = pods_while(
        |n| start_and_remove(&lab, n),
        |asked| {
            let roll = |n: u64| {
                pause(500);
                asked.next();
                pause(moment(n));
                let begin = Instant::now();
                let newer = start_newer(node);
                agent.signal(Signal::SIGTERM);
                assert!(agent.wait(), "SIGTERM is a success");
                agent = newer;
                begin..Instant::now()
            };
            (0..20).map(roll).collect()
        },
    );
    outcome.assert_all_started(15);
}

fn killed_twenty_times(runtime: Runtime) {
    let lab = Lab::new(runtime);
    let node = &lab.node;
    let mut agent = Some(node.start_agent());
    let outcome = pods_while(
        |n| start_and_remove(&lab, n),
        |asked| {
            let kill = |n: u64| {
                asked.next();
                pause(moment(n));
                let begin = Instant::now();
                drop(agent.take());
                pause(400);
                agent = Some(start_newer(node));
                begin..Instant::now()
            };
            (0..20).map(kill).collect()
        },
    );
    outcome.assert_all_started(15);
}

fn crashes_at_start(runtime: Runtime) {
    let lab = Lab::new(runtime);
    let node = &lab.node;
    let _agent = node.start_agent();
    let serving = holder(node);
    let outcome = pods_while(
        |n| start_and_remove(&lab, n),
        |asked| {
            let crash = |n: u64| {
                asked.next();
                pause(moment(n));
                let begin = Instant::now();
                let mut newer = node.spawn_agent(agent_binary(), &[("BIND_ADDRESS", "not an address")]);
                assert!(!newer.wait(), "it was to fail");
                pause(300);
                begin..Instant::now()
            };
            (0..10).map(crash).collect()
        },
    );
    assert_eq!(holder(node), serving, "the older agent serves on");
    outcome.assert_all_started(7);
}

/// A newer agent takes the role and is then stopped by `signal`: the older one takes it back.
fn broken_after_it_took_the_role(runtime: Runtime, signal: Signal) {
    let lab = Lab::new(runtime);
    let node = &lab.node;
    let _agent = node.start_agent();
    let serving = holder(node);
    // A hanging one goes on hanging: what connected to it gets no reset.
    let mut kept = Vec::new();
    let outcome = pods_while(
        |n| start_and_remove(&lab, n),
        |asked| {
            let roll = |n: u64| {
                // Once before it has served anybody, and later.
                let newer = if n.is_multiple_of(2) {
                    asked.next();
                    start_newer(node)
                } else {
                    let newer = start_newer(node);
                    pause(500);
                    asked.next();
                    pause(moment(n));
                    newer
                };
                let begin = Instant::now();
                newer.signal(signal);
                wait_until(node, "the older agent does not take the role back", || holder(node) == serving);
                kept.push(newer);
                let disturbed = begin..Instant::now();
                pause(500);
                disturbed
            };
            (0..8).map(roll).collect()
        },
    );
    outcome.assert_all_started(4);
}

fn crashes_after_it_took_the_role(runtime: Runtime) {
    broken_after_it_took_the_role(runtime, Signal::SIGKILL);
}

fn hangs_after_it_took_the_role(runtime: Runtime) {
    broken_after_it_took_the_role(runtime, Signal::SIGSTOP);
}
