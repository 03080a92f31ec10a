// SPDX-License-Identifier: Apache-2.0
//! Addresses, policy rules and routes (rtnetlink(7)).
//!
//! Owns what a pod's netns needs beside its tables; must never remove or change anything but `::6/128` on `lo`, the rule of
//! [`RULE_PRIORITY`] with our mark, and the route in the table that it names.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, Parseable,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use ruleset::PolicyRoute;

use crate::age;
use crate::error::Error;
use crate::fault;
use crate::socket::{Operation, Refusal, Socket};

/// Priority of our rules: a fixed one, so that adding a rule twice is refused as existing instead of doubling it; and
/// before `main` (32766), whose default route would win. The number is Istio's for all that is its own.
pub const RULE_PRIORITY: u32 = 1337;
/// `::6`, which the proxy binds for connections that must not be captured again.
pub const PASSTHROUGH: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Index of `lo` in every netns (`LOOPBACK_IFINDEX`).
pub const LOOPBACK_IFINDEX: u32 = 1;

const DUMP: Operation = Operation { what: "read addresses", points: &fault::ROUTE_DUMP };
const REQUEST: Operation =
    Operation { what: "change an address, rule or route", points: &fault::ROUTE_REQUEST };

/// One address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The address.
    pub addr: IpAddr,
    /// Index of the interface.
    pub interface: u32,
    /// Whether it is for use on this host only: all of `lo`'s are (`RT_SCOPE_HOST`).
    pub host_scope: bool,
    /// Whether it is for use on this link only (`RT_SCOPE_LINK`), as fe80::/10 is.
    pub link_scope: bool,
    /// Whether duplicate address detection has not finished or has failed (`IFA_F_TENTATIVE`, `IFA_F_DADFAILED`).
    pub unusable: bool,
    /// How long it has been there, at most 10 ms too long (`cstamp` of `IFA_CACHEINFO`).
    pub age: Duration,
}

/// Routing of the netns that a NETLINK_ROUTE socket was opened in.
pub struct Route {
    socket: Socket,
}

impl Route {
    /// Take over `socket`: an `AF_NETLINK` socket of protocol `NETLINK_ROUTE`.
    ///
    /// # Errors
    /// [`Error::Setup`] when it is no netlink socket.
    pub fn new(socket: OwnedFd) -> Result<Self, Error> {
        Socket::new(socket).map(|socket| Self { socket })
    }

    /// The addresses of all interfaces as `ip address` lists them: by interface within a family, IPv4 first.
    ///
    /// # Errors
    /// [`Error`] when they could not be read.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let build = |seq| {
            let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
            serialize(message, NLM_F_REQUEST | NLM_F_DUMP, seq)
        };
        let found = self.socket.exchange(&DUMP, build, |m| decode_address(m.payload))?;
        let found = found.map_err(|r| refused(String::from(DUMP.what), r))?;
        found.into_iter().collect()
    }

    /// `ip address add ::6/128 dev lo`, or without it; whether it is there already does not matter.
    ///
    /// # Errors
    /// [`Error::Refused`], with EACCES or EPERM when IPv6 is disabled on `lo`.
    pub fn set_passthrough(&mut self, wanted: bool) -> Result<(), Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = 128;
        message.header.index = LOOPBACK_IFINDEX;
        message.attributes.push(AddressAttribute::Local(IpAddr::V6(PASSTHROUGH)));
        message.attributes.push(AddressAttribute::Address(IpAddr::V6(PASSTHROUGH)));
        // Nobody else can have it: without this it is tentative, and cannot be bound, until `lo` is up.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        let what = || format!("address {PASSTHROUGH}/128 dev lo");
        if wanted {
            self.add(RouteNetlinkMessage::NewAddress(message), what).map_err(|error| match error {
                // What older kernels say without a word of explanation.
                Error::Refused { what, errno: errno @ (Errno::EACCES | Errno::EPERM), extack: None } => {
                    let hint = String::from("IPv6 is disabled on lo: sysctl net.ipv6.conf.lo.disable_ipv6");
                    Error::Refused { what, errno, extack: Some(hint) }
                }
                other => other,
            })
        } else {
            self.delete(RouteNetlinkMessage::DelAddress(message), what)
        }
    }

    /// `ip rule add fwmark MARK lookup TABLE priority 1337` and `ip route add local default dev lo table TABLE` in the
    /// families in which they are wanted, and neither in the others; what is so already is fine.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn set_policy_route(&mut self, policy: &PolicyRoute) -> Result<(), Error> {
        let PolicyRoute { mark, table, ipv4, ipv6 } = *policy;
        for (family, flag, wanted) in [(AddressFamily::Inet, "-4", ipv4), (AddressFamily::Inet6, "-6", ipv6)]
        {
            let (route, rule) = (local_default(family, table), mark_rule(family, mark, table));
            let route_text = || format!("route {flag} local default dev lo table {table}");
            let rule_text = || format!("rule {flag} fwmark {mark} lookup {table} priority {RULE_PRIORITY}");
            // A rule without its route sends marked packets to the next table: the route comes first and goes last.
            if wanted {
                self.add(RouteNetlinkMessage::NewRoute(route), route_text)?;
                self.add(RouteNetlinkMessage::NewRule(rule), rule_text)?;
            } else {
                self.delete(RouteNetlinkMessage::DelRule(rule), rule_text)?;
                self.delete(RouteNetlinkMessage::DelRoute(route), route_text)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, message: RouteNetlinkMessage, what: impl FnOnce() -> String) -> Result<(), Error> {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.request(message, flags)? {
            Ok(()) | Err(Refusal { errno: Errno::EEXIST, .. }) => Ok(()),
            Err(refusal) => Err(refused(format!("add {}", what()), refusal)),
        }
    }

    fn delete(&mut self, message: RouteNetlinkMessage, what: impl FnOnce() -> String) -> Result<(), Error> {
        match self.request(message, NLM_F_REQUEST | NLM_F_ACK)? {
            Ok(()) => Ok(()),
            // How the kernel says that there is no such rule, route or address, and that it has no such family at all
            // (started with ipv6.disable=1).
            Err(Refusal {
                errno:
                    Errno::ENOENT | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP,
                ..
            }) => Ok(()),
            Err(refusal) => Err(refused(format!("delete {}", what()), refusal)),
        }
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<Result<(), Refusal>, Error> {
        let build = |seq| serialize(message.clone(), flags, seq);
        Ok(self.socket.exchange(&REQUEST, build, |_| ())?.map(drop))
    }
}

fn local_default(family: AddressFamily, table: u32) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.protocol = RouteProtocol::Boot;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    // The header has room for 8 bits; the attribute decides.
    route.attributes.push(RouteAttribute::Table(table));
    route.attributes.push(RouteAttribute::Oif(LOOPBACK_IFINDEX));
    route
}

fn mark_rule(family: AddressFamily, mark: u32, table: u32) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes.push(RuleAttribute::Priority(RULE_PRIORITY));
    rule.attributes.push(RuleAttribute::FwMark(mark));
    rule.attributes.push(RuleAttribute::FwMask(u32::MAX));
    rule.attributes.push(RuleAttribute::Table(table));
    rule
}

fn serialize(message: RouteNetlinkMessage, flags: u16, seq: u32) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = seq;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// `struct ifaddrmsg` and attributes; IFA_LOCAL is the address itself where both are given, as on a link to one peer.
fn decode_address(payload: &[u8]) -> Result<Address, Error> {
    let decode = |reason| Error::Decode { object: String::from("an address"), reason };
    let message = AddressMessage::parse(payload).map_err(|_| decode("malformed message"))?;
    let (mut local, mut address, mut flags, mut age) = (None, None, AddressFlags::empty(), Duration::ZERO);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(a),
            AddressAttribute::Address(a) => address = Some(a),
            AddressAttribute::Flags(f) => flags = f,
            AddressAttribute::CacheInfo(info) => age = age::since(info.cstamp),
            _ => {}
        }
    }
    Ok(Address {
        addr: local.or(address).ok_or(decode("no address in it"))?,
        interface: message.header.index,
        host_scope: message.header.scope == AddressScope::Host,
        link_scope: message.header.scope == AddressScope::Link,
        unusable: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        age,
    })
}

fn refused(what: String, Refusal { errno, extack, .. }: Refusal) -> Error {
    Error::Refused { what, errno, extack }
}

/// For the fuzzer: the payload of one answer about addresses.
#[doc(hidden)]
pub fn decode_address_payload(bytes: &[u8]) {
    let _ = decode_address(bytes);
}
