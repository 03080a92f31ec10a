// SPDX-License-Identifier: Apache-2.0
//! What excluded prefixes cost each connection: connect(2) on the redirected path, where the destination is in none of
//! them, without any and with many, in turn.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::time::Instant;

use agent_api::netns::Netlink;
use harness::netns::Netns;
use kernel::PodNetns;
use nix::libc;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, SetSockOpt as _, SockFlag, SockType, SockaddrStorage, connect, getsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use redirect::{Config, Ipv6, Pod, annotations};

use crate::lists::{Shape, prefixes};
use crate::report::{Report, median};

/// Excluded prefixes of each family; the first is what the others are compared with.
const LENGTHS: [u32; 3] = [0, 500, 10_000];
/// Every length and family once a round, in turn.
const ROUNDS: usize = 300;
/// Connections of one turn, after as many that fill the processor's caches.
const CONNECTIONS: usize = 100;
/// How much longer a connection may take with prefixes than without.
const LIMIT: f64 = 1.05;
/// A destination that is in no list, for each family.
const DESTINATIONS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)), 443),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10)), 443),
];
/// Where outbound capture leads.
const OUTBOUND: u16 = 15001;

/// Nothing answers beyond `eth0`: what leaves the pod hangs.
const POD: &str = "
link add eth0 type veth peer name beyond
addr add 10.77.0.2/24 dev eth0
addr add fd00:77::2/64 dev eth0 nodad
link set eth0 up
link set beyond up
route add default via 10.77.0.1
route add default via fd00:77::1
";

/// A pod with a list, and the proxy's listeners, one for each family.
struct Listed {
    netns: Netns,
    listeners: Arc<[TcpListener; 2]>,
}

pub(crate) fn measure(report: &mut Report) {
    // Some processor that we may use, the same for all.
    let cpu = sched_getcpu().unwrap();
    let pods = LENGTHS.map(|length| Listed::new(length, cpu));
    // One list for each length and family, with the microseconds of each round.
    let mut took = LENGTHS.map(|_| [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        for turn in 0..pods.len() {
            // Each follows each of the others as often.
            let index = if round % 2 == 0 { turn } else { pods.len() - 1 - turn };
            let index = (index + round / 2) % pods.len();
            for (family, times) in took[index].iter_mut().enumerate() {
                times.push(pods[index].connect(family));
            }
        }
    }
    for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let none = &took[0][family];
        report.note(&format!("connect(), {name}, nothing excluded"), median(none.clone()), "us");
        for (index, length) in LENGTHS.iter().enumerate().skip(1) {
            let ratios = took[index][family].iter().zip(none).map(|(with, without)| with / without);
            let label = format!("connect(), {name}, {length} excluded CIDRs");
            report.limited(&label, median(ratios.collect()), "x none", LIMIT);
        }
    }
}

impl Listed {
    fn new(length: u32, cpu: usize) -> Self {
        let netns = Netns::fresh();
        netns.ip(POD);
        netns.wait_for_links();
        let lists = [prefixes(Shape::Apart4, length), prefixes(Shape::Apart6, length)];
        let list = if length == 0 { String::new() } else { lists.join(",") };
        let pod = Pod::default()
            .with_annotations(BTreeMap::from([(annotations::EXCLUDE_OUTBOUND_CIDRS.into(), list)]));
        let config = Config::from_pod(&pod, &BTreeMap::new()).unwrap();
        let plan = redirect::compile(&Config { ipv6: Ipv6::Capture, ..config });
        let listeners = netns.run(move || {
            let [netfilter, route] = [Netlink::Netfilter, Netlink::Route].map(|kind| kind.open().unwrap());
            PodNetns::new(netfilter, route).unwrap().apply(&plan).unwrap();
            // Moving between processors is not what is measured.
            let mut cpus = CpuSet::new();
            cpus.set(cpu).unwrap();
            sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
            let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            loopback.map(|address| TcpListener::bind((address, OUTBOUND)).unwrap())
        });
        Self { netns, listeners: Arc::new(listeners) }
    }

    /// The median of some connections in microseconds.
    fn connect(&self, family: usize) -> f64 {
        let listeners = Arc::clone(&self.listeners);
        self.netns.run(move || {
            let mut took = Vec::with_capacity(CONNECTIONS);
            for number in 0..2 * CONNECTIONS {
                let time = connect_once(family, &listeners[family]);
                if number >= CONNECTIONS {
                    took.push(time);
                }
            }
            median(took)
        })
    }
}

/// Microseconds of one connection, which has to come in at `listener`.
fn connect_once(family: usize, listener: &TcpListener) -> f64 {
    let kind = [AddressFamily::Inet, AddressFamily::Inet6][family];
    let client = socket(kind, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    // A reset ends it: no port is kept.
    sockopt::Linger.set(&client, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    let destination = SockaddrStorage::from(DESTINATIONS[family]);
    let begin = Instant::now();
    connect(client.as_raw_fd(), &destination).unwrap();
    let took = begin.elapsed().as_secs_f64() * 1e6;
    let (server, _) = listener.accept().unwrap();
    let port = match family {
        0 => getsockopt(&server, sockopt::OriginalDst).unwrap().sin_port,
        _ => getsockopt(&server, sockopt::Ip6tOriginalDst).unwrap().sin6_port,
    };
    assert_eq!(u16::from_be(port), DESTINATIONS[family].port(), "not redirected");
    took
}
