// SPDX-License-Identifier: Apache-2.0
//! Address ranges as the kernel's interval sets want them: sorted, merged, without overlap.

use std::fmt::Debug;

/// The closed range `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range<T> {
    /// Lowest member.
    pub first: T,
    /// Highest member.
    pub last: T,
}

/// A set of addresses as disjoint, non-adjacent ranges in ascending order.
///
/// `u32` holds IPv4 addresses and `u128` IPv6 addresses, both in host order, so that arithmetic works.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RangeSet<T>(Vec<Range<T>>);

impl<T> Default for RangeSet<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// An integer wide enough for one address of a family.
pub trait Address: Copy + Ord + Debug {
    /// Bits of an address: 32 or 128.
    const BITS: u8;
    /// The next address, or nothing after the last one.
    fn successor(self) -> Option<Self>;
    /// The low `BITS - len` bits set: the host part of a prefix of length `len`.
    fn host_mask(len: u8) -> Self;
    /// Bitwise and with the complement of `mask`.
    fn without(self, mask: Self) -> Self;
    /// Bitwise or with `mask`.
    fn with(self, mask: Self) -> Self;
}

macro_rules! address {
    ($int:ty) => {
        impl Address for $int {
            const BITS: u8 = <$int>::BITS as u8;
            fn successor(self) -> Option<Self> {
                self.checked_add(1)
            }
            fn host_mask(len: u8) -> Self {
                <$int>::MAX.checked_shr(u32::from(len)).unwrap_or(0)
            }
            fn without(self, mask: Self) -> Self {
                self & !mask
            }
            fn with(self, mask: Self) -> Self {
                self | mask
            }
        }
    };
}
address!(u32);
address!(u128);

/// A CIDR prefix: the addresses that share their first `len` bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix<T> {
    network: T,
    len: u8,
}

/// A prefix length beyond the width of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("prefix length /{0} is longer than the address")]
pub struct PrefixError(pub u8);

impl<T: Address> Prefix<T> {
    /// The prefix of length `len` that contains `address`; host bits are cleared.
    ///
    /// # Errors
    /// [`PrefixError`] when `len` is beyond the width of the address.
    pub fn new(address: T, len: u8) -> Result<Self, PrefixError> {
        if len > T::BITS {
            return Err(PrefixError(len));
        }
        Ok(Self { network: address.without(T::host_mask(len)), len })
    }

    /// The prefix that holds `address` alone.
    #[must_use]
    pub fn host(address: T) -> Self {
        Self { network: address, len: T::BITS }
    }

    /// The lowest address.
    #[must_use]
    pub fn network(self) -> T {
        self.network
    }

    /// The length in bits.
    #[must_use]
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// The addresses as a range.
    #[must_use]
    pub fn range(self) -> Range<T> {
        Range { first: self.network, last: self.network.with(T::host_mask(self.len)) }
    }
}

impl<T: Address> Range<T> {
    /// The prefix with exactly these addresses, if there is one.
    #[must_use]
    pub fn prefix(self) -> Option<Prefix<T>> {
        (0..=T::BITS)
            .map(|len| Prefix { network: self.first.without(T::host_mask(len)), len })
            .find(|prefix| prefix.range() == self)
    }

    /// Whether `address` is in the range.
    pub fn contains(self, address: T) -> bool {
        self.first <= address && address <= self.last
    }
}

impl<T: Address> RangeSet<T> {
    /// The ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> &[Range<T>] {
        &self.0
    }

    /// Whether nothing is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `address` is in the set.
    #[must_use]
    pub fn contains(&self, address: T) -> bool {
        let after = self.0.partition_point(|range| range.first <= address);
        after.checked_sub(1).is_some_and(|i| self.0[i].contains(address))
    }
}

/// Merges overlapping and adjacent ranges: the kernel refuses overlap in an interval set.
impl<T: Address> FromIterator<Range<T>> for RangeSet<T> {
    fn from_iter<I: IntoIterator<Item = Range<T>>>(ranges: I) -> Self {
        let mut sorted: Vec<Range<T>> = ranges.into_iter().collect();
        sorted.sort_unstable();
        let mut merged: Vec<Range<T>> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if last.last.successor().is_none_or(|next| range.first <= next) => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl<T: Address> FromIterator<Prefix<T>> for RangeSet<T> {
    fn from_iter<I: IntoIterator<Item = Prefix<T>>>(prefixes: I) -> Self {
        prefixes.into_iter().map(Prefix::range).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn adjacent_and_overlapping_prefixes_become_one_range() {
        let set: RangeSet<u32> =
            [Prefix::new(0x0b00_0000, 8), Prefix::new(0x0a01_0203, 8), Prefix::new(0x0a00_0000, 24)]
                .into_iter()
                .map(Result::unwrap)
                .collect();
        assert_eq!(set.ranges(), [Range { first: 0x0a00_0000, last: 0x0bff_ffff }]);
        assert_eq!(set.ranges()[0].prefix(), Prefix::new(0x0a00_0000, 7).ok());
    }

    #[test]
    fn the_whole_address_space_is_one_range() {
        let set: RangeSet<u128> = [Prefix::new(0, 0).unwrap(), Prefix::host(u128::MAX)].into_iter().collect();
        assert_eq!(set.ranges(), [Range { first: 0, last: u128::MAX }]);
        assert!(Prefix::<u32>::new(0, 33).is_err());
    }

    proptest! {
        #[test]
        fn merging_changes_no_member(ranges in proptest::collection::vec((0u32..300, 0u32..40), 0..20)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(first, n)| Range { first, last: first + n }).collect();
            let set: RangeSet<u32> = ranges.iter().copied().collect();
            for address in 0..400 {
                prop_assert_eq!(set.contains(address), ranges.iter().any(|r| r.contains(address)));
            }
            prop_assert!(set.ranges().windows(2).all(|w| w[0].last + 1 < w[1].first));
        }
    }
}
