// SPDX-License-Identifier: Apache-2.0
//! The real thin Multus, with as much of a Kubernetes API as it asks for.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::built::programs;
use crate::daemon::Daemon;
use crate::netns::Netns;
use crate::packet::ROOT;

/// Of the API, on loopback.
const PORT: u16 = 16443;

/// The plugin.
#[must_use]
pub fn binary() -> PathBuf {
    programs("multus").join("multus")
}

/// Start the API in `netns`, where every pod asks for `networks`, with `{pod}` for its name; none of them has a configuration in its
/// NetworkAttachmentDefinition.
#[must_use]
pub fn api(netns: &Netns, networks: &str) -> Daemon {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/multus/api.py");
    let command = ["/usr/bin/python3", "-B", script, &PORT.to_string(), networks];
    let mut daemon = Daemon::start(netns, ROOT, "-all", &command);
    daemon.wait_until(|daemon| daemon.printed().contains("ready"));
    daemon
}

/// A configuration that uses this API by the file `kubeconfig`, which is written; it runs `delegate`, and for pods that ask
/// for more what it finds in `conf_dir`.
#[must_use]
pub fn config(kubeconfig: &Path, conf_dir: &Path, bin_dir: &Path, delegate: &Value) -> Value {
    let content = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "k", "cluster": {"server": format!("http://127.0.0.1:{PORT}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    std::fs::write(kubeconfig, content.to_string()).unwrap();
    json!({
        "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "kubeconfig": kubeconfig,
        "confDir": conf_dir, "binDir": bin_dir, "delegates": [delegate],
    })
}
