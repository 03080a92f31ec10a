// SPDX-License-Identifier: Apache-2.0
//! The protocol between the plugin and the agent of a node.
//!
//! Owns the messages and their versions ([`Request`], [`Answer`], [`Notice`]), one bounded `SOCK_SEQPACKET` message
//! with descriptors ([`frame`]), what a network namespace and a socket inside it are ([`netns`]), the plugin's side of
//! one exchange ([`exchange`]) and where the sockets are ([`path`]).
//!
//! It is synchronous and knows neither pods' settings nor rules: it must stay small, since the plugin links it.

mod client;
pub mod fault;
pub mod frame;
mod message;
pub mod netns;
pub mod path;

pub use client::{ExchangeError, exchange};
pub use fault::point as fault_point;
pub use message::{
    Answer, DECISIVE_ANNOTATIONS, DecodeError, ENVIRONMENT, Notice, NoticeKind, Operation, Outcome, PROTOCOL,
    PassReason, Request, Sandbox, Versions,
};
