// SPDX-License-Identifier: Apache-2.0
//! A stub resolver: one question for an address, over UDP or TCP (RFC 1035, section 4).

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SetSockOpt as _, SockFlag, SockType, SockaddrStorage, connect, recv, send,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netns::Netns;
use crate::packet::{Ids, Protocol};
use crate::probe::PATIENCE;

const HEADER: usize = 12;
const ID: u16 = 0x5741;

/// What a server says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Its first address.
    Address(IpAddr),
    /// No address: the response code (3: there is no such name; 5: refused), or 0.
    Nothing(u8),
}

/// Ask `server` by `protocol` for the address of `name`, of the family that the server's address is of.
///
/// # Errors
/// As the calls of the socket; EAGAIN for no answer, EBADMSG for one that cannot be read.
pub fn ask(netns: &Netns, ids: Ids, protocol: Protocol, server: IpAddr, name: &str) -> Result<Answer, Errno> {
    let family = if server.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if protocol == Protocol::Tcp { SockType::Stream } else { SockType::Datagram };
    let fd = netns.run(move || ids.own(|| socket(family, kind, SockFlag::SOCK_CLOEXEC, None)))?;
    let timeout = TimeVal::microseconds(PATIENCE.as_micros() as i64);
    sockopt::SendTimeout.set(&fd, &timeout)?;
    sockopt::ReceiveTimeout.set(&fd, &timeout)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(server, 53)))?;
    let question = question(name, server.is_ipv4());
    let mut answer = vec![0; 512];
    if protocol == Protocol::Tcp {
        let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let mut stream = TcpStream::from(fd);
        let mut length = [0; 2];
        stream.write_all(&(question.len() as u16).to_be_bytes()).map_err(io)?;
        stream.write_all(&question).map_err(io)?;
        stream.read_exact(&mut length).map_err(io)?;
        answer.truncate(u16::from_be_bytes(length).into());
        stream.read_exact(&mut answer).map_err(io)?;
    } else {
        send(fd.as_raw_fd(), &question, MsgFlags::empty())?;
        let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(length);
    }
    read(&answer, question.len()).ok_or(Errno::EBADMSG)
}

fn question(name: &str, ipv4: bool) -> Vec<u8> {
    let mut bytes = ID.to_be_bytes().to_vec();
    // Recursion desired; one question, nothing else.
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.as_bytes());
    }
    // The root, type A or AAAA, class IN.
    bytes.extend([0, 0, if ipv4 { 1 } else { 28 }, 0, 1]);
    bytes
}

/// `question` is the length of what was asked, which the answer repeats.
fn read(bytes: &[u8], question: usize) -> Option<Answer> {
    if bytes.len() < HEADER || bytes[..2] != ID.to_be_bytes() {
        return None;
    }
    if bytes[6..8] == [0, 0] {
        return Some(Answer::Nothing(bytes[3] & 0xF));
    }
    // Compressed name, type, class, time to live, length.
    let (record, data) = bytes.get(question..)?.split_at_checked(12)?;
    match (record[3], data) {
        (1, [a, b, c, d, ..]) => Some(Answer::Address(Ipv4Addr::new(*a, *b, *c, *d).into())),
        (28, _) => {
            let octets: [u8; 16] = data.get(..16)?.try_into().ok()?;
            Some(Answer::Address(Ipv6Addr::from(octets).into()))
        }
        _ => None,
    }
}
