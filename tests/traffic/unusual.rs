// SPDX-License-Identifier: Apache-2.0
//! Pods whose namespaces are not the usual ones.

use std::net::SocketAddr;

use harness::netns::Netns;
use harness::node::{Node, Programmed, Sandbox};
use harness::outside::{Outside, POD};
use harness::packet::{APP, Ids, Protocol, ROOT};
use harness::server::{Report, Server, Service};
use harness::userns::{UserNamespace, on_host};

use crate::{REMOTE, address, write_pod};

/// The proxy, as its container says.
const PROXY: Ids = Ids { uid: 1337, gid: 1337 };
const DUAL_STACK: (&str, &str) = ("ISTIO_DUAL_STACK", "true");

/// The proxy's listeners, with sockets of `ids` of the host.
fn proxy(netns: &Netns, ids: Ids) -> Server {
    let service = |(any, port): (&str, u16)| Service {
        protocol: Protocol::Tcp,
        listen: SocketAddr::new(address(any), port),
        ids,
        transparent: false,
    };
    let both = |port| ["0.0.0.0", "::"].map(|any| (any, port));
    Server::start("pod", netns, both(15001).into_iter().chain(both(15006)).map(service).collect())
}

/// The script that prints the first line of what listens at `address` and `port`.
fn report_of(address: &str, port: u16) -> String {
    format!("exec 3<>/dev/tcp/{address}/{port} && head -n 1 <&3")
}

/// The server and the listener that took a connection of a shell in `netns` to `address`, whose own ids are `ids`.
fn taken(netns: &Netns, ids: Ids, address: &str, port: u16) -> (String, u16) {
    let ids = [format!("--reuid={}", ids.uid), format!("--regid={}", ids.gid)];
    let script = report_of(address, port);
    let arguments = [&ids[0], &ids[1], "--clear-groups", "bash", "-c", &script];
    server_of(&netns.program("setpriv", &arguments, ""))
}

fn server_of(line: &str) -> (String, u16) {
    let report: Report = line.parse().unwrap();
    (report.host, report.listener)
}

fn outside() -> (String, u16) {
    ("outside".to_owned(), 7)
}

fn pod(port: u16) -> (String, u16) {
    ("pod".to_owned(), port)
}

#[test]
fn in_a_user_namespace_the_proxy_is_who_has_its_uid_inside() {
    let node = Node::new();
    let _agent = node.start_agent();
    let users = UserNamespace::new();
    let sandbox = node.sandbox_in(users.netns(), "web");
    write_pod(&node, &sandbox, &[], [1337, 1337], &[DUAL_STACK]);
    let beyond = Outside::of(&sandbox);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 0);
    assert_eq!(sandbox.programmed(), Programmed::Complete);

    let _proxy = proxy(&sandbox.netns, on_host(PROXY));
    for (remote, own) in REMOTE.into_iter().zip(POD) {
        let inside = |ids| server_of(&users.shell(ids, &report_of(remote, 443)));
        assert_eq!(inside(APP), pod(15001), "the application");
        assert_eq!(inside(PROXY), outside(), "the proxy");
        assert_eq!(inside(Ids { uid: 0, ..PROXY }), outside(), "the proxy by its gid");
        let host = |ids| taken(&sandbox.netns, ids, remote, 443);
        assert_eq!(host(on_host(PROXY)), outside(), "the proxy as the host sees it");
        assert_eq!(host(PROXY), pod(15001), "somebody of the host, who has no uid inside");
        assert_eq!(host(ROOT), pod(15001), "root of the host, who has none either");
        // Nothing that uid asks for: the way in.
        assert_eq!(taken(&beyond.netns, ROOT, own, 8080), pod(15006));
    }
}

fn add(node: &Node, sandbox: &Sandbox, env: &[(&str, &str)]) -> (u64, String) {
    write_pod(node, sandbox, &[], [1337, 1337], env);
    let printed = node.plugin("ADD", sandbox);
    (printed.code(), printed.stdout)
}

#[test]
fn a_pod_with_ipv6_switched_off_gets_the_rules_of_ipv4() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    sandbox.netns.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let beyond = Outside::of(&sandbox);
    assert_eq!(add(&node, &sandbox, &[DUAL_STACK]).0, 0);
    assert_eq!(node.plugin("CHECK", &sandbox).code(), 0);
    assert_eq!((sandbox.programmed(), sandbox.has_passthrough()), (Programmed::Complete, false));

    let _proxy = proxy(&sandbox.netns, PROXY);
    assert_eq!(taken(&sandbox.netns, APP, REMOTE[0], 443), pod(15001));
    assert_eq!(taken(&sandbox.netns, PROXY, REMOTE[0], 443), outside());
    assert_eq!(taken(&beyond.netns, ROOT, POD[0], 8080), pod(15006));
}

#[test]
fn a_pod_with_ipv6_switched_off_on_lo_alone_is_refused_with_the_reason() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    sandbox.netns.sysctl("ipv6/conf/lo/disable_ipv6", "1");
    let (code, error) = add(&node, &sandbox, &[DUAL_STACK]);
    // Without ::6 the proxy's calls to the application would be captured again.
    assert_eq!(code, 106, "{error}");
    let reason =
        "add address ::6/128 dev lo: EACCES: Permission denied (ipv6: IPv6 is disabled on this device)";
    assert!(error.contains(reason), "{error}");
    // A proxy that does not serve IPv6 needs no such address.
    let sandbox = node.sandbox("ipv4");
    sandbox.netns.sysctl("ipv6/conf/lo/disable_ipv6", "1");
    assert_eq!(add(&node, &sandbox, &[]).0, 0);
    assert_eq!(sandbox.programmed(), Programmed::Complete);
}
