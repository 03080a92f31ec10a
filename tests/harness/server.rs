// SPDX-License-Identifier: Apache-2.0
//! Servers that say what they see: whoever connects is told which listener took it, both addresses and the original
//! destination, and then gets back what it sends.

use std::fmt;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::str::FromStr;
use std::thread::JoinHandle;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SetSockOpt as _, SockFlag,
    SockType, SockaddrStorage, bind, getsockname, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
};

use crate::netns::Netns;
use crate::packet::{Ids, Protocol};

/// One listening socket.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who owns it and what it accepts.
    pub ids: Ids,
    /// Whether it takes what TPROXY hands it.
    pub transparent: bool,
}

/// What a server saw of a connection, or of the first datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The server's name.
    pub host: String,
    /// The port it listens on.
    pub listener: u16,
    /// Its side of the connection.
    pub local: SocketAddr,
    /// The client's side.
    pub peer: SocketAddr,
    /// Destination before address translation (`SO_ORIGINAL_DST`), which only TCP has.
    pub original: Option<SocketAddr>,
}

/// Some services, served by one thread until the value is dropped.
pub struct Server {
    /// Closing it ends the thread.
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

enum Socket {
    Stream(TcpListener, Service),
    Datagram(OwnedFd, Service),
}

impl Server {
    /// Serve `services` inside `netns` under the name `host`.
    #[must_use]
    pub fn start(host: &'static str, netns: &Netns, services: Vec<Service>) -> Self {
        let sockets: Vec<Socket> = netns.run(move || services.into_iter().map(open).collect());
        let (stopped, stop) = nix::unistd::pipe().unwrap();
        let thread = std::thread::spawn(move || serve(host, &sockets, &stopped));
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn open(service: Service) -> Socket {
    let family = if service.listen.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if service.protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = service.ids.own(|| socket(family, kind, flags, None)).unwrap();
    sockopt::ReuseAddr.set(&fd, &true).unwrap();
    if family == AddressFamily::Inet6 {
        sockopt::Ipv6V6Only.set(&fd, &true).unwrap();
    }
    if service.transparent {
        transparent(&fd, family);
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(service.listen))
        .unwrap_or_else(|errno| panic!("bind {}: {errno}", service.listen));
    if service.protocol == Protocol::Tcp {
        listen(&fd, Backlog::MAXCONN).unwrap();
        return Socket::Stream(TcpListener::from(fd), service);
    }
    // A wildcard socket has to answer from the address that was asked.
    match family {
        AddressFamily::Inet => sockopt::Ipv4PacketInfo.set(&fd, &true).unwrap(),
        _ => sockopt::Ipv6RecvPacketInfo.set(&fd, &true).unwrap(),
    }
    Socket::Datagram(fd, service)
}

/// Let `fd` have addresses that are not the host's (`IP_TRANSPARENT`, `IPV6_TRANSPARENT`).
pub(crate) fn transparent(fd: &OwnedFd, family: AddressFamily) {
    let (level, option) = match family {
        AddressFamily::Inet => (libc::SOL_IP, libc::IP_TRANSPARENT),
        _ => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call.
    #[allow(unsafe_code, reason = "nix has the option for IPv4 only")]
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const on).cast(), size_of_val(&on) as u32)
    };
    nix::errno::Errno::result(result).unwrap();
}

fn serve(host: &'static str, sockets: &[Socket], stopped: &OwnedFd) {
    let mut streams: Vec<TcpStream> = Vec::new();
    loop {
        let descriptors = sockets.iter().map(AsFd::as_fd).chain(streams.iter().map(AsFd::as_fd));
        let mut polled: Vec<PollFd<'_>> = [stopped.as_fd()]
            .into_iter()
            .chain(descriptors)
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        if poll(&mut polled, PollTimeout::NONE).is_err() {
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        if ready[0] {
            return;
        }
        let (listening, connected) = ready[1..].split_at(sockets.len());
        let mut connected = connected.iter();
        streams.retain_mut(|stream| !*connected.next().expect("one for each stream") || echo(stream));
        for (socket, _) in sockets.iter().zip(listening).filter(|(_, ready)| **ready) {
            match socket {
                Socket::Stream(listener, service) => streams.extend(accept(host, listener, service)),
                Socket::Datagram(fd, service) => answer(host, fd, service),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Stream(listener, _) => listener.as_fd(),
            Self::Datagram(fd, _) => fd.as_fd(),
        }
    }
}

/// Send back what came; whether the connection goes on.
fn echo(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        Ok(len) => stream.write_all(&buffer[..len]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn accept(host: &str, listener: &TcpListener, service: &Service) -> Option<TcpStream> {
    // The file of an accepted socket is the accepting thread's.
    let (mut stream, peer) = service.ids.own(|| listener.accept()).ok()?;
    stream.set_nonblocking(true).unwrap();
    let local = stream.local_addr().ok()?;
    let original = original_destination(&stream, local.is_ipv4());
    let report = Report { host: host.to_owned(), listener: service.listen.port(), local, peer, original };
    writeln!(stream, "{report}").ok()?;
    Some(stream)
}

/// Nothing for a connection that conntrack does not know.
fn original_destination(stream: &TcpStream, ipv4: bool) -> Option<SocketAddr> {
    if ipv4 {
        let found = getsockopt(stream, sockopt::OriginalDst).ok()?;
        let address = Ipv4Addr::from_bits(u32::from_be(found.sin_addr.s_addr));
        return Some(SocketAddrV4::new(address, u16::from_be(found.sin_port)).into());
    }
    let found = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
    let address = Ipv6Addr::from(found.sin6_addr.s6_addr);
    Some(SocketAddrV6::new(address, u16::from_be(found.sin6_port), 0, 0).into())
}

fn answer(host: &str, fd: &OwnedFd, service: &Service) {
    let mut buffer = [0; 1024];
    let mut data = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let Ok(message) =
        recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut data, Some(&mut control), MsgFlags::empty())
    else {
        return;
    };
    let info = message.cmsgs().unwrap().next().expect("packet information was asked for");
    let (local, reply): (IpAddr, _) = match &info {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let from =
                libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
            (Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr)).into(), (Some(from), None))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let from = libc::in6_pktinfo { ipi6_addr: info.ipi6_addr, ipi6_ifindex: 0 };
            (Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), (None, Some(from)))
        }
        other => panic!("unexpected control message {other:?}"),
    };
    let peer = message.address.unwrap();
    let bound: SockaddrStorage = getsockname(fd.as_raw_fd()).unwrap();
    let port = ip(&bound).port();
    let local = SocketAddr::new(local, port);
    let report = Report {
        host: host.to_owned(),
        listener: service.listen.port(),
        local,
        peer: ip(&peer),
        original: None,
    };
    let control = match &reply {
        (Some(v4), _) => ControlMessage::Ipv4PacketInfo(v4),
        (_, Some(v6)) => ControlMessage::Ipv6PacketInfo(v6),
        (None, None) => return,
    };
    let text = report.to_string();
    let _ =
        sendmsg(fd.as_raw_fd(), &[IoSlice::new(text.as_bytes())], &[control], MsgFlags::empty(), Some(&peer));
}

/// `address` as the standard library's type.
pub(crate) fn ip(address: &SockaddrStorage) -> SocketAddr {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddrV4::from(*v4).into(),
        (_, Some(v6)) => SocketAddrV6::from(*v6).into(),
        _ => panic!("{address:?} is not an address of IPv4 or IPv6"),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.host, self.listener, self.local, self.peer)?;
        self.original.map_or(Ok(()), |original| write!(f, " {original}"))
    }
}

impl FromStr for Report {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let refuse = || format!("not a report: {text:?}");
        let address = |index: usize| fields.get(index)?.parse::<SocketAddr>().ok();
        Ok(Self {
            host: (*fields.first().ok_or_else(refuse)?).to_owned(),
            listener: fields.get(1).and_then(|port| port.parse().ok()).ok_or_else(refuse)?,
            local: address(2).ok_or_else(refuse)?,
            peer: address(3).ok_or_else(refuse)?,
            original: address(4),
        })
    }
}
