// SPDX-License-Identifier: Apache-2.0
//! Operands for lists: the value itself where there is one, a named set where there are more.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ruleset::{Elements, Field, IfName, IpFamily, L4, Match, Operand, Prefix, RangeSet, Set};

use super::{Compiler, is, is_not};
use crate::config::{Dns, PASSTHROUGH_V4, PASSTHROUGH_V6, Prefixes};

impl Compiler<'_> {
    /// The operand for a set named `name`, which is made at its first use.
    fn named(&mut self, name: &str, elements: Elements) -> Operand {
        if !self.sets.iter().any(|set| set.name == name) {
            self.sets.push(Set { name: name.to_owned(), elements, comment: None });
        }
        Operand::Set(name.to_owned())
    }

    /// `ports` as an operand, or nothing for none.
    pub(super) fn ports(&mut self, name: &str, ports: &BTreeSet<u16>) -> Option<Operand> {
        let first = *ports.first()?;
        if ports.len() == 1 {
            return Some(Operand::Port(first));
        }
        Some(self.named(name, Elements::Port(ports.iter().copied().collect())))
    }

    /// `names` as an operand, or nothing for none.
    pub(super) fn interfaces(&mut self, name: &str, names: &BTreeSet<IfName>) -> Option<Operand> {
        let first = names.first()?;
        if names.len() == 1 {
            return Some(Operand::IfName(first.clone()));
        }
        Some(self.named(name, Elements::IfName(names.iter().cloned().collect())))
    }

    /// Gids as an operand, or nothing for none.
    pub(super) fn gids(&mut self, name: &str, gids: &BTreeSet<u32>) -> Option<Operand> {
        let first = *gids.first()?;
        if gids.len() == 1 {
            return Some(Operand::Number(first));
        }
        Some(self.named(name, Elements::Gid(gids.iter().copied().collect())))
    }

    /// The proxy as the sender, by uid and by gid.
    pub(super) fn proxy(&mut self) -> (Option<Match>, Option<Match>) {
        let uids = &self.config.proxy.uids;
        let uid = match (uids.first(), uids.len()) {
            (Some(first), 1) => Some(Operand::Number(*first)),
            (Some(_), _) => Some(self.named("proxy_uids", Elements::Uid(uids.iter().copied().collect()))),
            (None, _) => None,
        };
        let gid = self.gids("proxy_gids", &self.config.proxy.gids);
        (uid.map(|uid| is(Field::SkUid, uid)), gid.map(|gid| is(Field::SkGid, gid)))
    }

    /// `meta l4proto { tcp, udp }`.
    pub(super) fn tcp_or_udp(&mut self) -> Match {
        is(Field::L4Proto, self.named("tcp_udp", Elements::Protocol(vec![L4::Tcp, L4::Udp])))
    }

    /// "Destination in `prefixes`" in one family, or nothing for none; the set is `name` with the family's digit.
    pub(super) fn destination(&mut self, name: &str, prefixes: &Prefixes, family: IpFamily) -> Option<Match> {
        self.address(name, prefixes, family).map(|operand| match family {
            IpFamily::V4 => is(Field::Ip4Dst, operand),
            IpFamily::V6 => is(Field::Ip6Dst, operand),
        })
    }

    /// "Source in `prefixes`", likewise.
    pub(super) fn source(&mut self, name: &str, prefixes: &Prefixes, family: IpFamily) -> Option<Match> {
        self.address(name, prefixes, family).map(|operand| match family {
            IpFamily::V4 => is(Field::Ip4Src, operand),
            IpFamily::V6 => is(Field::Ip6Src, operand),
        })
    }

    fn address(&mut self, name: &str, prefixes: &Prefixes, family: IpFamily) -> Option<Operand> {
        match (family, prefixes.v4.ranges(), prefixes.v6.ranges()) {
            (IpFamily::V4, [], _) | (IpFamily::V6, _, []) => None,
            (IpFamily::V4, [one], _) if one.prefix().is_some() => one.prefix().map(Operand::Ipv4),
            (IpFamily::V6, _, [one]) if one.prefix().is_some() => one.prefix().map(Operand::Ipv6),
            (IpFamily::V4, ..) => Some(self.named(&format!("{name}4"), Elements::Ipv4(prefixes.v4.clone()))),
            (IpFamily::V6, ..) => Some(self.named(&format!("{name}6"), Elements::Ipv6(prefixes.v6.clone()))),
        }
    }

    /// A match on the nameservers for each family that has one, or one without a match when all of DNS is captured.
    pub(super) fn nameservers(
        &mut self,
        side: fn(&mut Self, &str, &Prefixes, IpFamily) -> Option<Match>,
    ) -> Vec<Option<Match>> {
        match &self.config.dns {
            Dns::Nameservers(servers) => {
                let servers = hosts(servers);
                let families = self.config.families();
                families.iter().filter_map(|f| side(self, "nameservers", &servers, *f)).map(Some).collect()
            }
            _ => vec![None],
        }
    }

    /// "Destination is loopback" as rules see it: one IPv4 prefix, 127.0.0.1 by default, and ::1.
    pub(super) fn to_loopback(&self, family: IpFamily) -> Match {
        match family {
            IpFamily::V4 => is(Field::Ip4Dst, Operand::Ipv4(self.config.loopback4)),
            IpFamily::V6 => is(Field::Ip6Dst, Operand::Ipv6(Prefix::host(Ipv6Addr::LOCALHOST.to_bits()))),
        }
    }

    /// "Destination is not loopback".
    pub(super) fn beyond_loopback(&self, family: IpFamily) -> Match {
        let Match { field, operand, .. } = self.to_loopback(family);
        is_not(field, operand)
    }

    /// The loopback prefixes of both families.
    pub(super) fn loopback(&self) -> Prefixes {
        let v4 = RangeSet::from_iter([self.config.loopback4]);
        Prefixes {
            v4,
            v6: RangeSet::from_iter([Prefix::host(Ipv6Addr::LOCALHOST.to_bits())]),
            loopback: true,
        }
    }
}

/// "Source is the proxy's passthrough address": this connection went through the inbound listener already.
pub(super) fn from_passthrough(family: IpFamily) -> Match {
    match family {
        IpFamily::V4 => is(Field::Ip4Src, Operand::Ipv4(Prefix::host(PASSTHROUGH_V4.to_bits()))),
        IpFamily::V6 => is(Field::Ip6Src, Operand::Ipv6(Prefix::host(PASSTHROUGH_V6.to_bits()))),
    }
}

/// The members of either.
pub(super) fn union(a: &Prefixes, b: &Prefixes) -> Prefixes {
    Prefixes {
        v4: a.v4.ranges().iter().chain(b.v4.ranges()).copied().collect(),
        v6: a.v6.ranges().iter().chain(b.v6.ranges()).copied().collect(),
        loopback: a.loopback || b.loopback,
    }
}

/// Single addresses as prefixes.
fn hosts(addresses: &BTreeSet<IpAddr>) -> Prefixes {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(a) => v4.push(Prefix::host(a.to_bits())),
            IpAddr::V6(a) => v6.push(Prefix::host(a.to_bits())),
        }
    }
    Prefixes { v4: v4.into_iter().collect(), v6: v6.into_iter().collect(), loopback: false }
}
