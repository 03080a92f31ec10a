// SPDX-License-Identifier: Apache-2.0
//! Real thin Multus as the node's primary network, with as much of a Kubernetes API as it asks for.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use harness::built::programs;
use harness::daemon::Daemon;
use harness::netns::Netns;
use harness::packet::ROOT;
use serde_json::json;

use crate::lab::bridge;

/// Of the API, on the node's loopback.
const PORT: u16 = 16443;

/// The plugin in `bin` and its configuration in `net.d` of `dir`, as its installer leaves them.
pub(crate) fn write(dir: &Path) {
    symlink(programs("multus").join("multus"), dir.join("bin/multus")).unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "k", "cluster": {"server": format!("http://127.0.0.1:{PORT}")}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    });
    // No name of a configuration: the runtime must not take it for one.
    let path = dir.join("net.d/multus.kubeconfig");
    fs::write(&path, kubeconfig.to_string()).unwrap();
    let list = json!({"cniVersion": "0.4.0", "name": "k8s-pod-network", "plugins": [bridge()]});
    let config = json!({
        "cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "kubeconfig": path,
        "confDir": dir.join("net.d"), "binDir": dir.join("bin"), "delegates": [list],
    });
    fs::write(dir.join("net.d/05-multus.conf"), config.to_string()).unwrap();
}

/// The API, where every pod asks for `networks`.
pub(crate) fn api(netns: &Netns, networks: &str) -> Daemon {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/containerd/api.py");
    let command = ["/usr/bin/python3", "-B", script, &PORT.to_string(), networks];
    let mut daemon = Daemon::start(netns, ROOT, "-all", &command);
    daemon.wait_until(|daemon| daemon.printed().contains("ready"));
    daemon
}
