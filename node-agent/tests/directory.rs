// SPDX-License-Identifier: Apache-2.0
//! The directory of manifests, as the plugin sees it through the agent: what is written, replaced, broken, removed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use agent_api::{Answer, Operation, Outcome, Request};
use common::{Agent, Dir, PodNetns, ask, request, wait};

const POD: &str = "kind: Pod\nmetadata: {name: a, namespace: n, annotations: {sidecar.istio.io/status: ''}}\n\
                   spec: {containers: [{name: istio-proxy}]}\n";

fn file(dir: &Dir, name: &str) -> PathBuf {
    dir.0.join("pods").join(name)
}

fn add(dir: &Dir, request: &Request) -> Answer {
    ask(dir, request, &PodNetns::new().fds()).unwrap()
}

/// What an ADD of `name` ends with, asked without waiting for the pod to come.
fn reason(dir: &Dir, name: &str) -> String {
    add(dir, &request(Operation::Add, name)).reason
}

fn becomes(dir: &Dir, agent: &Agent, name: &str, expected: &str) {
    wait(&format!("{expected} for {name}"), || reason(dir, name) == expected, || agent.log());
}

#[test]
fn a_pod_that_comes_while_its_add_waits_is_served_at_once() {
    let dir = Dir::new();
    let _agent = Agent::start(&dir);
    let (start, pod) = (Instant::now(), PodNetns::new());
    thread::scope(|scope| {
        let add = scope.spawn(|| ask(&dir, &request(Operation::Add, "late"), &pod.fds()).unwrap());
        thread::sleep(Duration::from_millis(300));
        dir.mesh_pod("late");
        assert_eq!(add.join().unwrap().reason, "programmed");
    });
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[test]
fn an_unknown_pod_is_code_11_after_two_seconds_and_names_the_place() {
    let dir = Dir::new();
    fs::write(file(&dir, "bad.yaml"), "kind: [").unwrap();
    let agent = Agent::start(&dir);
    let start = Instant::now();
    let answer = add(&dir, &request(Operation::Add, "nobody"));
    let elapsed = start.elapsed();
    assert!((2000..2500).contains(&elapsed.as_millis()), "{elapsed:?}");
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(11), "pod_unknown"));
    let place =
        format!("pod n/nobody: not found in {} (0 usable files, 1 unusable)", dir.0.join("pods").display());
    assert!(answer.message.starts_with(&place), "{}", answer.message);
    let line = "waylay_adds_total{result=\"fail\",reason=\"pod_unknown\"} 1";
    wait(line, || agent.metrics().contains(line), || agent.metrics());
}

#[test]
fn replaced_and_removed_files_are_followed() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let agent = Agent::start(&dir);
    assert_eq!(reason(&dir, "a"), "programmed");
    dir.pod("a", "");
    becomes(&dir, &agent, "a", "no_sidecar");
    dir.mesh_pod("a");
    becomes(&dir, &agent, "a", "programmed");
    fs::rename(file(&dir, "a.yaml"), file(&dir, "a.txt")).unwrap();
    becomes(&dir, &agent, "a", "pod_unknown");
    fs::rename(file(&dir, "a.txt"), file(&dir, "a.yml")).unwrap();
    becomes(&dir, &agent, "a", "programmed");
    fs::remove_file(file(&dir, "a.yml")).unwrap();
    becomes(&dir, &agent, "a", "pod_unknown");
}

#[test]
fn a_file_is_read_when_it_is_whole_and_a_bad_one_hides_no_other() {
    let dir = Dir::new();
    dir.mesh_pod("other");
    fs::write(file(&dir, "bad.yaml"), "kind: Pod\nmetadata: {name: [}\n").unwrap();
    let agent = Agent::start(&dir);
    agent.wait_log("bad.yaml");
    let (first, second) = POD.split_at(40);
    let mut half = File::create(file(&dir, "a.yaml")).unwrap();
    half.write_all(first.as_bytes()).unwrap();
    thread::sleep(Duration::from_millis(100));
    assert!(
        !agent.log().contains("file=\"a.yaml\""),
        "a file being written is nobody's yet: {}",
        agent.log()
    );
    half.write_all(second.as_bytes()).unwrap();
    drop(half);
    becomes(&dir, &agent, "a", "programmed");
    assert_eq!(reason(&dir, "other"), "programmed");
    // Closed half-written: left out, with its name in the log; mended, it counts again.
    fs::write(file(&dir, "a.yaml"), first).unwrap();
    agent.wait_log("skip manifest: its pods cannot start until it is mended file=\"a.yaml\"");
    becomes(&dir, &agent, "a", "pod_unknown");
    assert_eq!(reason(&dir, "other"), "programmed");
    fs::write(file(&dir, "a.yaml"), POD).unwrap();
    becomes(&dir, &agent, "a", "programmed");
    assert!(agent.metrics().contains("waylay_bad_manifests 1"), "{}", agent.metrics());
}

#[test]
fn another_uid_is_another_pod_and_none_is_any() {
    let dir = Dir::new();
    let with_uid = POD.replace("{name: a,", "{name: a, uid: u,");
    fs::write(file(&dir, "a.yaml"), with_uid).unwrap();
    let _agent = Agent::start(&dir);
    let mut add_a = request(Operation::Add, "a");
    for (uid, reason) in [(Some("u"), "programmed"), (None, "programmed"), (Some("v"), "pod_unknown")] {
        add_a.sandbox.uid = uid.map(str::to_owned);
        let answer = add(&dir, &add_a);
        assert_eq!(answer.reason, reason, "{uid:?}");
        assert_eq!(
            answer.message.contains("with uid u, another one"),
            uid == Some("v"),
            "{}",
            answer.message
        );
    }
}

#[test]
fn links_fifos_and_configmap_volumes_are_no_trap() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    // As the kubelet updates a ConfigMap volume: files are links through `..data`, which is replaced by renaming.
    for (version, name) in [("..1", "one"), ("..2", "two")] {
        fs::create_dir(file(&dir, version)).unwrap();
        fs::write(file(&dir, version).join("pod.yaml"), POD.replace("name: a,", &format!("name: {name},")))
            .unwrap();
        symlink(version, file(&dir, "..tmp")).unwrap();
        fs::rename(file(&dir, "..tmp"), file(&dir, "..data")).unwrap();
        if version == "..1" {
            symlink("..data/pod.yaml", file(&dir, "pod.yaml")).unwrap();
        }
        becomes(&dir, &agent, name, "programmed");
    }
    assert_eq!(reason(&dir, "one"), "pod_unknown");
    nix::unistd::mkfifo(&file(&dir, "fifo.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::hard_link(file(&dir, "..2").join("pod.yaml"), file(&dir, "linked.yaml")).unwrap();
    fs::remove_file(file(&dir, "pod.yaml")).unwrap();
    becomes(&dir, &agent, "two", "programmed");
}

#[test]
fn a_directory_that_comes_late_or_is_made_anew_is_found() {
    let dir = Dir::new();
    let pods = dir.0.join("pods");
    fs::remove_dir(&pods).unwrap();
    let agent = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &[]);
    agent.wait_log("watch the pod manifest directory");
    assert!(!dir.requests().exists());
    fs::create_dir(&pods).unwrap();
    agent.wait_log("took the socket");
    assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
    dir.mesh_pod("a");
    becomes(&dir, &agent, "a", "programmed");
    fs::remove_dir_all(&pods).unwrap();
    becomes(&dir, &agent, "a", "pod_unknown");
    fs::create_dir(&pods).unwrap();
    dir.mesh_pod("a");
    becomes(&dir, &agent, "a", "programmed");
}

/// A manifest whose first half is one of its own, of a pod that needs no rules.
const HALVES: [&str; 2] = [
    "kind: Pod\nmetadata:\n  name: a\n  namespace: n\n",
    "  annotations: {sidecar.istio.io/status: ''}\nspec:\n  containers: [{name: istio-proxy}]\n",
];

#[test]
fn half_a_manifest_that_parses_is_not_read_whatever_happens_beside_it() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let mut half = File::create(file(&dir, "a.yaml")).unwrap();
    half.write_all(HALVES[0].as_bytes()).unwrap();
    // Neither a file of another kind nor a name of a ConfigMap volume makes it whole.
    fs::write(file(&dir, "notes.txt"), "").unwrap();
    fs::create_dir(file(&dir, "..1")).unwrap();
    fs::write(file(&dir, "other.json"), "").unwrap();
    agent.wait_log("other.json");
    let pod = PodNetns::new();
    thread::scope(|scope| {
        let add = scope.spawn(|| ask(&dir, &request(Operation::Add, "a"), &pod.fds()).unwrap());
        thread::sleep(Duration::from_millis(300));
        half.write_all(HALVES[1].as_bytes()).unwrap();
        drop(half);
        assert_eq!(add.join().unwrap().reason, "programmed");
    });
    // Removed and written anew in place: the removal does not have the new one read.
    for _ in 0..20 {
        fs::remove_file(file(&dir, "a.yaml")).unwrap();
        let mut half = File::create(file(&dir, "a.yaml")).unwrap();
        half.write_all(HALVES[0].as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(5));
        half.write_all(HALVES[1].as_bytes()).unwrap();
        drop(half);
        assert_eq!(reason(&dir, "a"), "programmed", "{}", agent.log());
    }
}

#[test]
fn a_manifest_that_is_being_written_when_the_agent_starts_is_waited_for() {
    let dir = Dir::new();
    dir.mesh_pod("whole");
    let mut half = File::create(file(&dir, "a.yaml")).unwrap();
    half.write_all(HALVES[0].as_bytes()).unwrap();
    let start = Instant::now();
    let writer = thread::spawn(move || {
        // Still at it when the agent has waited as long as it does.
        for _ in 0..16 {
            half.write_all(b"\n").unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        half.write_all(HALVES[1].as_bytes()).unwrap();
    });
    let agent = Agent::start(&dir);
    assert!((900..1500).contains(&start.elapsed().as_millis()), "{:?}\n{}", start.elapsed(), agent.log());
    assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(reason(&dir, "whole"), "programmed");
    assert_eq!(reason(&dir, "a"), "programmed", "{}", agent.log());
    writer.join().unwrap();
}

#[test]
fn manifests_that_have_settled_are_read_at_once_and_a_clock_ahead_costs_one_second() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let age = |by: Duration, ahead: bool| {
        let now = std::time::SystemTime::now();
        let file = File::options().write(true).open(file(&dir, "a.yaml")).unwrap();
        file.set_modified(if ahead { now + by } else { now - by }).unwrap();
    };
    for (ahead, expected) in [(false, 0..900), (true, 900..1500)] {
        age(Duration::from_secs(60), ahead);
        let start = Instant::now();
        let _agent = Agent::start(&dir);
        assert!(expected.contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
        assert_eq!(reason(&dir, "a"), "programmed");
    }
}
