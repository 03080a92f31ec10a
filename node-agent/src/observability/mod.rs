// SPDX-License-Identifier: Apache-2.0
//! What people and Prometheus see of the agent. Must never decide anything.

pub(crate) mod admin;
pub(crate) mod admin_socket;
pub(crate) mod ask;
pub(crate) mod events;
pub(crate) mod lines;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod readiness;
pub(crate) mod view;
