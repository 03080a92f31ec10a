// SPDX-License-Identifier: Apache-2.0
//! Where the sockets are. The path is the same on the node and in the agent's container.

use std::path::{Path, PathBuf};

/// The run directory when the CNI configuration names none (`cni_agent_run_dir`).
pub const DEFAULT_RUN_DIR: &str = "/var/run/istio-cni";

/// The `SOCK_SEQPACKET` socket that answers requests.
#[must_use]
pub fn requests(run_dir: &Path) -> PathBuf {
    run_dir.join("waylay.sock")
}

/// The `SOCK_DGRAM` socket that takes notices.
#[must_use]
pub fn notices(run_dir: &Path) -> PathBuf {
    run_dir.join("waylay-notice.sock")
}
