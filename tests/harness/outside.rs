// SPDX-License-Identifier: Apache-2.0
//! The network beyond a sandbox's interface: a neighbour that has some addresses of the internet and answers on all
//! others, too.

use std::net::{IpAddr, SocketAddr};

use crate::netns::Netns;
use crate::node::Sandbox;
use crate::packet::{Protocol, ROOT};
use crate::server::{Server, Service};

/// The pod's addresses, as [`crate::node::Node::sandbox`] gives them.
pub const POD: [&str; 2] = ["10.9.0.2", "fd00:9::2"];
/// The neighbour's addresses on the pod's link.
pub const NEIGHBOUR: [&str; 2] = ["10.9.0.1", "fd00:9::1"];
/// Its addresses that the pod has a default route to.
pub const INTERNET: [&str; 2] = ["203.0.113.53", "2001:db8:53::53"];

/// Where the catch-all listens.
const CATCH_ALL: u16 = 7;
// Everything but what a test's own servers are for.
const RULES: &str = "
table inet catch_all {
	chain arrived {
		type nat hook prerouting priority -100;
		tcp dport != { 53, 80 } redirect to :7
	}
}
";

/// The neighbour.
pub struct Outside {
    /// Its namespace.
    pub netns: Netns,
    _server: Server,
}

impl Outside {
    /// Beyond the interface of `sandbox`, which gets default routes. TCP to any port but 53 and 80 is answered as by
    /// the server "outside".
    #[must_use]
    pub fn of(sandbox: &Sandbox) -> Self {
        let netns = Netns::fresh();
        sandbox.netns.ip(&format!("link set peer0 netns {}\n", netns.path().display()));
        let addresses: String =
            NEIGHBOUR.iter().map(|a| format!("addr add {a}/{} dev peer0\n", prefix(a))).collect();
        let internet: String = INTERNET.iter().map(|a| format!("addr add {a} dev lo\n")).collect();
        netns.sysctl("ipv6/conf/peer0/accept_dad", "0");
        netns.ip(&format!("{addresses}{internet}link set peer0 up\n"));
        sandbox.netns.wait_for_links();
        netns.wait_for_links();
        netns.program("nft", &["-f", "-"], RULES);
        let service = |any: &str| Service {
            protocol: Protocol::Tcp,
            listen: SocketAddr::new(address(any), CATCH_ALL),
            ids: ROOT,
            transparent: false,
        };
        let server = Server::start("outside", &netns, ["0.0.0.0", "::"].map(service).into());
        for via in NEIGHBOUR.iter().filter(|via| sandbox.ip("addr").contains(neighbour_of(via))) {
            sandbox.netns.ip(&format!("route add default via {via}\n"));
        }
        Self { netns, _server: server }
    }
}

/// `text` as an address.
#[must_use]
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The pod's address of the same family.
fn neighbour_of(address: &str) -> &'static str {
    if address.contains(':') { POD[1] } else { POD[0] }
}

fn prefix(address: &str) -> u8 {
    if address.contains(':') { 64 } else { 24 }
}
