// SPDX-License-Identifier: Apache-2.0
//! Sends one packet for real and says what became of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SetSockOpt as _, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
    connect, getsockname, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::lab::Lab;
use crate::packet::{Ids, Packet, Protocol, ROOT, Verdict, Way};
use crate::server::{Report, ip, transparent};

/// How long an answer may take that is expected: reached by failures only.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long none must come to believe that none will.
pub const SILENCE: Duration = Duration::from_millis(500);

/// What became of a packet.
#[derive(Debug)]
pub enum Outcome {
    /// A server took it; the address is the client's own.
    Answered(Report, SocketAddr),
    /// The echo came back.
    Echoed,
    /// Refused: it reached a host where nothing listens.
    Refused,
    /// No answer.
    Silent,
    /// Anything else.
    Failed(Errno),
}

/// Send `packet` from `port` and wait for what comes.
#[must_use]
pub fn probe(lab: &Lab, packet: &Packet, port: u16, patience: Duration) -> Outcome {
    match exchange(open(lab, packet), packet, port, patience) {
        Ok(outcome) => outcome,
        Err(Errno::ECONNREFUSED) => Outcome::Refused,
        Err(Errno::EINPROGRESS | Errno::EAGAIN) => Outcome::Silent,
        Err(errno) => Outcome::Failed(errno),
    }
}

/// A TCP connection to a server of the lab.
pub struct Connection {
    stream: BufReader<TcpStream>,
    /// What the server saw.
    pub report: Report,
}

impl Connection {
    /// Connect as `packet` from `port`.
    ///
    /// # Errors
    /// As connect(2) and recv(2); EINPROGRESS and EAGAIN for no answer.
    pub fn open(lab: &Lab, packet: &Packet, port: u16, patience: Duration) -> Result<Self, Errno> {
        let fd = open(lab, packet);
        connected(&fd, packet, port, patience)?;
        Self::begin(fd)
    }

    fn begin(fd: OwnedFd) -> Result<Self, Errno> {
        // A reset ends the connection: nothing of it stays to meet a later probe.
        sockopt::Linger.set(&fd, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        let mut stream = BufReader::new(TcpStream::from(fd));
        let mut line = String::new();
        stream.read_line(&mut line).map_err(errno)?;
        let report = line.parse().map_err(|_| Errno::EPROTO)?;
        Ok(Self { stream, report })
    }

    /// Have one byte come back.
    ///
    /// # Errors
    /// As send(2) and recv(2); EAGAIN for no answer.
    pub fn talk(&mut self) -> Result<(), Errno> {
        self.stream.get_mut().write_all(b"!").map_err(errno)?;
        self.stream.read_exact(&mut [0]).map_err(errno)
    }
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPROTO))
}

fn open(lab: &Lab, packet: &Packet) -> OwnedFd {
    let family = if packet.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match (packet.protocol, family) {
        (Protocol::Tcp, _) => (SockType::Stream, None),
        (Protocol::Udp, _) => (SockType::Datagram, None),
        (Protocol::Icmp, AddressFamily::Inet) => (SockType::Datagram, Some(SockProtocol::Icmp)),
        (Protocol::Icmp, _) => (SockType::Datagram, Some(SockProtocol::IcmpV6)),
    };
    let ids: Ids = packet.ids().unwrap_or(ROOT);
    let fd = lab
        .sender(packet)
        .run(move || ids.own(|| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol)).unwrap());
    if packet.mark != 0 {
        setsockopt(&fd, sockopt::Mark, &packet.mark).unwrap();
    }
    if packet.from.is_some_and(|from| matches!(packet.way, Way::Out(..)) && foreign(from)) {
        transparent(&fd, family);
    }
    fd
}

/// Whether the pod does not have `address`, so that its sender only pretends to.
fn foreign(address: IpAddr) -> bool {
    let own = ["10.77.0.2", "fd00:77::2", "127.0.0.6", "::6"];
    !address.is_loopback() && own.iter().all(|own| own.parse() != Ok(address))
}

fn exchange(fd: OwnedFd, packet: &Packet, port: u16, patience: Duration) -> Result<Outcome, Errno> {
    let own = connected(&fd, packet, port, patience)?;
    match packet.protocol {
        Protocol::Tcp => {
            // Later packets have to find the way, too.
            let mut connection = Connection::begin(fd)?;
            connection.talk()?;
            Ok(Outcome::Answered(connection.report, own))
        }
        Protocol::Udp => {
            send(fd.as_raw_fd(), b"?", MsgFlags::empty())?;
            let mut buffer = [0; 256];
            let len = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let report = String::from_utf8_lossy(&buffer[..len]).parse().map_err(|_| Errno::EPROTO)?;
            Ok(Outcome::Answered(report, own))
        }
        Protocol::Icmp => {
            // Type, code, checksum, identifier (both the kernel's), sequence number.
            let kind = if packet.to.is_ipv4() { 8 } else { 128 };
            send(fd.as_raw_fd(), &[kind, 0, 0, 0, 0, 0, 0, 1], MsgFlags::empty())?;
            recv(fd.as_raw_fd(), &mut [0; 64], MsgFlags::empty())?;
            Ok(Outcome::Echoed)
        }
    }
}

/// Bind and connect; returns the socket's address.
fn connected(fd: &OwnedFd, packet: &Packet, port: u16, patience: Duration) -> Result<SocketAddr, Errno> {
    let timeout = TimeVal::microseconds(patience.as_micros() as i64);
    sockopt::SendTimeout.set(fd, &timeout)?;
    sockopt::ReceiveTimeout.set(fd, &timeout)?;
    let any = if packet.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = SocketAddr::new(packet.from.unwrap_or(any), port);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(packet.destination()))?;
    Ok(ip(&getsockname(fd.as_raw_fd())?))
}

/// The verdict that `outcome` shows.
///
/// # Errors
/// A text when it shows none: the server saw another destination than it should, nobody listens, …
pub fn judge(packet: &Packet, outcome: &Outcome) -> Result<Verdict, String> {
    let (report, client) = match outcome {
        Outcome::Echoed => return Ok(Verdict::Pass),
        Outcome::Silent => return Ok(Verdict::Drop),
        Outcome::Refused => return Err("refused: it reached a host where nothing listens".to_owned()),
        Outcome::Failed(errno) => return Err(format!("failed: {errno}")),
        Outcome::Answered(report, client) => (report, client),
    };
    let wanted = packet.destination();
    let unlike = |what: &str| Err(format!("{what}: the server saw {report}, the client is {client}"));
    if report.peer != *client {
        return unlike("another source");
    }
    if packet.protocol == Protocol::Tcp && report.original.is_some_and(|original| original != wanted) {
        return unlike("another original destination");
    }
    if report.host == "peer" {
        // The peer's own translation tells what arrived there.
        return if packet.protocol == Protocol::Udp || report.original == Some(wanted) {
            Ok(Verdict::Pass)
        } else {
            unlike("no original destination")
        };
    }
    if report.local == wanted {
        return Ok(if report.listener == wanted.port() {
            Verdict::Pass
        } else {
            Verdict::Tproxy(report.listener)
        });
    }
    if packet.protocol == Protocol::Tcp && report.original != Some(wanted) {
        return unlike("no original destination");
    }
    if matches!(packet.way, Way::Out(..)) && !report.local.ip().is_loopback() {
        return unlike("redirected, but not to loopback");
    }
    Ok(Verdict::Redirect(report.listener))
}
