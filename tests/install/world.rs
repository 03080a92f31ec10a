// SPDX-License-Identifier: Apache-2.0
//! A node's directories in a temporary place, and processes that install into them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use install::{InstallSettings, Installer, Mode};

pub(crate) const OWN: &str = "02-istio-cni.conflist";

pub(crate) const LIST: &str = "{\n  \"name\": \"k8s-pod-network\",\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    {\"type\": \
    \"bridge\", \"mtu\": 1e3, \"big\": 12345678901234567890},\n    {\"type\": \"portmap\", \"snat\": true}\n  ]\n}\n\n";
pub(crate) const CONF: &str =
    " {\"cniVersion\": \"0.4.0\", \"name\": \"ovn\",\n \"type\": \"bridge\", \"x\": 1.0 }\n";

/// What is in the configuration directory before us.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Primary {
    List,
    Conf,
    Json,
    /// A symbolic link to a list, and one to a single configuration.
    LinkToList,
    LinkToConf,
    /// A list that names the plugin of another istio-cni, which is not there any more.
    Upstream,
    /// Each kind, and things that are no configuration.
    Many,
    Nothing,
}

pub(crate) struct World {
    pub(crate) root: PathBuf,
}

pub(crate) type Tree = BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)>;

impl World {
    pub(crate) fn new(primary: Primary) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("waylay-install-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let world = Self { root: std::env::temp_dir().join(name) };
        for dir in ["image", "bin", "conf", "elsewhere"] {
            fs::create_dir_all(world.root.join(dir)).unwrap();
        }
        let binary = fs::read(harness::node::plugin_binary()).unwrap();
        world.release(&world.root.join("image/istio-cni"), &binary, "0.1.0");
        world.release(&world.root.join("image/istio-cni.next"), &binary, "0.2.0");
        for plugin in ["bridge", "portmap"] {
            let script =
                "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\"]}'\n";
            world.file(&format!("bin/{plugin}"), script, 0o755);
        }
        world.fill(primary);
        world
    }

    fn fill(&self, primary: Primary) {
        match primary {
            Primary::List => self.file("conf/10-calico.conflist", LIST, 0o644),
            Primary::Conf => self.file("conf/10-ovn.conf", CONF, 0o640),
            Primary::Json => self.file("conf/10-ovn.json", CONF, 0o600),
            Primary::LinkToList => {
                self.file("elsewhere/list", LIST, 0o600);
                symlink("../elsewhere/list", self.conf("10-linked.conflist")).unwrap();
            }
            Primary::LinkToConf => {
                self.file("elsewhere/conf", CONF, 0o600);
                symlink("../elsewhere/conf", self.conf("10-linked.conf")).unwrap();
            }
            Primary::Upstream => {
                let entry = r#","istio":0},{"type":"istio-cni","name":"istio-cni","cni_agent_run_dir":"/x"}"#;
                self.file("conf/10-calico.conflist", &LIST.replace("true}", &format!("true{entry}")), 0o600);
            }
            Primary::Many => {
                self.file("conf/10-ovn.conf", CONF, 0o644);
                self.file("conf/10-ovn.conflist", &LIST.replace("k8s-pod-network", "other"), 0o600);
                self.file("conf/20-calico.conflist", LIST, 0o600);
                self.file("conf/calico-kubeconfig", "secret", 0o600);
                self.file("conf/30-old.conflist.cilium_bak", LIST, 0o600);
                self.file("conf/.hidden", "", 0o600);
                fs::create_dir(self.conf("40-directory.conf")).unwrap();
                for number in 0..500 {
                    self.file(&format!("conf/50-{number}.conflist"), LIST, 0o600);
                }
                self.file("conf/90-empty.conf", "", 0o600);
                self.file("conf/91-garbage.conflist", "{{{", 0o600);
                symlink("/nowhere", self.conf("92-dangling.conf")).unwrap();
            }
            Primary::Nothing => {}
        }
    }

    fn release(&self, to: &Path, binary: &[u8], release: &str) {
        let about = b"CNI plugin istio-cni ";
        let at = binary.windows(about.len()).position(|part| part == about).unwrap() + about.len();
        let mut binary = binary.to_vec();
        binary[at..at + release.len()].copy_from_slice(release.as_bytes());
        fs::write(to, binary).unwrap();
        fs::set_permissions(to, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn file(&self, path: &str, text: &str, mode: u32) {
        let path = self.root.join(path);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(crate) fn conf(&self, name: &str) -> PathBuf {
        self.root.join("conf").join(name)
    }

    /// As a vendor does that does it well.
    pub(crate) fn overwrite(&self, name: &str, text: &str) {
        let temporary = self.conf("vendor.tmp");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.conf(name)).unwrap();
    }

    pub(crate) fn settings(&self, mode: Mode) -> InstallSettings {
        InstallSettings {
            plugin: self.root.join("image/istio-cni"),
            bin_dirs: vec![self.root.join("bin")],
            conf_dir: self.root.join("conf"),
            mode,
            entry: cni::conflist::Entry::default(),
            file_mode: 0o600,
            downgrade: false,
        }
    }

    pub(crate) fn chained(&self) -> Installer {
        Installer::new(self.settings(Mode::Chained { file: None })).unwrap()
    }

    /// Exchange the plugin of the image for one of the next release.
    pub(crate) fn upgrade(&self) {
        fs::rename(self.root.join("image/istio-cni.next"), self.root.join("image/istio-cni")).unwrap();
    }

    pub(crate) fn driver(&self, verb: &str, mode: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_install-driver"));
        command.arg(verb).arg(&self.root).arg(mode);
        command
    }

    /// Everything that is on the node: path to mode, owner and content.
    pub(crate) fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for dir in ["bin", "conf", "elsewhere"] {
            for entry in fs::read_dir(self.root.join(dir)).unwrap() {
                let path = entry.unwrap().path();
                let metadata = fs::symlink_metadata(&path).unwrap();
                let content = if metadata.is_symlink() {
                    fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                } else if metadata.is_dir() {
                    Vec::new()
                } else {
                    fs::read(&path).unwrap()
                };
                tree.insert(path, (metadata.mode(), metadata.uid(), metadata.gid(), content));
            }
        }
        tree
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Whether it was killed; otherwise it must have succeeded.
pub(crate) fn killed(output: &Output) -> bool {
    let killed = output.status.signal() == Some(9);
    assert!(killed || output.status.success(), "{output:?}");
    killed
}

/// Two trees are equal, or the first difference is the report.
pub(crate) fn same(left: &Tree, right: &Tree, what: &str) {
    let text = |tree: &Tree, path: &Path| {
        tree.get(path).map(|(mode, uid, gid, bytes)| {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
            (format!("{mode:o}"), *uid, *gid, text)
        })
    };
    for path in left.keys().chain(right.keys()) {
        assert_eq!(text(left, path), text(right, path), "{what}: {}", path.display());
    }
}

/// Says so when it is dropped, also by a panic: a thread of the same scope would go on for ever.
pub(crate) struct Ending<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
