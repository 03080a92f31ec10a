// SPDX-License-Identifier: Apache-2.0
//! Sets and their elements, and the userdata that nft keeps with them.

use ruleset::{Elements, Set, Table};

use crate::attr::Writer;
use crate::expr::{Data, padded};
use crate::uapi::*;

/// What a kind of set is to the kernel and to nft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeyType {
    /// nft's number of the type (`enum datatypes` of nft), opaque to the kernel.
    pub(crate) number: u32,
    /// Bytes of a key.
    pub(crate) len: u32,
    /// nft's `enum byteorder`: 0 none, 1 host, 2 network.
    byteorder: u32,
    /// `NFT_SET_*`.
    pub(crate) flags: u32,
}

/// The [`KeyType`] of `elements`.
pub(crate) fn key_type(elements: &Elements) -> KeyType {
    let (number, len, byteorder, flags) = match elements {
        Elements::Protocol(_) => (12, 1, 0, 0),
        Elements::Port(_) => (13, 2, 2, 0),
        Elements::Uid(_) => (24, 4, 1, 0),
        Elements::Gid(_) => (25, 4, 1, 0),
        Elements::IfName(_) => (41, 16, 1, 0),
        Elements::Mark(_) => (19, 4, 1, 0),
        Elements::Ipv4(_) => (7, 4, 2, NFT_SET_INTERVAL),
        Elements::Ipv6(_) => (8, 16, 2, NFT_SET_INTERVAL),
    };
    KeyType { number, len, byteorder, flags }
}

pub(super) fn put_set(w: &mut Writer, table: &Table, set: &Set, id: u32) {
    let key = key_type(&set.elements);
    w.put_str(NFTA_SET_TABLE, &table.name);
    w.put_str(NFTA_SET_NAME, &set.name);
    w.put_u32(NFTA_SET_FLAGS, key.flags);
    w.put_u32(NFTA_SET_KEY_TYPE, key.number);
    w.put_u32(NFTA_SET_KEY_LEN, key.len);
    w.put_u32(NFTA_SET_ID, id);
    // Without the byte order nft lists a mark of 1337 as 956628992.
    let mut userdata = number(NFTNL_UDATA_SET_KEYBYTEORDER, key.byteorder);
    if let Some(text) = &set.comment {
        userdata.extend(comment(NFTNL_UDATA_SET_COMMENT, text));
    }
    w.put(NFTA_SET_USERDATA, &userdata);
}

fn number(kind: u8, value: u32) -> Vec<u8> {
    let mut bytes = vec![kind, 4];
    bytes.extend_from_slice(&value.to_ne_bytes());
    bytes
}

pub(super) fn comment(kind: u8, text: &str) -> Vec<u8> {
    // A comment has at most 127 bytes, see `ruleset::validate`.
    let len = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    let mut bytes = vec![kind, len];
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    bytes
}

/// One element as the kernel has it.
pub(super) struct Element {
    key: Data,
    /// The key is the first that is outside the range before.
    end: bool,
    /// The range goes to the highest address.
    open: bool,
}

impl Element {
    pub(super) fn all(elements: &Elements) -> Vec<Self> {
        let plain = |bytes: &[u8]| Self {
            key: Data::new(bytes).expect("a key has 1 to 16 bytes"),
            end: false,
            open: false,
        };
        match elements {
            Elements::Protocol(v) => v.iter().map(|l4| plain(&[l4.number()])).collect(),
            Elements::Port(v) => v.iter().map(|port| plain(&port.to_be_bytes())).collect(),
            Elements::Uid(v) | Elements::Gid(v) | Elements::Mark(v) => {
                v.iter().map(|n| plain(&n.to_ne_bytes())).collect()
            }
            Elements::IfName(v) => v.iter().map(|name| plain(&padded(name))).collect(),
            Elements::Ipv4(v) => Self::intervals(
                v.ranges()
                    .iter()
                    .map(|r| (r.first.to_be_bytes(), r.last.checked_add(1).map(u32::to_be_bytes))),
            ),
            Elements::Ipv6(v) => Self::intervals(
                v.ranges()
                    .iter()
                    .map(|r| (r.first.to_be_bytes(), r.last.checked_add(1).map(u128::to_be_bytes))),
            ),
        }
    }

    /// Half-open pairs, and like nft an end at zero before the first of them, to begin outside.
    fn intervals<const N: usize>(pairs: impl Iterator<Item = ([u8; N], Option<[u8; N]>)>) -> Vec<Self> {
        let key = |bytes: [u8; N]| Data::new(&bytes).expect("an address has 4 or 16 bytes");
        let mut out = Vec::with_capacity(2 * pairs.size_hint().0 + 1);
        for (first, end) in pairs {
            if out.is_empty() && first != [0; N] {
                out.push(Self { key: key([0; N]), end: true, open: false });
            }
            out.push(Self { key: key(first), end: false, open: end.is_none() });
            out.extend(end.map(|end| Self { key: key(end), end: true, open: false }));
        }
        out
    }

    /// An upper bound of its bytes in a message.
    pub(super) fn size(&self) -> usize {
        let flags = if self.end { 8 } else { 0 };
        let userdata = if self.open { 12 } else { 0 };
        12 + self.key.as_slice().len().next_multiple_of(4) + flags + userdata
    }

    pub(super) fn put(&self, w: &mut Writer, number_in_message: u16) {
        w.nest(number_in_message, |w| {
            if self.end {
                w.put_u32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            }
            w.nest(NFTA_SET_ELEM_KEY, |w| w.put(NFTA_DATA_VALUE, self.key.as_slice()));
            if self.open {
                let userdata = number(NFTNL_UDATA_SET_ELEM_FLAGS, NFTNL_SET_ELEM_F_INTERVAL_OPEN);
                w.put(NFTA_SET_ELEM_USERDATA, &userdata);
            }
        });
    }
}
