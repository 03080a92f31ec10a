// SPDX-License-Identifier: Apache-2.0
//! The containerd of a test: which programs, and how they are configured. Nothing is shared with another containerd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::built::programs;

/// The image that every sandbox needs; nothing is pulled.
const IMAGE: &str = "waylay.test/pause:1";

/// A release of containerd, with the runc and the CNI plugins of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// 1.6 from Debian: networks up to CNI 1.0.0.
    V1,
    /// 2.2 from its Go module: CNI 1.1.0, where the runtime asks each plugin for its STATUS.
    V2,
}

/// Tests of every release, as tests of their own.
macro_rules! on_each_runtime {
    ($($name:ident = $test:path;)*) => {
        mod containerd_1 {
            $(#[test]
            fn $name() {
                $test($crate::runtime::Runtime::V1);
            })*
        }
        mod containerd_2 {
            $(#[test]
            fn $name() {
                $test($crate::runtime::Runtime::V2);
            })*
        }
    };
}
pub(crate) use on_each_runtime;

impl Runtime {
    /// `cniVersion` of its networks.
    pub(crate) fn cni_version(self) -> &'static str {
        match self {
            Self::V1 => "1.0.0",
            Self::V2 => "1.1.0",
        }
    }

    /// For `PATH`: where its programs are looked for before Debian's.
    pub(crate) fn programs(self) -> Vec<PathBuf> {
        match self {
            Self::V1 => Vec::new(),
            Self::V2 => vec![programs("containerd"), programs("runc")],
        }
    }

    /// Where a reference plugin is.
    fn plugins(self) -> PathBuf {
        match self {
            Self::V1 => PathBuf::from("/usr/lib/cni"),
            Self::V2 => programs("cni"),
        }
    }

    /// Configuration, image and reference plugins in `dir`, for networks of `net.d` and, for pods of the handler
    /// `manifest`, `net.d-manifest`.
    pub(crate) fn write(self, dir: &Path) {
        for sub in ["bin", "net.d", "net.d-manifest"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let plugins = self.plugins();
        for plugin in ["bridge", "host-local", "loopback"] {
            symlink(plugins.join(plugin), dir.join("bin").join(plugin)).unwrap();
        }
        fs::write(dir.join("config.toml"), self.config(dir)).unwrap();
        let image = Command::new("/usr/bin/python3")
            .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/containerd/image.py")])
            .args([dir.join("image.tar").as_os_str(), IMAGE.as_ref()])
            .status();
        assert!(image.expect("Debian's python3").success(), "the image can be made");
    }

    fn config(self, dir: &Path) -> String {
        let dir = dir.display();
        let (version, cri, image) = match self {
            Self::V1 => (2, "io.containerd.grpc.v1.cri", format!("sandbox_image = \"{IMAGE}\"")),
            Self::V2 => (3, "io.containerd.cri.v1.runtime", String::new()),
        };
        let (bin_dir, more) = match self {
            Self::V1 => (format!("bin_dir = \"{dir}/bin\""), String::new()),
            Self::V2 => (
                format!("bin_dirs = [\"{dir}/bin\"]"),
                format!(
                    "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{IMAGE}\"\n\
                     [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n"
                ),
            ),
        };
        format!(
            r#"version = {version}
[debug]
level = "warn"
[grpc]
address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "/run/opt"
[plugins."{cri}"]
{image}
# Without CAP_SYS_RESOURCE nobody may lower the score.
restrict_oom_score_adj = true
disable_apparmor = true
# A path without the link /var/run, which would lead out of the mount namespace.
netns_mounts_under_state_dir = true
[plugins."{cri}".cni]
{bin_dir}
conf_dir = "{dir}/net.d"
[plugins."{cri}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{cri}".containerd.runtimes.manifest]
runtime_type = "io.containerd.runc.v2"
cni_conf_dir = "{dir}/net.d-manifest"
{more}"#
        )
    }
}
