// SPDX-License-Identifier: Apache-2.0
//! The resolved settings of one pod: every value typed, every default taken.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ruleset::{IfName, Prefix, RangeSet};

use crate::families::Ipv6Policy;

/// Ports that Istio's proxy and agent use, all TCP but for DNS.
pub mod ports {
    /// Outbound capture.
    pub const OUTBOUND: u16 = 15001;
    /// Inbound capture.
    pub const INBOUND: u16 = 15006;
    /// Tunnel (HBONE): a listener of its own that traffic must reach directly.
    pub const TUNNEL: u16 = 15008;
    /// DNS proxy, TCP and UDP.
    pub const DNS_PROXY: u16 = 15053;
    /// DNS.
    pub const DNS: u16 = 53;
    /// Agent status and merged Prometheus metrics.
    pub const STATUS: u16 = 15020;
    /// Inbound ports that probes and scrapers reach without the proxy: status, Envoy's health, Envoy's metrics.
    pub const ALWAYS_EXCLUDED: [u16; 3] = [STATUS, 15021, 15090];
}

/// Mark of traffic that TPROXY handed to the proxy, and of the proxy's sockets that bear a client's address.
pub const TPROXY_MARK: u32 = 1337;
/// Mark of the proxy's own calls to its pod's addresses in TPROXY mode.
pub(crate) const LOOP_MARK: u32 = 1338;
/// Routing table that delivers marked packets locally.
pub const TPROXY_TABLE: u32 = 133;
/// Source address of the proxy's connections to the application: "already through the inbound listener".
pub(crate) const PASSTHROUGH_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
/// The same in IPv6.
pub(crate) const PASSTHROUGH_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Uid and gid of the proxy unless its container says otherwise.
pub(crate) const PROXY_ID: u32 = 1337;

/// How inbound traffic reaches the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Destination NAT: the proxy sees the original destination, but not the client's address on the wire.
    Redirect,
    /// Packets reach a transparent listener unchanged.
    Tproxy,
}

/// Which inbound TCP ports are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundPorts {
    /// All but the excluded ones.
    All,
    /// These; the excluded ones are not consulted.
    Only(BTreeSet<u16>),
}

/// Destinations of outbound TCP that are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundCidrs {
    /// All.
    All,
    /// These.
    Only(Prefixes),
}

/// Prefixes, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes {
    /// IPv4.
    pub v4: RangeSet<u32>,
    /// IPv6.
    pub v6: RangeSet<u128>,
    /// Whether one was written with a loopback address; `0.0.0.0/0` was not.
    pub loopback: bool,
}

/// Whose outbound traffic is captured, by the gid of the sending socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerGroups {
    /// Everybody's but that of these groups.
    AllBut(BTreeSet<u32>),
    /// That of these groups; with none, nobody's.
    Only(BTreeSet<u32>),
}

/// Which DNS queries are sent to the DNS proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    /// None.
    Off,
    /// All to port 53.
    All,
    /// Those to these servers, for callers that know the pod's resolv.conf. With none, as [`Dns::Off`].
    Nameservers(BTreeSet<IpAddr>),
}

/// What happens in IPv6 to traffic that would be captured in IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// Nothing: no rule of ours looks at IPv6.
    Leave,
    /// It is captured, too.
    Capture,
    /// It is dropped; what is excluded passes as ever.
    Drop,
}

/// How the proxy's own traffic is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Uids of its sockets.
    pub uids: BTreeSet<u32>,
    /// Gids of its sockets.
    pub gids: BTreeSet<u32>,
}

/// All settings of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Interception mode.
    pub mode: Mode,
    /// Captured inbound ports.
    pub inbound: InboundPorts,
    /// Inbound ports that are not captured, with [`InboundPorts::All`].
    pub inbound_exclude: BTreeSet<u16>,
    /// Captured destinations.
    pub outbound: OutboundCidrs,
    /// Destinations that are not captured.
    pub outbound_exclude: Prefixes,
    /// Outbound TCP ports that are captured whatever the destination; exclusions win.
    pub outbound_ports: BTreeSet<u16>,
    /// Outbound ports, TCP and UDP, that are never captured.
    pub outbound_ports_exclude: BTreeSet<u16>,
    /// Interfaces whose traffic is not touched in either direction.
    pub exclude_interfaces: BTreeSet<IfName>,
    /// Interfaces behind which something sends as if it were the pod (a virtual machine): what arrives there is
    /// outbound.
    pub reroute_interfaces: BTreeSet<IfName>,
    /// Whose traffic is captured.
    pub owner_groups: OwnerGroups,
    /// DNS capture.
    pub dns: Dns,
    /// Drop TCP segments that conntrack cannot place, instead of letting the stack reset the connection.
    pub drop_invalid: bool,
    /// Whether the proxy says that it serves both families.
    pub dual_stack: bool,
    /// What the pod wants done with IPv6 that its proxy does not serve; nothing means what the node wants.
    pub ipv6_policy: Option<Ipv6Policy>,
    /// What is done with IPv6. Decided by [`crate::decide_ipv6`].
    pub ipv6: Ipv6,
    /// Who the proxy is.
    pub proxy: Proxy,
    /// IPv4 destinations that count as loopback.
    pub loopback4: Prefix<u32>,
    /// What was odd in the pod and ignored, one line each.
    pub warnings: Vec<String>,
}

impl Default for Config {
    /// What a pod without any annotation gets.
    fn default() -> Self {
        Self {
            mode: Mode::Redirect,
            inbound: InboundPorts::All,
            inbound_exclude: ports::ALWAYS_EXCLUDED.into(),
            outbound: OutboundCidrs::All,
            outbound_exclude: Prefixes::default(),
            outbound_ports: BTreeSet::new(),
            outbound_ports_exclude: [ports::STATUS].into(),
            exclude_interfaces: BTreeSet::new(),
            reroute_interfaces: BTreeSet::new(),
            owner_groups: OwnerGroups::AllBut(BTreeSet::new()),
            dns: Dns::Off,
            drop_invalid: false,
            dual_stack: false,
            ipv6_policy: None,
            ipv6: Ipv6::Leave,
            proxy: Proxy { uids: [PROXY_ID].into(), gids: [PROXY_ID].into() },
            loopback4: Prefix::host(Ipv4Addr::LOCALHOST.to_bits()),
            warnings: Vec::new(),
        }
    }
}
