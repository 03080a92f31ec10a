// SPDX-License-Identifier: Apache-2.0
//! What the rules are there for, one named behaviour at a time, with real sockets and real programs, in both families.
//!
//! Needs root. Everything happens in network namespaces of its own.

#![allow(clippy::unwrap_used, reason = "test code")]

mod dns;
mod envoy;
mod live;
mod tproxy;
mod unusual;

use std::net::IpAddr;

use agent_api::netns::Netlink;
use harness::lab::Lab;
use harness::matrix::{Settings, rows};
use harness::node::{Node, Sandbox};
use harness::packet::{APP, Packet, Protocol, Way};
use kernel::{Applied, PodNetns};
use ruleset::Plan;
use serde_json::json;

/// Peer and pod of the lab, in each family.
const FAMILIES: [[&str; 2]; 2] = [["10.77.0.1", "10.77.0.2"], ["fd00:77::1", "fd00:77::2"]];
/// Somebody beyond the peer, in each family.
const REMOTE: [&str; 2] = ["203.0.113.9", "2001:db8:1::9"];

/// The default settings but for `changes`, written as in the packet matrix.
fn settings(changes: &str) -> Settings {
    let default = rows()[0].settings.clone();
    if changes.is_empty() { default } else { default.with(changes) }
}

/// Make the pod of `lab` hold `plan`.
fn program(lab: &Lab, plan: &Plan) -> Applied {
    let open = |netlink: Netlink| lab.pod.run(move || netlink.open().unwrap());
    PodNetns::new(open(Netlink::Netfilter), open(Netlink::Route)).unwrap().apply(plan).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A connection of the peer to the application in the pod.
fn inbound([peer, pod]: [&str; 2]) -> Packet {
    Packet {
        way: Way::In("eth0"),
        protocol: Protocol::Tcp,
        from: Some(address(peer)),
        to: address(pod),
        port: 8080,
        mark: 0,
    }
}

/// A connection of the application in the pod to `remote`.
fn outbound([_, pod]: [&str; 2], remote: &str) -> Packet {
    Packet {
        way: Way::Out(APP, "eth0"),
        protocol: Protocol::Tcp,
        from: Some(address(pod)),
        to: address(remote),
        port: 80,
        mark: 0,
    }
}

/// Write the manifest of a pod with a sidecar that runs with `ids` and has these variables.
fn write_pod(
    node: &Node,
    sandbox: &Sandbox,
    annotations: &[(&str, &str)],
    ids: [u32; 2],
    env: &[(&str, &str)],
) {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": sandbox.name, "namespace": sandbox.namespace,
                     "annotations": {"sidecar.istio.io/status": "{}"}},
        "spec": {"containers": [
            {"name": "app", "image": "app"},
            {"name": "istio-proxy", "image": "proxy", "args": ["proxy", "sidecar"],
             "securityContext": {"runAsUser": ids[0], "runAsGroup": ids[1]}},
        ]},
    });
    for (key, value) in annotations {
        pod["metadata"]["annotations"][*key] = (*value).into();
    }
    pod["spec"]["containers"][1]["env"] =
        env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    node.write_manifest(&pod);
}
