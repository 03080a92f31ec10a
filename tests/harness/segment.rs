// SPDX-License-Identifier: Apache-2.0
//! TCP segments made by hand, for what the kernel's own TCP would never send.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SetSockOpt as _, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom,
    sendto, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netns::Netns;
use crate::server::ip;

/// Reset.
pub const RST: u8 = 0x04;
/// Acknowledgement, with data to hand over at once.
pub const PSH_ACK: u8 = 0x18;

/// What of a TCP segment matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver.
    pub to: SocketAddr,
    /// Number of its first byte.
    pub seq: u32,
    /// Next byte that the sender expects.
    pub ack: u32,
    /// Flags, lowest bit FIN.
    pub flags: u8,
    /// Bytes of data.
    pub len: u32,
}

/// A raw socket: sees every TCP segment of one family that arrives in its netns.
pub struct Wire(OwnedFd);

impl Wire {
    /// Listen in `netns` for segments to addresses of the family of `like`.
    #[must_use]
    pub fn open(netns: &Netns, like: IpAddr) -> Self {
        let family = if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let raw = move || socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp).unwrap();
        Self(netns.run(raw))
    }

    /// Send `segment` with as many zero bytes as it says.
    pub fn send(&self, segment: &Segment) {
        // A raw socket of IPv6 takes no port.
        let to = SockaddrStorage::from(SocketAddr::new(segment.to.ip(), 0));
        sendto(self.0.as_raw_fd(), &segment.encode(), &to, MsgFlags::empty()).unwrap();
    }

    /// The next segment from `from` to the port of `to`, or nothing when none comes within `patience`.
    #[must_use]
    pub fn receive(&self, from: SocketAddr, to: SocketAddr, patience: Duration) -> Option<Segment> {
        let timeout = TimeVal::microseconds(patience.as_micros() as i64);
        sockopt::ReceiveTimeout.set(&self.0, &timeout).unwrap();
        loop {
            let mut buffer = [0; 2048];
            match recvfrom::<SockaddrStorage>(self.0.as_raw_fd(), &mut buffer) {
                Ok((len, sender)) => {
                    let sender = ip(&sender.expect("a raw socket names the sender")).ip();
                    // The header of IPv4 comes along, that of IPv6 does not.
                    let header = if sender.is_ipv4() { usize::from(buffer[0] & 0xF) * 4 } else { 0 };
                    let segment = Segment::decode(sender, to.ip(), &buffer[header..len]);
                    if (segment.from, segment.to) == (from, to) {
                        return Some(segment);
                    }
                }
                Err(Errno::EAGAIN) => return None,
                Err(errno) => panic!("recv: {errno}"),
            }
        }
    }
}

impl Segment {
    /// RFC 9293, section 3.1, without options.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        // Header of 5 words, window 1024, no checksum yet, no urgent pointer.
        bytes.extend([0x50, self.flags, 4, 0, 0, 0, 0, 0]);
        bytes.resize(bytes.len() + self.len as usize, 0);
        let checksum = self.checksum(&bytes);
        bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn checksum(&self, bytes: &[u8]) -> u16 {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        let pseudo = [octets(self.from.ip()), octets(self.to.ip())].concat();
        let words = pseudo.chunks(2).chain(bytes.chunks(2));
        let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        let mut sum: u32 = words.map(word).sum::<u32>() + 6 + bytes.len() as u32;
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// From what follows the IP header.
    fn decode(from: IpAddr, to: IpAddr, tcp: &[u8]) -> Self {
        let short = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        Self {
            from: SocketAddr::new(from, short(0)),
            to: SocketAddr::new(to, short(2)),
            seq: long(4),
            ack: long(8),
            flags: tcp[13],
            len: (tcp.len() - usize::from(tcp[12] >> 4) * 4) as u32,
        }
    }
}
