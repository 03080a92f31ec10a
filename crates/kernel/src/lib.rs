// SPDX-License-Identifier: Apache-2.0
//! Rule sets, addresses and policy routes of one network namespace, over netlink sockets that were opened inside it.
//!
//! Owns every byte that goes to or comes from the kernel's nf_tables and rtnetlink. A socket belongs for life to the
//! netns it was opened in, so nothing in here ever enters one, and all calls block: use them from plain threads. A
//! transaction runs inside `send(2)`, some 8 us a rule and 3 us a set element.
//!
//! It must never know pods, annotations or why a rule exists. It is the only crate that may say `nft`.
//!
//! # Closing after a delete
//! After a transaction that deleted a table, closing its socket waits for an RCU grace period, 10 to 15 ms: answer
//! first, and drop the [`Nftables`] on another thread.

mod age;
mod attr;
mod backend;
mod decode;
mod encode;
mod error;
mod expr;
mod fault;
#[cfg(feature = "nft-json")]
mod nft_json;
mod pod;
mod read;
pub mod route;
mod socket;
mod uapi;

pub use backend::{Applied, Backend, Nftables};
#[doc(hidden)]
pub use decode::decode_datagram;
pub use error::Error;
#[cfg(feature = "fault-injection")]
pub use fault::HOOK;
pub use fault::POINTS;
#[cfg(feature = "nft-json")]
pub use nft_json::NftJson;
pub use pod::PodNetns;
#[doc(hidden)]
pub use socket::decode_answers;

/// The name of our table in every family; whatever has it is ours to replace.
pub const TABLE: &str = "waylay";

/// For tests against captures: the expressions, sets and chains of `tables` as the bytes of one transaction, whose
/// first message has sequence number 0.
///
/// # Errors
/// As [`Backend::apply`] before it sends.
#[doc(hidden)]
pub fn encode_batch(tables: &[ruleset::Table]) -> Result<Vec<u8>, Error> {
    encode::batch(0, 1, &[], tables).map(|batch| batch.bytes)
}
