// SPDX-License-Identifier: Apache-2.0
//! The real Multus looks for a network by its name, as for a pod whose NetworkAttachmentDefinition has no spec. It is run for
//! an ADD whose first delegate fails: by then it has loaded all of them, and has run none.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use harness::daemon::Daemon;
use harness::multus::{api, binary, config};
use harness::netns::Netns;
use serde_json::{Value, json};

use crate::loaders::multus as emulated;
use crate::world::{Primary, World};

/// What the first delegate says.
const LOADED: &str = "all networks are loaded";

pub(crate) struct Multus {
    _api: Daemon,
    netns: Netns,
    binary: PathBuf,
    config: Value,
}

/// What became of many looks.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) loads: u32,
    /// There was no network of this name.
    pub(crate) absent: u32,
    /// A file vanished between the listing and the reading: another name's turn, as with every program.
    pub(crate) raced: u32,
}

impl Multus {
    /// One that looks in the directory of `root`.
    pub(crate) fn new(root: &Path) -> Self {
        // Apart from what is compared.
        let dir = root.join("multus");
        fs::create_dir(&dir).unwrap();
        let plugin = dir.join("stop");
        let script = format!(
            "#!/bin/sh\n[ $CNI_COMMAND = DEL ] || {{ echo '{{\"code\": 99, \"msg\": \"{LOADED}\"}}'; exit 1; }}\n"
        );
        fs::write(&plugin, script).unwrap();
        fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755)).unwrap();
        let delegate = json!({"cniVersion": "0.3.1", "name": "stop", "type": "stop"});
        let mut config = config(&dir.join("kubeconfig"), &root.join("conf"), &dir, &delegate);
        config["cniDir"] = json!(dir.join("state"));
        let netns = Netns::fresh();
        let api = api(&netns, "{pod}");
        Self { _api: api, netns, binary: binary(), config }
    }

    /// Look for `name` again and again until `ended`. The network is there, or `at_times` is not, but never invalid.
    pub(crate) fn load_until(&self, ended: &AtomicBool, name: &str, at_times: bool) -> Seen {
        let mut seen = Seen::default();
        while !ended.load(Ordering::Relaxed) {
            let said = self.look(name);
            if said.contains(LOADED) {
                seen.loads += 1;
            } else if at_times && said.contains("no network available in the name") {
                seen.absent += 1;
            } else if said.contains("no such file or directory") {
                seen.raced += 1;
            } else {
                panic!("{said}");
            }
        }
        seen
    }

    /// The error of an ADD for a pod that asks for the network of its name.
    fn look(&self, name: &str) -> String {
        let mut command = Command::new(&self.binary);
        command
            .env_clear()
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", name)
            .env("CNI_NETNS", self.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nowhere")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=mesh;K8S_POD_NAME={name}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // Where its API is.
        let mut child = self.netns.run(move || command.spawn().unwrap());
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), self.config.to_string().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "the delegate fails: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn the_real_multus_finds_and_refuses_what_the_emulated_one_does() {
    let names = ["k8s-pod-network", "ovn", "other", "of-nobody"];
    let mut found = 0;
    for primary in [
        Primary::List,
        Primary::Conf,
        Primary::Json,
        Primary::LinkToList,
        Primary::LinkToConf,
        Primary::Upstream,
        Primary::Many,
        Primary::Nothing,
    ] {
        let world = World::new(primary);
        let multus = Multus::new(&world.root);
        for name in names {
            let said = multus.look(name);
            let emulated = emulated(&world.root, name);
            assert_eq!(said.contains(LOADED), emulated.is_ok(), "{primary:?}, {name}: {said} {emulated:?}");
            found += u32::from(emulated.is_ok());
        }
    }
    assert!(found >= 7, "{found}");
}
