// SPDX-License-Identifier: Apache-2.0
//! One packet of a test: who sends what to whom, and what the rules are to do with it. The vocabulary that the matrix,
//! the oracle and the probes share; no I/O.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

/// Uid and gid of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Uid.
    pub uid: u32,
    /// Gid.
    pub gid: u32,
}

/// Uid and gid 0.
pub const ROOT: Ids = Ids { uid: 0, gid: 0 };
/// The application.
pub const APP: Ids = Ids { uid: 1000, gid: 1000 };

impl Ids {
    /// What `make` returns when the calling thread has these file system ids, which is what a new socket's file takes
    /// as its owner (`struct file.f_cred`, setfsuid(2)). The thread's capabilities stay.
    pub fn own<T>(self, make: impl FnOnce() -> T) -> T {
        let switch = |ids: Ids| {
            let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
            setfsgid(gid);
            setfsuid(uid);
            // Neither call reports failure, but each returns the value before.
            assert_eq!((setfsuid(uid), setfsgid(gid)), (uid, gid), "these tests need root");
        };
        switch(self);
        let made = make();
        switch(ROOT);
        made
    }
}

/// Protocol of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo, of the packet's family.
    Icmp,
}

/// Where a packet meets the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// A process of the pod with these ids sends it, and it leaves by the interface.
    Out(Ids, &'static str),
    /// It arrives at the interface.
    In(&'static str),
}

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Who sends it, or where it arrives.
    pub way: Way,
    /// Protocol.
    pub protocol: Protocol,
    /// Source address; nothing to let the kernel choose.
    pub from: Option<IpAddr>,
    /// Destination address.
    pub to: IpAddr,
    /// Destination port; 0 for ICMP.
    pub port: u16,
    /// Mark of the sending socket.
    pub mark: u32,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It reaches its destination, unchanged.
    Pass,
    /// It reaches this port of the pod by destination NAT.
    Redirect(u16),
    /// It reaches the transparent listener on this port, unchanged.
    Tproxy(u16),
    /// It gets no answer.
    Drop,
}

/// All that is checked about one packet. What is `None` does not apply to it and is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The verdict.
    pub verdict: Verdict,
    /// Conntrack zone of a UDP packet that the pod sends.
    pub zone: Option<u16>,
    /// Mark with which a TCP packet comes in by `lo`.
    pub lo_mark: Option<u32>,
    /// Mark with which a TCP packet leaves the mangle hook on prerouting.
    pub mark: Option<u32>,
    /// Mark that its connection has then.
    pub connection_mark: Option<u32>,
    /// Mark of the answer to it, when that comes in by `lo`.
    pub answer_mark: Option<u32>,
    /// Mark with which its later packets leave that hook.
    pub later_mark: Option<u32>,
    /// Whether conntrack takes the datagram that answers it from the network for an answer.
    pub answer_tracked: Option<bool>,
}

impl Packet {
    /// The destination with its port.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.port)
    }

    /// The ids of its socket, if a process of the pod sends it.
    #[must_use]
    pub fn ids(&self) -> Option<Ids> {
        match self.way {
            Way::Out(ids, _) => Some(ids),
            Way::In(_) => None,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.way {
            Way::Out(ids, oif) => write!(f, "{}:{} out {oif}", ids.uid, ids.gid)?,
            Way::In(iif) => write!(f, "in {iif}")?,
        }
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        };
        write!(f, ", {protocol}")?;
        if let Some(from) = self.from {
            write!(f, " from {from}")?;
        }
        write!(f, " to {}", self.destination())?;
        if self.mark != 0 {
            write!(f, " mark {}", self.mark)?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("PASS"),
            Self::Redirect(port) => write!(f, "REDIRECT:{port}"),
            Self::Tproxy(port) => write!(f, "TPROXY:{port}"),
            Self::Drop => f.write_str("DROP"),
        }
    }
}
