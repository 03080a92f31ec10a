// SPDX-License-Identifier: Apache-2.0
//! Our messages against those that `nft` sends for the same tables, byte by byte.
//!
//! The captures and how they were made: `captures/README.md`. What differs, on purpose:
//! - sequence numbers: ours start anywhere; flags: ours refuse a table that exists (NLM_F_EXCL) and ask for an
//!   acknowledgement of the last operation;
//! - the begin of the batch: ours names the generation that it expects.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions, which may")]

mod common;

use common::tables::everything;

use ruleset::{Family, render};

/// Type and content (all after `struct nlmsghdr`) of each message.
fn messages(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let len = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        out.push((u16::from_ne_bytes(bytes[4..6].try_into().unwrap()), bytes[16..len].to_vec()));
        bytes = &bytes[len.next_multiple_of(4)..];
    }
    out
}

fn capture(text: &str) -> Vec<u8> {
    let hex: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn compare(family: Family, input: &str, captured: &str) {
    let table = everything(family);
    assert_eq!(render(&table), input, "the captured table is another: make the captures anew");
    let ours = messages(&kernel::encode_batch(&[table]).unwrap());
    let theirs = messages(&capture(captured));
    assert!(theirs.len() > 100, "{}", theirs.len());
    assert_eq!(ours.len(), theirs.len());
    let begin = 16;
    assert_eq!((ours[0].0, theirs[0].0), (begin, begin));
    // NFNL_BATCH_GENID 1 after nft's struct nfgenmsg.
    assert_eq!(ours[0].1, [&theirs[0].1[..], &[8, 0, 1, 0, 0, 0, 0, 1]].concat());
    for (index, (ours, theirs)) in ours.iter().zip(&theirs).enumerate().skip(1) {
        assert_eq!(ours, theirs, "{family}: message {index}");
    }
}

#[test]
fn an_inet_table_is_written_as_nft_writes_it() {
    compare(Family::Inet, include_str!("captures/inet.nft"), include_str!("captures/inet.hex"));
}

#[test]
fn an_ip_table_is_written_as_nft_writes_it() {
    compare(Family::Ip, include_str!("captures/ip.nft"), include_str!("captures/ip.hex"));
}

#[test]
fn an_ip6_table_is_written_as_nft_writes_it() {
    compare(Family::Ip6, include_str!("captures/ip6.nft"), include_str!("captures/ip6.hex"));
}
