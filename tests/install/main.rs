// SPDX-License-Identifier: Apache-2.0
//! The plugin and its entry on a node: killed at every step, raced by the runtimes' loaders, fought by vendors, refused by
//! the system. Directories are real, in a temporary place; the loaders are emulations ([`loaders`]) and the real Multus ([`multus`]).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

mod agent;
mod crash;
mod files;
mod loaders;
mod multus;
mod race;
mod refused;
mod watch;
mod world;
