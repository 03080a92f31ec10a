// SPDX-License-Identifier: Apache-2.0
//! Real Envoy as the sidecar of a pod in TPROXY mode.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use harness::daemon::Daemon;
use harness::http::{HttpServer, get};
use harness::node::Node;
use harness::outside::{INTERNET, NEIGHBOUR, Outside, POD};
use harness::packet::{APP, Ids, ROOT};

use crate::{address, write_pod};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/traffic/envoy.yaml");
/// Envoy with CAP_NET_ADMIN, as the injector has it in TPROXY mode.
const PROXY: Ids = Ids { uid: 0, gid: 1337 };

/// The program itself, not the script that starts it.
fn envoy() -> PathBuf {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/lib");
    let found = std::fs::read_dir(&venv).into_iter().flatten().flatten();
    found
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("no Envoy in {}: make setup", venv.display()))
}

#[test]
fn envoy_in_tproxy_mode_serves_both_directions_and_the_application_sees_its_client() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    let mode = ("sidecar.istio.io/interceptionMode", "TPROXY");
    write_pod(&node, &sandbox, &[mode], [0, 1337], &[("ISTIO_DUAL_STACK", "true")]);
    let outside = Outside::of(&sandbox);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);

    let servers = POD
        .map(|pod| HttpServer::start(&sandbox.netns, "the application", SocketAddr::new(address(pod), 8080)));
    let remotes = INTERNET.map(|remote| {
        HttpServer::start(&outside.netns, "the internet", SocketAddr::new(address(remote), 80))
    });
    let program = envoy();
    let command = [program.to_str().unwrap(), "--config-path", CONFIG, "--concurrency", "1"];
    let more = ["--disable-hot-restart", "--log-level", "warning"];
    let mut envoy = Daemon::start(&sandbox.netns, PROXY, "-all,+net_admin", &[&command[..], &more].concat());
    let admin = SocketAddr::new(address("127.0.0.1"), 15000);
    envoy.wait_until(|_| {
        get(&sandbox.netns, ROOT, admin).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    });

    for family in 0..2 {
        let (pod, client, remote) = (POD[family], NEIGHBOUR[family], INTERNET[family]);
        let application = SocketAddr::new(address(pod), 8080);
        let answer = get(&outside.netns, ROOT, application).expect("an answer of the application");
        assert!(answer.contains(&format!("\r\nx-hop: inbound {application}\r\n")), "{answer}");
        assert!(answer.ends_with(&format!("the application called from {client}")), "{answer}");

        let internet = SocketAddr::new(address(remote), 80);
        let answer = get(&sandbox.netns, APP, internet).expect("an answer from outside");
        assert!(answer.contains(&format!("\r\nx-hop: outbound {internet}\r\n")), "{answer}");
        assert!(answer.ends_with(&format!("the internet called from {pod}")), "{answer}");
    }
    drop((servers, remotes));
}
