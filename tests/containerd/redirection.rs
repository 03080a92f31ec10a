// SPDX-License-Identifier: Apache-2.0
//! What a pod of containerd can send and receive.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::node::Programmed;
use harness::packet::{Ids, Protocol, ROOT};
use harness::server::{Report, Server, Service};
use serde_json::json;

use crate::lab::{Lab, Pod, Source};
use crate::load::mesh_pod;
use crate::runtime::Runtime;

const PROXY: Ids = Ids { uid: 1337, gid: 1337 };

/// What the server says that a connection from `netns` to `to` ends at.
fn report(netns: &Netns, to: SocketAddr) -> Report {
    let line = netns.run(move || {
        let stream =
            TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line
    });
    line.parse().unwrap()
}

/// TCP listeners of the pod in both families.
fn listeners(ports: &[(u16, Ids)]) -> Vec<Service> {
    let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let service = |(port, ids): (u16, Ids), any| Service {
        protocol: Protocol::Tcp,
        listen: SocketAddr::new(any, port),
        ids,
        transparent: false,
    };
    ports.iter().flat_map(|port| families.map(|any| service(*port, any))).collect()
}

pub(crate) fn both_directions_and_families(runtime: Runtime) {
    let lab = Lab::new(runtime);
    let _agent = lab.node.start_agent();
    for source in [Source::Runtime, Source::Manifest] {
        let pod = mesh_pod(&format!("web-{source:?}").to_lowercase(), source);
        lab.write_manifest(&pod);
        let id = lab.run(&pod).unwrap();
        let (sandbox, addresses) = lab.look_into(&pod, &id).unwrap();
        assert_eq!(sandbox.programmed(), Programmed::Complete);
        assert_eq!(addresses.len(), 2, "an address of each family: {addresses:?}");
        let ports = [(15001, PROXY), (15006, PROXY), (7777, ROOT), (8888, ROOT)];
        let _server = Server::start("pod", &sandbox.netns, listeners(&ports));
        for (address, remote) in addresses.iter().zip(["203.0.113.9", "2001:db8:1::9"]) {
            let address: IpAddr = address.parse().unwrap();
            for (port, listener) in [(7777, 15006), (8888, 8888)] {
                let to = SocketAddr::new(address, port);
                let seen = report(&lab.netns, to);
                assert_eq!((seen.listener, seen.original), (listener, Some(to)), "{source:?}: {seen}");
            }
            let remote = SocketAddr::new(remote.parse().unwrap(), 80);
            let seen = report(&sandbox.netns, remote);
            assert_eq!((seen.listener, seen.original), (15001, Some(remote)), "{source:?}: {seen}");
        }
        drop(sandbox);
        lab.remove(&id).unwrap();
    }
}

pub(crate) fn without_an_agent(runtime: Runtime) {
    let lab = Lab::new(runtime);
    let plain = Pod { name: "plain".into(), source: Source::Runtime, annotations: json!({"a": "b"}) };
    let mesh = mesh_pod("mesh", Source::Runtime);
    lab.write_manifest(&mesh);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| (lab.run(&mesh), Instant::now()));
        let id = lab.run(&plain).unwrap();
        let (sandbox, _) = lab.look_into(&plain, &id).unwrap();
        assert_eq!(sandbox.programmed(), Programmed::Nothing);
        std::thread::sleep(Duration::from_secs(1));
        assert!(!waiting.is_finished(), "a mesh pod waits");
        let begin = Instant::now();
        let _agent = lab.node.start_agent();
        let (id, end) = waiting.join().unwrap();
        println!("a waiting pod started {:?} after the agent", end - begin);
        let (sandbox, _) = lab.look_into(&mesh, &id.unwrap()).unwrap();
        assert_eq!(sandbox.programmed(), Programmed::Complete);
    });
}
