// SPDX-License-Identifier: Apache-2.0
//! The real binary, as a runtime calls it. Runs as root: it makes network namespaces of its own and never touches any
//! other. The agent is a double that follows a script.

#![allow(clippy::unwrap_used, reason = "clippy takes the harness of an integration test for production code")]

mod agent;
mod budget;
mod contract;
mod harness;
mod netns;
mod passes;
