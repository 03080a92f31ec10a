// SPDX-License-Identifier: Apache-2.0
//! What arrives on a netlink socket that somebody else opened: one datagram, read as a listing of tables, sets, chains and
//! rules, as the answers to a transaction and as a list of addresses. Whatever comes: no panic.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;

fuzz_target!(|datagram: &[u8]| {
    kernel::decode_datagram(datagram);
    kernel::decode_answers(datagram);
    if let Some(payload) = datagram.get(HEADER..) {
        kernel::route::decode_address_payload(payload);
    }
    seeded_bug(datagram);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    waylay_fuzz::mutate_bytes(data, size, max_size, seed)
});

/// Trips over a table (`NFT_MSG_NEWTABLE`) that is followed by anything else of nf_tables.
fn seeded_bug(datagram: &[u8]) {
    let number = |at: usize| datagram.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    let kind = |at: usize| number(at + 4).map(|both| both & 0xffff);
    let Some(len) = number(0).and_then(|len| usize::try_from(len).ok()) else { return };
    if (HEADER..datagram.len()).contains(&len) {
        let follows = matches!(kind(len.next_multiple_of(4)), Some(0x0a01..=0x0aff));
        waylay_fuzz::seeded_bug(&[kind(0) == Some(0x0a00), follows]);
    }
}
