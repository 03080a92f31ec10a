// SPDX-License-Identifier: Apache-2.0
//! The plugin and the agent together, as processes: what a runtime sees and what is in the netns afterwards.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

use std::time::{Duration, Instant};

use harness::node::{Node, Programmed, Sandbox, agent_binary, finish};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

#[test]
fn add_programs_both_families_and_prints_prev_result_as_received() {
    let node = Node::new();
    let agent = node.start_agent();
    let sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[]);
    let printed = node.plugin("ADD", &sandbox);
    assert_eq!(
        (printed.code(), printed.stdout.trim_end()),
        (0, node.config()["prevResult"].to_string().as_str())
    );
    assert_eq!(sandbox.programmed(), Programmed::Complete);
    let text: String = sandbox.tables().iter().map(ruleset::render).collect();
    assert!(text.contains("ip6 daddr != ::1") && !text.contains("ipv6_left_alone"), "{text}");

    // Again: nothing changes, and CHECK agrees.
    let before = sandbox.tables();
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(sandbox.tables(), before);
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 0);

    let metrics = agent.http(15014, "/metrics");
    let line = metrics
        .lines()
        .find(|l| l.contains("reason=\"programmed\"") && !l.contains("bucket"))
        .unwrap_or("none");
    assert!(line.ends_with(" 1"), "{line}\n{metrics}");
    assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(agent.http(8000, "/healthz").starts_with("HTTP/1.1 200"));
}

/// Also where the kernel was started with `ipv6.disable=1` (tests/kernel).
#[test]
fn a_pod_without_ipv6_is_programmed_although_its_proxy_serves_both_families() {
    let node = Node::new();
    let agent = node.start_agent();
    for mode in ["REDIRECT", "TPROXY"] {
        let sandbox = node.sandbox_without_ipv6(&mode.to_ascii_lowercase());
        node.write_mesh_pod(&sandbox, &[("sidecar.istio.io/interceptionMode", mode)]);
        let printed = node.plugin("ADD", &sandbox);
        assert_eq!(printed.code(), 0, "{mode}: {printed:?}");
        assert_eq!(sandbox.programmed(), Programmed::Complete, "{mode}");
        assert!(!sandbox.has_passthrough(), "{mode}");
        assert_eq!(sandbox.ip("-4 rule list").contains("lookup 133"), mode == "TPROXY", "{mode}");
        assert_eq!(node.plugin("CHECK", &sandbox).code(), 0, "{mode}");
    }
    assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn changed_annotations_replace_the_rules_in_one_go() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[("traffic.sidecar.istio.io/includeInboundPorts", "8080,9090")]);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    let before = sandbox.tables();
    node.write_mesh_pod(&sandbox, &[]);
    let give_up = Instant::now() + Duration::from_secs(5);
    while sandbox.tables() == before {
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
        assert!(Instant::now() < give_up, "the new manifest is not seen");
    }
    assert_eq!(sandbox.programmed(), Programmed::Complete);
}

#[test]
fn check_notices_a_missing_rule_and_a_missing_table() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[]);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    let nft = |command: &str| {
        sandbox.netns.program("nft", &command.split(' ').collect::<Vec<_>>(), "");
    };
    nft("flush chain inet waylay nat_prerouting");
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 107);
    // ADD mends it.
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 0);
    nft("delete table inet waylay");
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 107);
}

#[test]
fn del_of_one_network_does_not_make_check_forget_the_other() {
    let node = Node::new();
    let _agent = node.start_agent();
    let mut sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[]);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    sandbox.ifname = "net1".to_owned();
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(node.plugin("DEL", &sandbox).code(), 0);
    sandbox.netns.program("nft", &["delete", "table", "inet", "waylay"], "");
    // Once the notice of DEL has arrived, CHECK of that network has nothing to miss.
    let give_up = Instant::now() + Duration::from_secs(5);
    while node.plugin("CHECK", &sandbox).code() != 0 {
        assert!(Instant::now() < give_up, "DEL is not noticed");
    }
    sandbox.ifname = "eth0".to_owned();
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 107);
}

#[test]
fn check_of_a_pod_that_is_left_alone_succeeds() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("plain");
    node.write_manifest(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain", "namespace": "mesh"}, "spec": {"containers": [{"name": "app"}]},
    }));
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(sandbox.programmed(), Programmed::Nothing);
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 0);
}

#[test]
fn rules_of_istio_in_the_netns_are_left_alone_in_each_form() {
    let node = Node::new();
    let _agent = node.start_agent();
    let theirs = [
        ("nft", "add table inet istio-proxy-nat\nadd chain inet istio-proxy-nat any"),
        ("iptables", "add table ip nat\nadd chain ip nat ISTIO_OUTPUT\nadd chain ip nat OUTPUT"),
        ("ip6tables", "add table ip6 mangle\nadd chain ip6 mangle ISTIO_DIVERT"),
    ];
    for (name, rules) in theirs {
        let sandbox = node.sandbox(name);
        node.write_mesh_pod(&sandbox, &[]);
        sandbox.nft(rules);
        let before = sandbox.ruleset();
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0, "{name}");
        assert_eq!(sandbox.ruleset(), before, "{name}");
        assert_eq!(node.plugin("CHECK", &sandbox).code(), 0, "{name}");
    }
    // Names that only look alike.
    let sandbox = node.sandbox("other");
    node.write_mesh_pod(&sandbox, &[]);
    sandbox.nft("add table ip nat\nadd chain ip nat MY_ISTIO_\nadd chain ip nat istio_output");
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(sandbox.programmed(), Programmed::Complete);
}

#[test]
fn a_bad_annotation_fails_the_pod_with_one_line_and_no_rules() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[("traffic.sidecar.istio.io/excludeOutboundPorts", "443,https")]);
    let printed = node.plugin("ADD", &sandbox);
    let error: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!(error["code"], 101);
    let text =
        format!("{} {}", error["msg"].as_str().unwrap(), error["details"].as_str().unwrap_or_default());
    assert!(
        text.contains(
            "annotation traffic.sidecar.istio.io/excludeOutboundPorts: \"443,https\" is refused, \"https\" is not a \
             port: use a comma-separated list of ports from 0 to 65535"
        ),
        "{text}"
    );
    assert!(!text.contains('\n'));
    assert_eq!(sandbox.programmed(), Programmed::Nothing);
}

#[test]
fn an_unknown_pod_is_waited_for_2_s_and_then_to_be_tried_again() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("late");
    // Known 0.5 s after the question.
    let add = node.spawn_plugin("ADD", &sandbox, &node.config());
    std::thread::sleep(Duration::from_millis(500));
    node.write_mesh_pod(&sandbox, &[]);
    assert_eq!(finish(add).code(), 0);
    assert_eq!(sandbox.programmed(), Programmed::Complete);

    let unknown = node.sandbox("unknown");
    let start = Instant::now();
    assert_eq!(node.plugin("ADD", &unknown).code(), 11);
    assert!((1900..6000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[test]
fn the_annotations_of_the_runtime_win_over_the_manifest() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[("traffic.sidecar.istio.io/includeInboundPorts", "1")]);
    let mut config = node.config();
    config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {
        "sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/includeInboundPorts": "7777",
    }});
    assert_eq!(finish(node.spawn_plugin("ADD", &sandbox, &config)).code(), 0);
    let text: String = sandbox.tables().iter().map(ruleset::render).collect();
    assert!(text.contains("th dport 7777 redirect to :15006"), "{text}");
}

#[test]
fn fifty_adds_survive_5_s_without_an_agent() {
    let node = Node::new();
    let mut agent = Some(node.start_agent());
    let sandboxes: Vec<_> = (0..50).map(|n| node.sandbox(&format!("web-{n}"))).collect();
    for sandbox in &sandboxes {
        node.write_mesh_pod(sandbox, &[]);
    }
    let mut adds = Vec::new();
    let mut down = None;
    for (n, sandbox) in sandboxes.iter().enumerate() {
        adds.push(node.spawn_plugin("ADD", sandbox, &node.config()));
        if n == 20 {
            drop(agent.take());
            down = Some(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let down = down.unwrap();
    std::thread::sleep(Duration::from_secs(5).saturating_sub(down.elapsed()));
    let _agent = node.start_agent();
    for (add, sandbox) in adds.into_iter().zip(&sandboxes) {
        let printed = finish(add);
        assert_eq!(printed.code(), 0, "{printed:?}");
        assert_eq!(sandbox.programmed(), Programmed::Complete);
    }
}

/// A newer agent that goes wrong while ADDs arrive: none of them may fail.
fn adds_while(disturb: impl FnOnce(&Node)) {
    let node = Node::new();
    let _old = node.start_agent();
    let sandboxes: Vec<_> = (0..40).map(|n| node.sandbox(&format!("web-{n}"))).collect();
    for sandbox in &sandboxes {
        node.write_mesh_pod(sandbox, &[]);
    }
    std::thread::scope(|scope| {
        let adds = scope.spawn(|| {
            for sandbox in &sandboxes {
                let printed = node.plugin("ADD", sandbox);
                assert_eq!(printed.code(), 0, "{printed:?}");
                assert_eq!(sandbox.programmed(), Programmed::Complete);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        disturb(&node);
        adds.join().unwrap();
    });
}

#[test]
fn a_newer_agent_that_cannot_start_disturbs_no_add() {
    adds_while(|node| {
        let mut newer = node.spawn_agent(agent_binary(), &[("BIND_ADDRESS", "not an address")]);
        assert!(!newer.wait(), "it was to fail");
    });
}

#[test]
fn a_newer_agent_that_dies_after_it_took_the_role_disturbs_no_add() {
    adds_while(|node| {
        let newer = node.spawn_agent(agent_binary(), &[]);
        std::thread::sleep(Duration::from_millis(700));
        newer.signal(Signal::SIGKILL);
    });
}

#[test]
fn a_newer_agent_that_hangs_after_it_took_the_role_disturbs_no_add() {
    let mut kept = None;
    adds_while(|node| {
        let newer = node.spawn_agent(agent_binary(), &[]);
        std::thread::sleep(Duration::from_millis(700));
        newer.signal(Signal::SIGSTOP);
        kept = Some(newer);
    });
}

#[test]
fn adds_that_an_agent_has_accepted_before_it_hung_move_to_the_newer_one() {
    let node = Node::new();
    let older = node.start_agent();
    let sandboxes: Vec<_> = (0..20).map(|n| node.sandbox(&format!("web-{n}"))).collect();
    sandboxes.iter().for_each(|sandbox| node.write_mesh_pod(sandbox, &[]));
    older.signal(Signal::SIGSTOP);
    let adds: Vec<_> =
        sandboxes.iter().map(|sandbox| node.spawn_plugin("ADD", sandbox, &node.config())).collect();
    std::thread::sleep(Duration::from_millis(300));
    let _newer = node.start_agent();
    let begin = Instant::now();
    for (add, sandbox) in adds.into_iter().zip(&sandboxes) {
        assert_eq!(finish(add).code(), 0);
        assert_eq!(sandbox.programmed(), Programmed::Complete);
    }
    println!("20 ADDs left the agent that hangs {:?} after the newer one answered", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    // What it finds when it goes on is not done twice.
    let before: Vec<_> = sandboxes.iter().map(Sandbox::tables).collect();
    older.signal(Signal::SIGCONT);
    let give_up = Instant::now() + Duration::from_secs(10);
    while !older.http(15014, "/metrics").contains("waylay_socket_holder 0") {
        assert!(Instant::now() < give_up, "the older agent does not go on");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sandboxes.iter().map(Sandbox::tables).eq(before));
}

#[test]
fn the_older_agent_ends_and_the_newer_one_serves_on() {
    let node = Node::new();
    let mut old = node.start_agent();
    let newer = node.spawn_agent(agent_binary(), &[]);
    std::thread::sleep(Duration::from_millis(700));
    old.signal(Signal::SIGTERM);
    assert!(old.wait(), "SIGTERM is a success");
    let sandbox = node.sandbox("web");
    node.write_mesh_pod(&sandbox, &[]);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    drop(newer);
}

#[test]
fn del_status_and_gc_need_no_agent() {
    let node = Node::new();
    let sandbox = node.sandbox("web");
    let mut config = node.config();
    config["cniVersion"] = json!("1.1.0");
    config.as_object_mut().unwrap().remove("prevResult");
    for verb in ["DEL", "STATUS", "GC"] {
        let printed = finish(node.spawn_plugin(verb, &sandbox, &config));
        assert_eq!((printed.code(), printed.stdout.as_str()), (0, ""), "{verb}");
    }
}

#[test]
fn ten_thousand_prefixes_in_each_family_arrive_in_the_kernel_whole() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    // Every second /24 and /48: nothing merges. From the runtime, so that they cross the socket, too.
    let v4 = (0..10_000u32).map(|n| format!("{}.{}.{}.0/24", 11 + (n >> 15), (n >> 7) & 255, (n << 1) & 255));
    let v6 = (0..10_000u32).map(|n| format!("fd00:{:x}::/32", n * 2));
    let list = v4.chain(v6).collect::<Vec<_>>().join(",");
    node.write_mesh_pod(&sandbox, &[]);
    let mut config = node.config();
    config["runtimeConfig"] = json!({"io.kubernetes.cri.pod-annotations": {
        "sidecar.istio.io/status": "{}", "traffic.sidecar.istio.io/excludeOutboundIPRanges": list,
    }});
    let printed = finish(node.spawn_plugin("ADD", &sandbox, &config));
    assert_eq!(printed.code(), 0, "{printed:?}");
    let tables = sandbox.tables();
    let len = |name: &str| tables[0].set(name).map_or(0, |set| set.elements.len());
    assert_eq!((len("skip4"), len("skip6")), (10_000, 10_000));
    assert_eq!(sandbox.programmed(), Programmed::Complete);
}

#[test]
fn the_plugin_sends_every_annotation_that_the_agent_reads() {
    let mut sent = agent_api::DECISIVE_ANNOTATIONS.to_vec();
    let mut read = redirect::annotations::ALL.to_vec();
    sent.sort_unstable();
    read.sort_unstable();
    assert_eq!(sent, read);
}

/// The reason code about IPv6 of the `nth` ADD that succeeded. The agent writes the line after its answer.
fn ipv6_reason(node: &Node, nth: usize) -> String {
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let log = std::fs::read_to_string(node.log()).unwrap();
        // A last line without an end is not all there.
        let lines = log.rsplit_once('\n').map(|(lines, _)| lines).unwrap_or_default().lines();
        if let Some(field) = lines.filter_map(|line| line.split("ipv6=").nth(1)).nth(nth - 1) {
            return field.split([' ', '"']).find(|word| !word.is_empty()).unwrap_or_default().to_owned();
        }
        assert!(Instant::now() < give_up, "no line about it: {log}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A mesh pod whose proxy does not say that it is dual-stack.
fn single_stack(node: &Node, sandbox: &Sandbox, annotations: Value) {
    let mut annotations = annotations;
    annotations["sidecar.istio.io/status"] = "{}".into();
    node.write_manifest(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": sandbox.name, "namespace": sandbox.namespace, "annotations": annotations},
        "spec": {"containers": [{"name": "istio-proxy"}]},
    }));
}

#[test]
fn ipv6_that_the_proxy_does_not_serve_is_reported_captured_or_dropped() {
    // Policy of the node, of the pod, what becomes of IPv6, and what the rules say of it.
    for (node_policy, pod_policy, reason, rule) in [
        ("", json!({}), "ipv6_bypass", "meta nfproto ipv6 accept"),
        ("drop", json!({}), "ipv6_dropped", "meta nfproto ipv6 meta l4proto tcp drop"),
        ("drop", json!({"traffic.waylay.io/ipv6-policy": "auto"}), "ipv6_bypass", "meta nfproto ipv6 accept"),
        ("auto", json!({"traffic.waylay.io/ipv6-policy": "capture"}), "ipv6_captured", "ip6 daddr != ::1"),
        ("capture", json!({"traffic.waylay.io/ipv6-policy": "drop"}), "ipv6_dropped", "ipv6_dropped"),
    ] {
        let node = Node::new();
        let agent = node.spawn_agent(agent_binary(), &[("IPV6_POLICY", node_policy)]);
        node.wait_for_agent();
        let sandbox = node.sandbox("web");
        single_stack(&node, &sandbox, pod_policy);
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0, "{reason}");
        let text: String = sandbox.tables().iter().map(ruleset::render).collect();
        assert!(text.contains(rule), "{reason}: {text}");
        assert_eq!(sandbox.has_passthrough(), reason == "ipv6_captured");
        let metrics = agent.http(15014, "/metrics");
        let line = format!("waylay_ipv6_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.lines().any(|l| l == line), "{line}: {metrics}");
        assert_eq!(ipv6_reason(&node, 1), reason);
    }
}

#[test]
fn a_policy_that_is_none_fails_the_pod_or_the_agent() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    single_stack(&node, &sandbox, json!({"traffic.waylay.io/ipv6-policy": "off"}));
    let printed = node.plugin("ADD", &sandbox);
    assert_eq!(printed.code(), 101);
    assert!(printed.stdout.contains("use auto, capture or drop"), "{}", printed.stdout);
    assert_eq!(sandbox.programmed(), Programmed::Nothing);
    assert!(!node.spawn_agent(agent_binary(), &[("IPV6_POLICY", "off")]).wait());
}

#[test]
fn what_the_network_plugins_reported_says_which_families_the_pod_has() {
    let node = Node::new();
    let _agent = node.start_agent();
    for (nth, ips, reason) in [
        (1, json!([{"address": "fd00:9::2/64"}]), "ipv6_served"),
        (2, json!([{"address": "10.9.0.2/24"}]), "ipv6_bypass"),
        (3, json!([]), "ipv6_bypass"),
    ] {
        let sandbox = node.sandbox("web");
        single_stack(&node, &sandbox, json!({}));
        let mut config = node.config();
        config["prevResult"]["ips"] = ips.clone();
        assert_eq!(finish(node.spawn_plugin("ADD", &sandbox, &config)).code(), 0);
        assert_eq!(ipv6_reason(&node, nth), reason, "{ips}");
    }
    // Reported, and not there yet.
    let sandbox = node.sandbox("early");
    single_stack(&node, &sandbox, json!({}));
    sandbox.netns.ip("addr flush dev eth0");
    let mut config = node.config();
    config["prevResult"]["ips"] = json!([]);
    assert_eq!(finish(node.spawn_plugin("ADD", &sandbox, &config)).code(), 110, "nobody knows an address");
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(ipv6_reason(&node, 4), "ipv6_absent");
}
