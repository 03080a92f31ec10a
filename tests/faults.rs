// SPDX-License-Identifier: Apache-2.0
//! The agent is killed at each send and receive of an ADD: the plugin's answer is an error or a success after a new
//! agent came, never a success without rules, and nothing is ever half programmed.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::time::Duration;

use harness::node::{Agent, Node, Programmed, faulty_agent_binary, finish};
use serde_json::json;

/// Each kill point of an ADD, and what the netns holds when the agent dies there.
const CASES: &[(&str, Programmed)] = &[
    ("agent:request:receive:before", Programmed::Nothing),
    ("agent:request:receive:after", Programmed::Nothing),
    ("kernel:route-dump:send:before", Programmed::Nothing),
    ("kernel:route-dump:send:after", Programmed::Nothing),
    ("kernel:route-dump:receive:before", Programmed::Nothing),
    ("kernel:route-dump:receive:after", Programmed::Nothing),
    ("kernel:nf-batch:send:before", Programmed::Nothing),
    ("kernel:nf-batch:send:after", Programmed::Complete),
    ("kernel:nf-batch:receive:before", Programmed::Complete),
    ("kernel:nf-batch:receive:after", Programmed::Complete),
    ("kernel:route-request:send:before", Programmed::Complete),
    ("kernel:route-request:send:after", Programmed::Complete),
    ("kernel:route-request:receive:before", Programmed::Complete),
    ("kernel:route-request:receive:after", Programmed::Complete),
    ("agent:answer:send:before", Programmed::Complete),
    ("agent:answer:send:after", Programmed::Complete),
];

/// Points that only a repeated ADD reaches: the netns is complete from the first one.
const REPEATED: &[&str] = &[
    "kernel:nf-read:send:before",
    "kernel:nf-read:send:after",
    "kernel:nf-read:receive:before",
    "kernel:nf-read:receive:after",
];

#[test]
fn every_kill_point_has_a_case() {
    let mut known: Vec<&str> =
        CASES.iter().map(|(point, _)| *point).chain(REPEATED.iter().copied()).collect();
    let mut all: Vec<&str> = agent_api::fault::POINTS.iter().chain(kernel::POINTS).copied().collect();
    known.sort_unstable();
    all.sort_unstable();
    assert_eq!(known, all);
}

/// The literals given to `fault_point` in the agent. An unlisted one would only make the agent abort, which looks like
/// the death that the tests below wait for.
#[test]
fn the_agent_reaches_the_listed_points_and_no_other() {
    let server = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../node-agent/src/plugin_server");
    let sources =
        std::fs::read_dir(server).unwrap().map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap());
    let mut found: Vec<String> = sources
        .flat_map(|source| {
            let calls = source.split("fault_point(\"").skip(1);
            calls.map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    found.sort_unstable();
    let mut listed = agent_api::fault::POINTS.to_vec();
    listed.sort_unstable();
    assert_eq!(found, listed);
}

#[test]
fn killed_at_any_point_of_a_first_add_nothing_is_half_programmed() {
    for (point, at_death) in CASES {
        let node = Node::new();
        let sandbox = node.sandbox("web");
        node.write_mesh_pod(&sandbox, &[]);
        let _doomed = die_at(&node, point);
        assert_eq!(sandbox.programmed(), Programmed::Nothing);

        let mut config = node.config();
        config["agent_deadline_seconds"] = json!(1);
        let printed = finish(node.spawn_plugin("ADD", &sandbox, &config));
        assert_eq!(sandbox.programmed(), *at_death, "{point}");
        match printed.code() {
            // The answer was out before the agent died.
            0 => assert_eq!((*point, *at_death), ("agent:answer:send:after", Programmed::Complete)),
            code => assert_eq!(code, 11, "{point}: {printed:?}"),
        }

        let _agent = node.start_agent();
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0, "{point}");
        assert_eq!(
            (sandbox.programmed(), sandbox.has_passthrough()),
            (Programmed::Complete, true),
            "{point}"
        );
    }
}

#[test]
fn an_add_whose_agent_dies_at_any_point_succeeds_with_the_next_agent() {
    for (point, _) in CASES {
        let node = Node::new();
        let sandbox = node.sandbox("web");
        node.write_mesh_pod(&sandbox, &[]);
        let _doomed = die_at(&node, point);
        let add = node.spawn_plugin("ADD", &sandbox, &node.config());
        std::thread::sleep(Duration::from_millis(100));
        let _agent = node.start_agent();
        let printed = finish(add);
        assert_eq!(printed.code(), 0, "{point}: {printed:?}");
        assert_eq!(
            (sandbox.programmed(), sandbox.has_passthrough()),
            (Programmed::Complete, true),
            "{point}"
        );
    }
}

#[test]
fn killed_while_it_reads_back_the_rules_of_a_first_add_stay() {
    for point in REPEATED {
        let node = Node::new();
        let sandbox = node.sandbox("web");
        node.write_mesh_pod(&sandbox, &[]);
        let agent = node.start_agent();
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
        let tables = sandbox.tables();
        drop(agent);

        let _doomed = die_at(&node, point);
        let mut config = node.config();
        config["agent_deadline_seconds"] = json!(2);
        assert_eq!(finish(node.spawn_plugin("ADD", &sandbox, &config)).code(), 11, "{point}");
        assert_eq!(sandbox.tables(), tables, "{point}");
    }
}

#[test]
fn killed_while_it_replaces_rules_either_the_old_or_the_new_ones_are_there() {
    // The first batch finds that the netns is not fresh; the second replaces.
    for (point, replaced) in
        [("kernel:nf-batch:send:before#2", false), ("kernel:nf-batch:send:after#2", true)]
    {
        let node = Node::new();
        let sandbox = node.sandbox("web");
        node.write_mesh_pod(&sandbox, &[]);
        let agent = node.start_agent();
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
        let old = sandbox.tables();
        drop(agent);

        node.write_mesh_pod(&sandbox, &[("traffic.sidecar.istio.io/includeInboundPorts", "8080")]);
        let _doomed = die_at(&node, point);
        let mut config = node.config();
        config["agent_deadline_seconds"] = json!(2);
        assert_eq!(finish(node.spawn_plugin("ADD", &sandbox, &config)).code(), 11, "{point}");
        assert_eq!(sandbox.programmed(), Programmed::Complete, "{point}");
        assert_eq!(sandbox.tables() != old, replaced, "{point}");
    }
}

#[test]
fn killed_after_any_route_request_of_tproxy_mode_the_next_add_completes_them_once() {
    // ::6, then a rule and a route in each family.
    for nth in 1..=5 {
        let node = Node::new();
        let sandbox = node.sandbox("web");
        node.write_mesh_pod(&sandbox, &[("sidecar.istio.io/interceptionMode", "TPROXY")]);
        let _doomed = die_at(&node, &format!("kernel:route-request:send:after#{nth}"));
        let mut config = node.config();
        config["agent_deadline_seconds"] = json!(1);
        assert_eq!(finish(node.spawn_plugin("ADD", &sandbox, &config)).code(), 11, "{nth}");

        let _agent = node.start_agent();
        assert_eq!(node.plugin("ADD", &sandbox).code(), 0, "{nth}");
        assert!(sandbox.has_passthrough(), "{nth}");
        for family in ["-4", "-6"] {
            let rules = sandbox.ip(&format!("{family} rule show"));
            assert_eq!(rules.matches("fwmark 0x539 lookup 133").count(), 1, "{nth}: {rules}");
            let routes = sandbox.ip(&format!("{family} route show table 133"));
            assert_eq!(routes.matches("local default dev lo").count(), 1, "{nth}: {routes}");
        }
    }
}

/// Start an agent that will die at `point`, and wait until its socket is there; a ping would reach the point already.
fn die_at(node: &Node, point: &str) -> Agent {
    let agent = node.spawn_agent(faulty_agent_binary(), &[("WAYLAY_FAULT", point)]);
    let socket = agent_api::path::requests(&node.run_dir());
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    agent
}
