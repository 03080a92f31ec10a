// SPDX-License-Identifier: Apache-2.0
//! A table in nft(8) syntax, as `nft -f` accepts it.
//!
//! The text is also the canonical form that a [`crate::Fingerprint`] covers: whoever changes what is printed here
//! must raise [`crate::Fingerprint::FORM`].

use std::fmt::{self, Display, Formatter, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::model::{
    BaseChain, Chain, ChainType, CtStates, Elements, Family, Field, Hook, IpFamily, L4, Match, Op, Operand,
    Rule, Set, Statement, Table,
};
use crate::range::{Address, Prefix, Range};

/// `table` as nft syntax, one rule a line, ending in a newline.
#[must_use]
pub fn render(table: &Table) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_table(&mut out, table);
    out
}

fn write_table(out: &mut String, table: &Table) -> fmt::Result {
    writeln!(out, "table {} {} {{", table.family, table.name)?;
    for set in &table.sets {
        write_set(out, set)?;
    }
    for chain in &table.chains {
        write_chain(out, chain)?;
    }
    out.write_str("}\n")
}

fn write_set(out: &mut String, set: &Set) -> fmt::Result {
    writeln!(out, "\tset {} {{", set.name)?;
    writeln!(out, "\t\ttype {}", key_type(&set.elements))?;
    if matches!(set.elements, Elements::Ipv4(_) | Elements::Ipv6(_)) {
        writeln!(out, "\t\tflags interval")?;
    }
    if let Some(comment) = &set.comment {
        writeln!(out, "\t\tcomment \"{comment}\"")?;
    }
    if !set.elements.is_empty() {
        writeln!(out, "\t\telements = {{ {} }}", elements(&set.elements))?;
    }
    writeln!(out, "\t}}")
}

fn key_type(elements: &Elements) -> &'static str {
    match elements {
        Elements::Protocol(_) => "inet_proto",
        Elements::Port(_) => "inet_service",
        Elements::Uid(_) => "uid",
        Elements::Gid(_) => "gid",
        Elements::IfName(_) => "ifname",
        Elements::Mark(_) => "mark",
        Elements::Ipv4(_) => "ipv4_addr",
        Elements::Ipv6(_) => "ipv6_addr",
    }
}

fn elements(elements: &Elements) -> String {
    match elements {
        Elements::Protocol(v) => join(v),
        Elements::Port(v) => join(v),
        Elements::Uid(v) | Elements::Gid(v) | Elements::Mark(v) => join(v),
        Elements::IfName(v) => v.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "),
        Elements::Ipv4(v) => v.ranges().iter().map(|r| range(*r, ipv4)).collect::<Vec<_>>().join(", "),
        Elements::Ipv6(v) => v.ranges().iter().map(|r| range(*r, ipv6)).collect::<Vec<_>>().join(", "),
    }
}

fn join<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn range<T: Address>(range: Range<T>, address: fn(T) -> String) -> String {
    match range.prefix() {
        Some(found) => prefix(found, address),
        None => format!("{}-{}", address(range.first), address(range.last)),
    }
}

fn prefix<T: Address>(prefix: Prefix<T>, address: fn(T) -> String) -> String {
    if prefix.prefix_len() == T::BITS {
        address(prefix.network())
    } else {
        format!("{}/{}", address(prefix.network()), prefix.prefix_len())
    }
}

fn ipv4(bits: u32) -> String {
    Ipv4Addr::from_bits(bits).to_string()
}

fn ipv6(bits: u128) -> String {
    Ipv6Addr::from_bits(bits).to_string()
}

fn write_chain(out: &mut String, chain: &Chain) -> fmt::Result {
    writeln!(out, "\tchain {} {{", chain.name)?;
    if let Some(base) = chain.base {
        writeln!(out, "\t\t{base}")?;
    }
    for rule in &chain.rules {
        writeln!(out, "\t\t{rule}")?;
    }
    writeln!(out, "\t}}")
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

impl Display for BaseChain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
            ChainType::Route => "route",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Output => "output",
        };
        write!(f, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for m in &self.matches {
            write!(f, "{m} ")?;
        }
        for statement in &self.statements {
            write!(f, "{statement} ")?;
        }
        write!(f, "comment \"{}\"", self.reason)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.field)?;
        match (self.op, self.field) {
            (Op::Eq, _) => {}
            // `!=` with two states would compare with both at once and always hold; `!` means none of them.
            (Op::Ne, Field::CtState) => f.write_str("! ")?,
            (Op::Ne, _) => f.write_str("!= ")?,
        }
        write!(f, "{}", self.operand)
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NfProto => "meta nfproto",
            Self::L4Proto => "meta l4proto",
            Self::Iif => "iif",
            Self::Oif => "oif",
            Self::IifName => "iifname",
            Self::OifName => "oifname",
            Self::SkUid => "meta skuid",
            Self::SkGid => "meta skgid",
            Self::Mark => "meta mark",
            Self::CtMark => "ct mark",
            Self::CtState => "ct state",
            Self::SrcPort => "th sport",
            Self::DstPort => "th dport",
            Self::Ip4Src => "ip saddr",
            Self::Ip4Dst => "ip daddr",
            Self::Ip6Src => "ip6 saddr",
            Self::Ip6Dst => "ip6 daddr",
        })
    }
}

impl Display for Operand {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(IpFamily::V4) => f.write_str("ipv4"),
            Self::Family(IpFamily::V6) => f.write_str("ipv6"),
            Self::Protocol(l4) => write!(f, "{l4}"),
            Self::Loopback => f.write_str("\"lo\""),
            Self::IfName(name) => write!(f, "\"{name}\""),
            Self::Number(n) => write!(f, "{n}"),
            Self::CtStates(CtStates::Invalid) => f.write_str("invalid"),
            Self::CtStates(CtStates::EstablishedOrRelated) => f.write_str("established,related"),
            Self::Port(port) => write!(f, "{port}"),
            Self::Ipv4(p) => f.write_str(&prefix(*p, ipv4)),
            Self::Ipv6(p) => f.write_str(&prefix(*p, ipv6)),
            Self::Set(name) => write!(f, "@{name}"),
        }
    }
}

impl Display for L4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Tproxy(port) => write!(f, "tproxy to :{port}"),
            Self::SetMark(mark) => write!(f, "meta mark set {mark}"),
            Self::SaveMark => f.write_str("ct mark set meta mark"),
            Self::RestoreMark => f.write_str("meta mark set ct mark"),
            Self::SetZone(zone) => write!(f, "ct zone set {zone}"),
        }
    }
}
