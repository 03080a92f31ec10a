// SPDX-License-Identifier: Apache-2.0
//! What the tests of this package share: network namespaces, a lab of them around one pod, servers and probes in it,
//! the packet matrix, and a second reading of the redirection rules to compare the compiler with.
//!
//! Everything here panics when something it needs does not work: a test that cannot run has failed. It must never
//! touch a network namespace that it did not make.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "test code: a panic is the report")]

pub mod alteration;
pub mod built;
pub mod cases;
pub mod check;
pub mod daemon;
pub mod dns;
pub mod golden;
pub mod http;
pub mod lab;
pub mod matrix;
pub mod multus;
pub mod mutation;
pub mod netns;
pub mod node;
pub mod observer;
pub mod oracle;
pub mod outside;
pub mod packet;
pub mod predict;
pub mod probe;
pub mod random;
pub mod relay;
pub mod segment;
pub mod sequence;
pub mod server;
pub mod topology;
pub mod userns;
