// SPDX-License-Identifier: Apache-2.0
//! `::6` on an `lo` that another plugin sets up, at the same time or never.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::{Duration, Instant};

use agent_api::{Operation, Outcome};
use common::{Agent, Dir, PodNetns, ask, request};
use kernel::route::{Address, Route};

/// A pod whose IPv6 is captured, and whose `lo` is down.
fn pod(dir: &Dir, name: &str) -> PodNetns {
    dir.pod(name, "sidecar.istio.io/status: '', traffic.waylay.io/ipv6-policy: capture");
    let pod = PodNetns::new();
    pod.command("ip link set lo down");
    pod
}

fn add(dir: &Dir, pod: &PodNetns, name: &str) -> Duration {
    let begin = Instant::now();
    let mut request = request(Operation::Add, name);
    request.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    let answer = ask(dir, &request, &pod.fds()).unwrap();
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Done, "programmed"));
    begin.elapsed()
}

fn address(pod: &PodNetns, wanted: &str) -> Option<Address> {
    let socket = pod.rtnetlink.try_clone().unwrap();
    let found = Route::new(socket).unwrap().addresses().unwrap();
    found.into_iter().find(|address| address.addr.to_string() == wanted)
}

#[test]
fn an_lo_that_comes_up_late_has_no_other_address_at_first() {
    let dir = Dir::new();
    let _agent = Agent::start(&dir);
    let pod = pod(&dir, "a");
    std::thread::scope(|scope| {
        let added = scope.spawn(|| add(&dir, &pod, "a"));
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(address(&pod, "::6"), None, "lo is not up yet");
        pod.command("ip link set lo up");
        added.join().unwrap();
    });
    let (own, ours) = (address(&pod, "::1").unwrap().age, address(&pod, "::6").unwrap().age);
    assert!(own >= ours + Duration::from_millis(10), "{own:?} {ours:?}");
}

#[test]
fn fifty_pods_whose_lo_never_comes_up_wait_at_the_same_time() {
    let dir = Dir::new();
    let _agent = Agent::start(&dir);
    let names: Vec<String> = (0..50).map(|n| format!("pod-{n}")).collect();
    let pods: Vec<PodNetns> = names.iter().map(|name| pod(&dir, name)).collect();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for (name, pod) in names.iter().zip(&pods) {
            let dir = &dir;
            scope.spawn(move || add(dir, pod, name));
        }
    });
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(3), "{took:?}: lo may come up yet");
    assert!(took < Duration::from_secs(10), "{took:?}");
    for pod in &pods {
        assert!(address(pod, "::6").is_some());
        assert!(pod.rules().contains("redirect to :15001"));
    }
}

#[test]
fn an_lo_that_is_up_is_not_waited_for() {
    let dir = Dir::new();
    let _agent = Agent::start(&dir);
    let pods: Vec<PodNetns> = (0..20).map(|n| pod(&dir, &format!("pod-{n}"))).collect();
    pods.iter().for_each(|pod| drop(pod.command("ip link set lo up")));
    std::thread::sleep(Duration::from_millis(50));
    let mut waits: Vec<_> =
        pods.iter().enumerate().map(|(n, pod)| add(&dir, pod, &format!("pod-{n}"))).collect();
    waits.sort_unstable();
    assert!(waits[10] < Duration::from_millis(20), "{waits:?}");
}

#[test]
fn pods_that_wait_for_lo_hold_up_no_other() {
    let dir = Dir::new();
    let _agent = Agent::start(&dir);
    let pods: Vec<PodNetns> = (0..8).map(|n| pod(&dir, &format!("pod-{n}"))).collect();
    let ready = pod(&dir, "ready");
    ready.command("ip link set lo up");
    std::thread::sleep(Duration::from_millis(50));
    std::thread::scope(|scope| {
        let (dir, mut waiting) = (&dir, Vec::new());
        for (n, pod) in pods.iter().enumerate() {
            waiting.push(scope.spawn(move || add(dir, pod, &format!("pod-{n}"))));
        }
        // They are asked for before it, and are answered after it.
        std::thread::sleep(Duration::from_millis(50));
        add(dir, &ready, "ready");
        assert!(waiting.iter().all(|add| !add.is_finished()));
    });
}
