// SPDX-License-Identifier: Apache-2.0
//! A pod with its neighbours, each in a network namespace of its own.
//!
//! ```text
//!   peer ── eth0  10.77.0.1  fd00:77::1 ─── 10.77.0.2  fd00:77::2  eth0 ─┐
//!        └─ net1  10.78.0.1  fd00:78::1 ─── 10.78.0.2  fd00:78::2  net1 ─┼─ pod
//!   vm ──── eth0  10.79.0.2  fd00:79::2 ─── 10.79.0.1  fd00:79::1  vm0  ─┘
//! ```
//!
//! The pod routes 198.18.0.0/24, 10.97.0.0/24 and 2001:db8:18::/64 through `net1`, all else through `eth0`, and forwards.
//! It has two addresses on `lo`, and 10.97.0.0/24, inside prefixes that the matrix includes. The peer answers to any
//! address and port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};

use agent_api::netns::Netlink;
use kernel::route::Route;
use kernel::{Backend as _, Nftables};
use ruleset::{Plan, Table};

use crate::matrix::Settings;
use crate::netns::Netns;
use crate::observer;
use crate::packet::{APP, Ids, Packet, Protocol, ROOT, Way};
use crate::server::{Server, Service};
use crate::topology;

/// Where the peer's catch-all listens.
const CATCH_ALL: u16 = 7;
/// TCP ports of the application.
const APP_PORTS: [u16; 13] = [22, 53, 80, 443, 853, 3306, 5432, 8080, 8081, 9090, 9091, 9999, 15002];
/// TCP ports of the proxy that capture nothing.
const PROXY_PORTS: [u16; 4] = [15008, 15020, 15021, 15090];
/// The proxy's outbound listener.
const OUTBOUND: u16 = 15001;
/// The proxy's inbound listener.
const INBOUND: u16 = 15006;
/// The DNS proxy, on loopback: a wildcard socket would answer redirected queries from the pod's address.
const DNS_PROXY: u16 = 15053;
/// UDP ports of the application.
const APP_UDP_PORTS: [u16; 8] = [53, 80, 443, 4000, 5353, 8080, 9999, 15020];
/// All of a link address but the last byte, which is the link's index.
const MAC: &str = "02:00:00:00:00:";
/// First source port of probes: each has its own, so that conntrack never takes one for another.
const FIRST_PORT: u16 = 20_000;

// Neighbours are permanent and addresses need no detection of duplicates: both take the kernel's workers, which a busy
// machine keeps waiting for seconds.
const PEER: &str = "
addr add 10.77.0.1/24 dev eth0
addr add fd00:77::1/64 dev eth0 nodad
addr add 10.78.0.1/24 dev net1
addr add fd00:78::1/64 dev net1 nodad
link set eth0 up
link set net1 up
neigh replace 10.77.0.2 lladdr 02:00:00:00:00:11 dev eth0 nud permanent
neigh replace fd00:77::2 lladdr 02:00:00:00:00:11 dev eth0 nud permanent
neigh replace 10.78.0.2 lladdr 02:00:00:00:00:12 dev net1 nud permanent
neigh replace fd00:78::2 lladdr 02:00:00:00:00:12 dev net1 nud permanent
route add 10.79.0.0/24 via 10.77.0.2
route add fd00:79::/64 via fd00:77::2
";
const VM: &str = "
addr add 10.79.0.2/24 dev eth0
addr add fd00:79::2/64 dev eth0 nodad
link set eth0 up
neigh replace 10.79.0.1 lladdr 02:00:00:00:00:13 dev eth0 nud permanent
neigh replace fd00:79::1 lladdr 02:00:00:00:00:13 dev eth0 nud permanent
route add default via 10.79.0.1
route add default via fd00:79::1
";
const POD: &str = "
addr add 10.77.0.2/24 dev eth0
addr add fd00:77::2/64 dev eth0 nodad
addr add 10.78.0.2/24 dev net1
addr add fd00:78::2/64 dev net1 nodad
addr add 10.79.0.1/24 dev vm0
addr add fd00:79::1/64 dev vm0 nodad
addr add 10.96.9.9/32 dev lo
addr add 2001:db8:96:9::9/128 dev lo nodad
link set eth0 up
link set net1 up
link set vm0 up
neigh replace 10.77.0.1 lladdr 02:00:00:00:00:21 dev eth0 nud permanent
neigh replace fd00:77::1 lladdr 02:00:00:00:00:21 dev eth0 nud permanent
neigh replace 10.78.0.1 lladdr 02:00:00:00:00:22 dev net1 nud permanent
neigh replace fd00:78::1 lladdr 02:00:00:00:00:22 dev net1 nud permanent
neigh replace 10.79.0.2 lladdr 02:00:00:00:00:23 dev vm0 nud permanent
neigh replace fd00:79::2 lladdr 02:00:00:00:00:23 dev vm0 nud permanent
route add default via 10.77.0.1
route add default via fd00:77::1
route add 198.18.0.0/24 via 10.78.0.1
route add 10.97.0.0/24 via 10.78.0.1
route add 2001:db8:18::/64 via fd00:78::1
";
const PEER_RULES: &str = "
table inet catch_all {
	chain arrived {
		type nat hook prerouting priority -100;
		meta l4proto tcp redirect to :7
		meta l4proto udp redirect to :7
		icmp type echo-request dnat ip to 10.77.0.1
		icmpv6 type echo-request dnat ip6 to fd00:77::1
	}
}
";

/// What listens in the pod, and how the pod looks at sources.
#[derive(Clone, Copy, Debug)]
pub struct Servers {
    /// Owner of the proxy's sockets.
    pub proxy: Ids,
    /// Whether the inbound listener is there.
    pub inbound: bool,
    /// Whether the application is there, and what of the proxy captures nothing.
    pub others: bool,
    /// Whether the lab has IPv6 at all: without, it needs a kernel that speaks IPv4, and no more.
    pub ipv6: bool,
    /// `rp_filter` of all interfaces of the pod: 0 off, 1 strict, 2 loose (`ip-sysctl.rst`). IPv6 has none.
    pub rp_filter: u8,
}

impl Servers {
    /// All that `settings` are made for. In TPROXY mode the proxy runs as root and is known by its gid.
    #[must_use]
    pub fn of(settings: &Settings) -> Self {
        let mut proxy = settings.proxy();
        if settings.value("mode") == "TPROXY" {
            proxy.uid = ROOT.uid;
        }
        Self { proxy, inbound: true, others: true, ipv6: true, rp_filter: 0 }
    }

    /// Whose socket listens on `port`.
    #[must_use]
    pub fn owner(&self, port: u16) -> Ids {
        let ours = PROXY_PORTS.contains(&port) || [OUTBOUND, INBOUND, DNS_PROXY].contains(&port);
        if ours { self.proxy } else { APP }
    }

    /// Whether somebody listens at the destination of `packet`, if that is the pod; beyond it somebody always does.
    #[must_use]
    pub fn serve(&self, packet: &Packet) -> bool {
        let port = &packet.port;
        match packet.protocol {
            _ if !topology::is_local(packet.to) => true,
            _ if *port == DNS_PROXY => LOOPBACK.contains(&packet.to),
            Protocol::Tcp => {
                *port == OUTBOUND
                    || *port == INBOUND && self.inbound
                    || self.others && (PROXY_PORTS.contains(port) || APP_PORTS.contains(port))
            }
            Protocol::Udp => self.others && APP_UDP_PORTS.contains(port),
            Protocol::Icmp => true,
        }
    }
}

/// The namespaces and what runs in them.
pub struct Lab {
    /// The pod.
    pub pod: Netns,
    /// Everything beyond `eth0` and `net1`.
    pub peer: Netns,
    /// A machine behind the pod's `vm0`.
    pub vm: Netns,
    /// What listens in the pod.
    pub servers: Servers,
    _running: [Server; 2],
    rules: Mutex<Nftables>,
    next_port: AtomicU16,
}

impl Lab {
    /// A lab without any rules.
    #[must_use]
    pub fn new(servers: Servers) -> Self {
        let [pod, peer, vm] = std::array::from_fn(|_| Netns::fresh());
        for netns in [&pod, &peer, &vm] {
            netns.sysctl("ipv4/conf/all/rp_filter", "0");
            netns.sysctl("ipv4/conf/default/rp_filter", "0");
            netns.sysctl("ipv4/ping_group_range", "0 2147483647");
        }
        // What nobody listens for is refused at once, however often.
        pod.sysctl("ipv4/icmp_ratelimit", "0");
        pod.sysctl("ipv4/ip_forward", "1");
        if servers.ipv6 {
            pod.sysctl("ipv6/icmp/ratelimit", "0");
            pod.sysctl("ipv6/conf/all/forwarding", "1");
        }
        // With the same index on both ends, the kernel takes a second to notice that the link is up.
        let (to_peer, to_vm) = (peer.path().display(), vm.path().display());
        pod.ip(&format!(
            "link add eth0 index 11 address {MAC}11 type veth peer name eth0 index 21 address {MAC}21 netns {to_peer}\n\
             link add net1 index 12 address {MAC}12 type veth peer name net1 index 22 address {MAC}22 netns {to_peer}\n\
             link add vm0 index 13 address {MAC}13 type veth peer name eth0 index 23 address {MAC}23 netns {to_vm}\n"
        ));
        let spoken = |text: &str| {
            let lines = text.lines().filter(|line| servers.ipv6 || !line.contains("::"));
            lines.flat_map(|line| [line, "\n"]).collect::<String>()
        };
        peer.ip(&spoken(PEER));
        vm.ip(&spoken(VM));
        pod.ip(&spoken(POD));
        for interface in ["all", "lo", "eth0", "net1", "vm0"] {
            pod.sysctl(&format!("ipv4/conf/{interface}/rp_filter"), &servers.rp_filter.to_string());
        }
        [&pod, &peer, &vm].into_iter().for_each(Netns::wait_for_links);
        peer.program("nft", &["-f", "-"], &spoken(PEER_RULES));
        let running = [
            Server::start("pod", &pod, pod_services(servers)),
            Server::start("peer", &peer, peer_services(servers.ipv6)),
        ];
        let socket = pod.run(|| Netlink::Netfilter.open().unwrap());
        let rules = Mutex::new(Nftables::new(socket).unwrap());
        Self { pod, peer, vm, servers, _running: running, rules, next_port: AtomicU16::new(FIRST_PORT) }
    }

    /// A lab whose pod is observed and holds `plan`.
    #[must_use]
    pub fn programmed(servers: Servers, plan: &Plan) -> Self {
        let lab = Self::new(servers);
        observer::start(&lab.pod);
        lab.program(plan);
        lab
    }

    /// Make the pod hold exactly `tables` of ours.
    pub fn apply(&self, tables: &[Table]) {
        self.rules.lock().unwrap().apply(tables).unwrap();
    }

    /// Remove our tables from the pod.
    pub fn remove(&self) {
        self.rules.lock().unwrap().remove().unwrap();
    }

    /// Make the pod hold all of `plan`.
    pub fn program(&self, plan: &Plan) {
        self.apply(&plan.tables);
        let mut route = Route::new(self.pod.run(|| Netlink::Route.open().unwrap())).unwrap();
        // A lab without IPv6 has none of either.
        route.set_passthrough(plan.passthrough_ipv6).unwrap();
        route.set_policy_route(&plan.policy_route).unwrap();
    }

    /// A source port that no probe of this lab had.
    pub fn fresh_port(&self) -> u16 {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        assert!(port >= FIRST_PORT, "out of source ports: make a new lab");
        port
    }

    /// How many probes there were.
    pub fn probes(&self) -> u16 {
        self.next_port.load(Ordering::Relaxed) - FIRST_PORT
    }

    /// Where `packet` is sent from.
    #[must_use]
    pub fn sender(&self, packet: &Packet) -> &Netns {
        match packet.way {
            Way::Out(..) => &self.pod,
            Way::In("vm0") => &self.vm,
            Way::In(_) => &self.peer,
        }
    }
}

fn pod_services(servers: Servers) -> Vec<Service> {
    let mut services = Vec::new();
    let mut add = |protocol, addresses: [IpAddr; 2], port, ids, transparent| {
        for address in addresses.into_iter().filter(|address| servers.ipv6 || address.is_ipv4()) {
            services.push(Service { protocol, listen: SocketAddr::new(address, port), ids, transparent });
        }
    };
    add(Protocol::Tcp, ANY, OUTBOUND, servers.proxy, false);
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        add(protocol, LOOPBACK, DNS_PROXY, servers.proxy, false);
    }
    if servers.inbound {
        add(Protocol::Tcp, ANY, INBOUND, servers.proxy, true);
    }
    if servers.others {
        PROXY_PORTS.iter().for_each(|port| add(Protocol::Tcp, ANY, *port, servers.proxy, false));
        APP_PORTS.iter().for_each(|port| add(Protocol::Tcp, ANY, *port, APP, false));
        APP_UDP_PORTS.iter().for_each(|port| add(Protocol::Udp, ANY, *port, APP, false));
    }
    services
}

fn peer_services(ipv6: bool) -> Vec<Service> {
    let service = |protocol, address| Service {
        protocol,
        listen: SocketAddr::new(address, CATCH_ALL),
        ids: ROOT,
        transparent: false,
    };
    [Protocol::Tcp, Protocol::Udp]
        .iter()
        .flat_map(|protocol| ANY.map(|any| service(*protocol, any)))
        .filter(|service| ipv6 || service.listen.is_ipv4())
        .collect()
}

const ANY: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
