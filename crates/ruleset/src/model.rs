// SPDX-License-Identifier: Apache-2.0
//! The model: a table with its sets, chains and rules.
//!
//! Names follow nft(8): a rule is matches, all of which must hold, then statements, executed in order.

use crate::name::IfName;
use crate::range::{Prefix, RangeSet};

/// The family of a table (`NFPROTO_*`, `linux/netfilter.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 and IPv6 in one table; NAT chains need kernel 5.2.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// One table; we own all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Family.
    pub family: Family,
    /// Name, unique in its family and netns.
    pub name: String,
    /// Named sets, in the order of creation.
    pub sets: Vec<Set>,
    /// Chains, in the order of creation.
    pub chains: Vec<Chain>,
}

/// A named set. Its elements are never changed in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Name, unique in the table.
    pub name: String,
    /// What it holds.
    pub elements: Elements,
    /// Free text for people (nft `comment`), at most 127 bytes.
    pub comment: Option<String>,
}

/// The elements of a set; the variant is its key type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elements {
    /// `type inet_proto`: layer 4 protocols.
    Protocol(Vec<L4>),
    /// `type inet_service`: ports.
    Port(Vec<u16>),
    /// `type uid`.
    Uid(Vec<u32>),
    /// `type gid`.
    Gid(Vec<u32>),
    /// `type ifname`.
    IfName(Vec<IfName>),
    /// `type mark`.
    Mark(Vec<u32>),
    /// `type ipv4_addr; flags interval`.
    Ipv4(RangeSet<u32>),
    /// `type ipv6_addr; flags interval`.
    Ipv6(RangeSet<u128>),
}

/// A chain; base chains hang on a netfilter hook, others are reached by `jump` and `goto`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name, unique in the table.
    pub name: String,
    /// Where the kernel calls it; the policy of ours is always accept.
    pub base: Option<BaseChain>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// Type, hook and priority of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BaseChain {
    /// What the chain may do.
    pub kind: ChainType,
    /// Hook.
    pub hook: Hook,
    /// Order among the chains of the hook, ascending (`enum nf_ip_hook_priorities`).
    pub priority: i32,
}

/// The type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// May accept and drop.
    Filter,
    /// Sees the first packet of a connection and may rewrite addresses.
    Nat,
    /// Output only: a changed mark makes the kernel route the packet again.
    Route,
}

/// A netfilter hook (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Packets that arrive, before routing.
    Prerouting,
    /// Packets that a local process sends.
    Output,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// All must hold; none means always.
    pub matches: Vec<Match>,
    /// What is done then; a verdict is last.
    pub statements: Vec<Statement>,
    /// Reason code, written to the kernel as the rule's comment: at most 127 bytes.
    pub reason: String,
}

/// One comparison of a packet field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// What is compared.
    pub field: Field,
    /// How.
    pub op: Op,
    /// With what.
    pub operand: Operand,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Equal, or in the set.
    Eq,
    /// Different, or not in the set.
    Ne,
}

/// A field of a packet or its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// `meta nfproto`.
    NfProto,
    /// `meta l4proto`.
    L4Proto,
    /// `iif`: index of the interface it came in by; only `lo` has an index known beforehand.
    Iif,
    /// `oif`: index of the interface it leaves by.
    Oif,
    /// `iifname`.
    IifName,
    /// `oifname`.
    OifName,
    /// `meta skuid`: the uid of the sending socket. Never true without a socket, also not for [`Op::Ne`].
    SkUid,
    /// `meta skgid`, likewise.
    SkGid,
    /// `meta mark`: the packet's fwmark, host order.
    Mark,
    /// `ct mark`: the connection's mark, host order.
    CtMark,
    /// `ct state`.
    CtState,
    /// `th sport`: the first two bytes of the transport header.
    SrcPort,
    /// `th dport`: the next two.
    DstPort,
    /// `ip saddr`; in an inet table it holds for IPv4 only.
    Ip4Src,
    /// `ip daddr`.
    Ip4Dst,
    /// `ip6 saddr`.
    Ip6Src,
    /// `ip6 daddr`.
    Ip6Dst,
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// For [`Field::NfProto`].
    Family(IpFamily),
    /// For [`Field::L4Proto`].
    Protocol(L4),
    /// For [`Field::Iif`] and [`Field::Oif`]: the loopback interface, index 1 in every netns (`LOOPBACK_IFINDEX`).
    Loopback,
    /// For the interface name fields.
    IfName(IfName),
    /// For [`Field::SkUid`], [`Field::SkGid`], [`Field::Mark`] and [`Field::CtMark`].
    Number(u32),
    /// For [`Field::CtState`]: any of these bits.
    CtStates(CtStates),
    /// For the port fields.
    Port(u16),
    /// For the IPv4 address fields.
    Ipv4(Prefix<u32>),
    /// For the IPv6 address fields.
    Ipv6(Prefix<u128>),
    /// A set of the table with the field's type, by name.
    Set(String),
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A layer 4 protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4 {
    /// TCP, number 6.
    Tcp,
    /// UDP, number 17.
    Udp,
}

/// Connection tracking states that rules of ours ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtStates {
    /// `invalid`: conntrack could not place the packet.
    Invalid,
    /// `established,related`.
    EstablishedOrRelated,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `accept`: ends this base chain.
    Accept,
    /// `drop`.
    Drop,
    /// `jump CHAIN`: comes back.
    Jump(String),
    /// `goto CHAIN`: ends the base chain after it.
    Goto(String),
    /// `redirect to :PORT`: destination NAT to this host.
    Redirect(u16),
    /// `tproxy to :PORT`: hand to a transparent listener; without one the rule stops matching.
    Tproxy(u16),
    /// `meta mark set N`.
    SetMark(u32),
    /// `ct mark set meta mark`.
    SaveMark,
    /// `meta mark set ct mark`.
    RestoreMark,
    /// `ct zone set N`, prerouting and output before conntrack (priority under -200).
    SetZone(u16),
}

impl L4 {
    /// The protocol number (RFC 9293, RFC 768).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Elements {
    /// Number of elements; ranges count as one.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Protocol(v) => v.len(),
            Self::Port(v) => v.len(),
            Self::Uid(v) | Self::Gid(v) | Self::Mark(v) => v.len(),
            Self::IfName(v) => v.len(),
            Self::Ipv4(v) => v.ranges().len(),
            Self::Ipv6(v) => v.ranges().len(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// The set named `name`.
    #[must_use]
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }
}
