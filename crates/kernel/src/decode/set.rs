// SPDX-License-Identifier: Apache-2.0
//! Sets and elements.

use ruleset::{Elements, Range, RangeSet};

use super::userdata;
use crate::attr::{Attrs, Malformed, Message, read_str, read_u32};
use crate::encode::key_type;
use crate::expr::{Data, ifname, protocol};
use crate::uapi::*;

/// A set without its elements.
pub(crate) struct SetHead {
    pub(crate) name: String,
    pub(crate) comment: Option<String>,
    /// Of the right kind, and empty.
    kind: Elements,
}

/// Read a [`SetHead`].
pub(crate) fn set_head(message: Message<'_>) -> Result<SetHead, Malformed> {
    let (mut name, mut comment) = (None, None);
    let (mut flags, mut number, mut len) = (0, None, None);
    for attribute in Attrs::of_netfilter(message.payload)? {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_SET_NAME => name = Some(read_str(payload)?.to_owned()),
            NFTA_SET_FLAGS => flags = read_u32(payload)?,
            NFTA_SET_KEY_TYPE => number = Some(read_u32(payload)?),
            NFTA_SET_KEY_LEN => len = Some(read_u32(payload)?),
            NFTA_SET_USERDATA => comment = userdata(payload, NFTNL_UDATA_SET_COMMENT)?,
            _ => {}
        }
    }
    let kinds = [
        Elements::Protocol(Vec::new()),
        Elements::Port(Vec::new()),
        Elements::Uid(Vec::new()),
        Elements::Gid(Vec::new()),
        Elements::IfName(Vec::new()),
        Elements::Mark(Vec::new()),
        Elements::Ipv4(RangeSet::default()),
        Elements::Ipv6(RangeSet::default()),
    ];
    let kind = kinds.into_iter().find(|kind| {
        let key = key_type(kind);
        number == Some(key.number) && len == Some(key.len) && flags == key.flags
    });
    let name = name.ok_or(Malformed("set without a name"))?;
    Ok(SetHead { name, comment, kind: kind.ok_or(Malformed("type or flags of the set"))? })
}

/// An element as the kernel has it.
#[derive(Debug)]
pub(crate) struct RawElement {
    key: Data,
    end: bool,
}

/// The elements in one message of a listing.
pub(crate) fn raw_elements(message: Message<'_>) -> Result<Vec<RawElement>, Malformed> {
    let mut out = Vec::new();
    for attribute in Attrs::of_netfilter(message.payload)? {
        if let (NFTA_SET_ELEM_LIST_ELEMENTS, list) = attribute? {
            for element in Attrs(list) {
                out.push(raw_element(element?.1)?);
            }
        }
    }
    Ok(out)
}

fn raw_element(nested: &[u8]) -> Result<RawElement, Malformed> {
    let (mut key, mut flags) = (None, 0);
    for attribute in Attrs(nested) {
        let (kind, payload) = attribute?;
        match kind {
            NFTA_SET_ELEM_KEY => {
                let (kind, value) = Attrs(payload).next().ok_or(Malformed("element key"))??;
                key = Data::new(value).filter(|_| kind == NFTA_DATA_VALUE);
            }
            NFTA_SET_ELEM_FLAGS => flags = read_u32(payload)?,
            NFTA_SET_ELEM_USERDATA => {}
            _ => return Err(Malformed("element with more than a key")),
        }
    }
    let end = match flags {
        0 => false,
        NFT_SET_ELEM_INTERVAL_END => true,
        _ => return Err(Malformed("flags of an element")),
    };
    Ok(RawElement { key: key.ok_or(Malformed("element key"))?, end })
}

/// All elements of a set, in ascending order: the kernel keeps them in none.
pub(crate) fn elements(set: &SetHead, raw: Vec<RawElement>) -> Result<Elements, Malformed> {
    Ok(match &set.kind {
        Elements::Protocol(_) => Elements::Protocol(plain(&raw, |key| protocol(key.as_slice()))?),
        Elements::Port(_) => Elements::Port(plain(&raw, |key| key.array().map(u16::from_be_bytes))?),
        Elements::Uid(_) => Elements::Uid(plain(&raw, host_number)?),
        Elements::Gid(_) => Elements::Gid(plain(&raw, host_number)?),
        Elements::Mark(_) => Elements::Mark(plain(&raw, host_number)?),
        Elements::IfName(_) => Elements::IfName(plain(&raw, |key| ifname(key.as_slice()))?),
        Elements::Ipv4(_) => {
            Elements::Ipv4(intervals(&raw, u32::from_be_bytes, u32::MAX, |end| end.checked_sub(1))?)
        }
        Elements::Ipv6(_) => {
            Elements::Ipv6(intervals(&raw, u128::from_be_bytes, u128::MAX, |end| end.checked_sub(1))?)
        }
    })
}

fn host_number(key: &Data) -> Option<u32> {
    key.array().map(u32::from_ne_bytes)
}

fn plain<T: Ord>(raw: &[RawElement], value: impl Fn(&Data) -> Option<T>) -> Result<Vec<T>, Malformed> {
    let value = |e: &RawElement| if e.end { None } else { value(&e.key) };
    let mut values: Vec<T> =
        raw.iter().map(value).collect::<Option<_>>().ok_or(Malformed("element value"))?;
    values.sort_unstable();
    // A set has each element once; a dump has some twice while the kernel resizes the set's hash table.
    values.dedup();
    Ok(values)
}

/// Half-open pairs as ranges; an end at zero begins the listing, an open range ends it.
fn intervals<T: Copy + Ord, const N: usize>(
    raw: &[RawElement],
    value: fn([u8; N]) -> T,
    max: T,
    before: fn(T) -> Option<T>,
) -> Result<RangeSet<T>, Malformed>
where
    RangeSet<T>: FromIterator<Range<T>>,
{
    const BAD: Malformed = Malformed("interval without a start or end");
    let mut points: Vec<(T, bool)> =
        raw.iter().map(|e| e.key.array().map(|key| (value(key), e.end))).collect::<Option<_>>().ok_or(BAD)?;
    points.sort_unstable();
    let mut ranges = Vec::with_capacity(points.len() / 2 + 1);
    let mut open = None;
    for (point, end) in points {
        match (open, end, before(point)) {
            (None, false, _) => open = Some(point),
            (None, true, None) => {}
            (Some(first), true, Some(last)) => {
                ranges.push(Range { first, last });
                open = None;
            }
            _ => return Err(BAD),
        }
    }
    ranges.extend(open.map(|first| Range { first, last: max }));
    Ok(ranges.into_iter().collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_a_dump_has_twice_is_one() {
        let port = |port: u16| RawElement { key: Data::new(&port.to_be_bytes()).unwrap(), end: false };
        let raw = [port(443), port(80), port(443)];
        assert_eq!(plain(&raw, |key| key.array().map(u16::from_be_bytes)), Ok(vec![80, 443]));
    }
}
