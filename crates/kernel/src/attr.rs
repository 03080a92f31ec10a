// SPDX-License-Identifier: Apache-2.0
//! Netlink messages and attributes as bytes (`linux/netlink.h`).
//!
//! Owns lengths, padding and nesting; must never know what an attribute means.

use crate::uapi::{NFGENMSG_LEN, NLMSG_HDRLEN};

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: without `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const TYPE_MASK: u16 = 0x3fff;
/// Size of `struct nlattr`.
const HEADER: usize = 4;

/// Bytes that are not what they claim to be, and which part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Builds messages one after the other.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    overflow: bool,
}

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), overflow: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether some attribute did not fit the 64 KiB that its length field can say.
    pub(crate) fn overflow(&self) -> bool {
        self.overflow
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// One netfilter message: `struct nlmsghdr`, `struct nfgenmsg`, then what `body` writes.
    pub(crate) fn message(&mut self, header: Header, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&header.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&header.flags.to_ne_bytes());
        self.bytes.extend_from_slice(&header.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        // NFNETLINK_V0.
        self.bytes.extend_from_slice(&[header.family, 0]);
        self.bytes.extend_from_slice(&header.res_id.to_be_bytes());
        body(self);
        let len = u32::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            self.overflow = true;
            0
        });
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Set `flags` in the header of the message that starts at `offset`.
    pub(crate) fn add_flags(&mut self, offset: usize, flags: u16) {
        let at = offset + 6;
        let old = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.bytes[at..at + 2].copy_from_slice(&(old | flags).to_ne_bytes());
    }

    /// One attribute with `payload`.
    pub(crate) fn put(&mut self, kind: u16, payload: &[u8]) {
        self.attribute(kind, |w| w.bytes.extend_from_slice(payload));
    }

    /// A number in network byte order, as nf_tables wants all of its own.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A text with the NUL that the kernel's `NLA_STRING` readers expect.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |w| {
            w.bytes.extend_from_slice(value.as_bytes());
            w.bytes.push(0);
        });
    }

    /// An attribute of attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, body);
    }

    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        body(self);
        // The length excludes the padding after the payload (NLA_ALIGN).
        let len = u16::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            self.overflow = true;
            0
        });
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The header of one netfilter message.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// `nfgen_family`: an `NFPROTO_*` number.
    pub(crate) family: u8,
    pub(crate) res_id: u16,
}

/// One received netlink message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    /// All after `struct nlmsghdr`.
    pub(crate) payload: &'a [u8],
}

/// The messages of one datagram.
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let found = split_message(self.0);
        self.0 = found.map_or(&[], |(_, rest)| rest);
        Some(found.map(|(message, _)| message).ok_or(Malformed("message header")))
    }
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let payload = bytes.get(NLMSG_HDRLEN..len)?;
    let message =
        Message { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, seq: u32_at(bytes, 8)?, payload };
    Some((message, bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

/// The attributes in `bytes`, as type and payload.
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

impl<'a> Attrs<'a> {
    /// Those after the `struct nfgenmsg` of a netfilter message.
    pub(crate) fn of_netfilter(payload: &'a [u8]) -> Result<Self, Malformed> {
        payload.get(NFGENMSG_LEN..).map(Self).ok_or(Malformed("netfilter header"))
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let found = split_attribute(self.0);
        self.0 = found.map_or(&[], |(_, rest)| rest);
        Some(found.map(|(attribute, _)| attribute).ok_or(Malformed("attribute length")))
    }
}

type Attribute<'a> = (u16, &'a [u8]);

fn split_attribute(bytes: &[u8]) -> Option<(Attribute<'_>, &[u8])> {
    let len = usize::from(u16_at(bytes, 0)?);
    let kind = u16_at(bytes, 2)? & TYPE_MASK;
    let payload = bytes.get(HEADER..len)?;
    // The last attribute may come without padding.
    Some(((kind, payload), bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A number in network byte order.
pub(crate) fn read_u32(payload: &[u8]) -> Result<u32, Malformed> {
    payload.try_into().map(u32::from_be_bytes).map_err(|_| Malformed("length of a number"))
}

/// A text that ends in NUL.
pub(crate) fn read_str(payload: &[u8]) -> Result<&str, Malformed> {
    let text = payload.strip_suffix(&[0]).unwrap_or(payload);
    std::str::from_utf8(text).map_err(|_| Malformed("text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_exclude_padding_and_nesting_is_flagged() {
        let mut w = Writer::default();
        w.nest(4, |w| w.put_str(1, "abc!"));
        assert_eq!(w.into_bytes(), [16, 0, 4, 0x80, 9, 0, 1, 0, b'a', b'b', b'c', b'!', 0, 0, 0, 0],);
    }

    #[test]
    fn an_attribute_over_64_kib_is_noticed() {
        let mut w = Writer::default();
        w.put(1, &vec![0; 0xffff - HEADER]);
        assert!(!w.overflow());
        w.put(1, &vec![0; 0xffff - HEADER + 1]);
        assert!(w.overflow());
    }

    #[test]
    fn lengths_that_lie_end_the_walk_with_an_error() {
        for bytes in [&[3u8, 0, 1, 0][..], &[5, 0, 1, 0], &[4, 0, 1], &[0]] {
            let read: Vec<_> = Attrs(bytes).collect();
            assert_eq!(read, [Err(Malformed("attribute length"))], "{bytes:?}");
        }
        let short = [15u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(Messages(&short).all(|m| m.is_err()));
        assert_eq!(Messages(&short).count(), 1);
    }
}
