// SPDX-License-Identifier: Apache-2.0
//! What the agent's settings say about pods, and what it remembers of them, with real plugin, agent and netns.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::fs;
use std::time::{Duration, Instant};

use harness::node::{Agent, Node, Programmed, Sandbox, agent_binary, finish};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn start(node: &Node, environment: &[(&str, &str)]) -> Agent {
    let agent = node.spawn_agent(agent_binary(), environment);
    node.wait_for_agent();
    agent
}

/// A mesh pod with other fields.
fn write(node: &Node, sandbox: &Sandbox, change: impl FnOnce(&mut Value)) {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": sandbox.name, "namespace": sandbox.namespace,
            "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"containers": [{"name": "istio-proxy", "args": ["proxy", "sidecar"]}]},
    });
    change(&mut pod);
    node.write_manifest(&pod);
}

fn counted(agent: &Agent, sample: &str) -> bool {
    agent.http(15014, "/metrics").lines().any(|line| line == sample)
}

#[test]
fn an_agent_that_observes_changes_no_pod_and_holds_up_none() {
    let node = Node::new();
    let mut agent = start(&node, &[("MODE", "observe")]);
    let good = node.sandbox("good");
    write(&node, &good, |_| {});
    let bad = node.sandbox("bad");
    write(&node, &bad, |pod| {
        pod["metadata"]["annotations"]["traffic.sidecar.istio.io/includeInboundPorts"] = json!("80,");
    });
    for sandbox in [&good, &bad, &node.sandbox("unknown")] {
        assert_eq!(node.plugin("ADD", sandbox).code(), 0, "{}", sandbox.name);
        assert_eq!(sandbox.programmed(), Programmed::Nothing, "{}", sandbox.name);
        assert_eq!(node.plugin("CHECK", sandbox).code(), 0, "{}", sandbox.name);
    }
    assert!(counted(&agent, "waylay_adds_total{result=\"done\",reason=\"observed\"} 3"));
    let give_up = Instant::now() + Duration::from_secs(10);
    for would in ["programmed", "invalid_annotation", "pod_unknown"] {
        let says = || fs::read_to_string(node.log()).unwrap().contains(&format!("would=\"{would}\""));
        while !says() {
            assert!(Instant::now() < give_up, "{would}: {}", fs::read_to_string(node.log()).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    // Its entry says so, for the time when it is gone.
    agent.signal(Signal::SIGKILL);
    assert!(agent.killed());
    let mut config = node.config();
    config["observe"] = json!(true);
    let begin = Instant::now();
    assert_eq!(finish(node.spawn_plugin("ADD", &good, &config)).code(), 0);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn selected_pods_are_left_alone() {
    let node = Node::new();
    let agent = start(
        &node,
        &[("EXCLUDE_POD_SELECTOR", "{matchExpressions: [{key: mesh, operator: In, values: [no]}]}")],
    );
    for (name, label, expected) in [("out", "no", Programmed::Nothing), ("in", "yes", Programmed::Complete)] {
        let sandbox = node.sandbox(name);
        write(&node, &sandbox, |pod| pod["metadata"]["labels"] = json!({"mesh": label}));
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0, "{name}");
        assert_eq!(sandbox.programmed(), expected, "{name}");
    }
    assert!(counted(&agent, "waylay_adds_total{result=\"done\",reason=\"excluded_by_selector\"} 1"));
}

#[test]
fn a_runtime_class_that_goes_past_the_rules_is_reported_or_refused() {
    let add = |policy: &str, class: &str| {
        let node = Node::new();
        let agent = start(&node, &[("RUNTIME_CLASS_POLICY", policy)]);
        let sandbox = node.sandbox("web");
        write(&node, &sandbox, |pod| pod["spec"]["runtimeClassName"] = json!(class));
        let printed = node.plugin("ADD", &sandbox);
        let bypassed = counted(&agent, "waylay_bypasses_total{reason=\"runtime_class_bypass\"} 1");
        (printed.code(), sandbox.programmed(), bypassed)
    };
    assert_eq!(add("report", "kata-qemu"), (0, Programmed::Complete, true));
    assert_eq!(add("report", "runc"), (0, Programmed::Complete, false));
    assert_eq!(add("refuse", "gvisor"), (111, Programmed::Nothing, false));
}

#[test]
fn records_outlive_the_agent_so_that_check_still_knows() {
    let node = Node::new();
    let mut agent = start(&node, &[]);
    let (gone, kept) = (node.sandbox("gone"), node.sandbox("kept"));
    for sandbox in [&gone, &kept] {
        write(&node, sandbox, |_| {});
        assert_eq!(node.plugin("ADD", sandbox).code(), 0);
    }
    agent.signal(Signal::SIGKILL);
    assert!(agent.killed());
    let _agent = start(&node, &[]);
    gone.nft("flush ruleset");
    assert_eq!(
        node.plugin("CHECK", &gone).code(),
        107,
        "the rules are gone, and it is known that there were some"
    );
    assert_eq!(node.plugin("CHECK", &kept).code(), 0);
    let records = || fs::read_dir(node.run_dir().join("sandboxes")).unwrap().count();
    assert_eq!(records(), 2);
    assert_eq!(node.plugin("DEL", &gone).code(), 0);
    let give_up = Instant::now() + Duration::from_secs(5);
    while records() != 1 {
        assert!(Instant::now() < give_up, "{} records", records());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.plugin("CHECK", &gone).code(), 0);
}

#[test]
fn a_static_pod_passes_without_an_agent_and_only_the_kubelet_can_say_so() {
    let node = Node::new();
    let sandbox = node.sandbox("web");
    let add = |source: &str| {
        let mut config = node.config();
        config["agent_deadline_seconds"] = json!(1);
        config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {
            "sidecar.istio.io/status": "{}", "kubernetes.io/config.source": source,
        }});
        finish(node.spawn_plugin("ADD", &sandbox, &config)).code()
    };
    assert_eq!(add("file"), 0);
    assert_eq!(add("api"), 11);
}
