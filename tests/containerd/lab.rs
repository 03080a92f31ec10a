// SPDX-License-Identifier: Apache-2.0
//! A real containerd with a bridge network and our plugin, in network, mount and process namespaces of its own: it
//! leaves nothing behind but cgroup directories, which are removed here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use harness::daemon::Daemon;
use harness::netns::Netns;
use harness::node::{Node, Sandbox, plugin_binary};
use harness::packet::ROOT;
use serde_json::{Value, json};

use crate::cri::Cri;

/// Cgroups of a lab are below this name and the pid of its test.
const CGROUP: &str = "waylay-test";
/// The image that every sandbox needs; nothing is pulled.
const IMAGE: &str = "waylay.test/pause:1";

/// containerd, its client and the node's agents' directories. Fields are dropped in their order.
pub(crate) struct Lab {
    /// What speaks to containerd.
    pub(crate) cri: Cri,
    _containerd: Daemon,
    _cgroup: Cgroup,
    /// The node's network namespace, with the bridge.
    pub(crate) netns: Netns,
    /// Run directory, manifests and agents.
    pub(crate) node: Node,
    /// How often the runtime's own loopback plugin refused a sandbox, see [`Lab::run`].
    pub(crate) refused_by_loopback: AtomicU32,
    dir: PathBuf,
    cgroup: String,
}

/// Where the annotations of a pod come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The runtime hands them to the plugin, which asked for them in its configuration.
    Runtime,
    /// The agent's directory of manifests: a configuration that does not ask for them.
    Manifest,
}

/// What a test wants of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) annotations: Value,
}

impl Lab {
    /// Start containerd, without an agent.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let node = Node::new();
        // Beside the run directory, so that it is removed or kept together with it.
        let dir = node.run_dir().with_file_name("containerd");
        write_directory(&dir, &node.run_dir());
        let netns = Netns::fresh();
        // An address of the bridge is usable at once.
        netns.sysctl("ipv6/conf/default/accept_dad", "0");
        let cgroup = Cgroup::new(format!("{CGROUP}-{}-{n}", std::process::id()));
        let containerd = start(&netns, &dir);
        let cri = Cri::connect(&dir.join("containerd.sock"), &dir);
        let name = format!("/{}", cgroup.0);
        let lab = Self {
            cri,
            _containerd: containerd,
            _cgroup: cgroup,
            netns,
            node,
            refused_by_loopback: AtomicU32::new(0),
            dir,
            cgroup: name,
        };
        let status = lab.cri.call("Status", &json!({})).unwrap();
        let conditions = status["status"]["conditions"].as_array().unwrap();
        assert!(conditions.len() == 2 && conditions.iter().all(|c| c["status"] == true), "{status}");
        lab
    }

    /// Start `pod` as a kubelet does, and say which sandbox it got.
    ///
    /// containerd runs its loopback network at the same time as the pods' one, and that plugin refuses an `lo` that has
    /// `::6` already. Only this failure is tried again, as a kubelet does with every one.
    pub(crate) fn run(&self, pod: &Pod) -> Result<String, String> {
        let mut result = self.attempt(pod, 0);
        for attempt in 1..5 {
            if !result.as_ref().is_err_and(|error| error.contains("plugin type=\"loopback\"")) {
                break;
            }
            self.refused_by_loopback.fetch_add(1, Ordering::Relaxed);
            result = self.attempt(pod, attempt);
        }
        result
    }

    fn attempt(&self, pod: &Pod, attempt: u32) -> Result<String, String> {
        let (annotations, handler) = match pod.source {
            Source::Runtime => (pod.annotations.clone(), ""),
            Source::Manifest => (json!({}), "manifest"),
        };
        let uid = format!("uid-{}", pod.name);
        let request = json!({"runtime_handler": handler, "config": {
            "metadata": {"name": pod.name, "namespace": "mesh", "uid": uid, "attempt": attempt},
            "hostname": pod.name, "log_directory": "/run/pod-logs", "annotations": annotations,
            "linux": {"cgroup_parent": self.cgroup},
        }});
        let response = self.cri.call("RunPodSandbox", &request)?;
        Ok(response["pod_sandbox_id"].as_str().unwrap().to_owned())
    }

    /// Write the manifest of `pod`, with its annotations if that is where they come from.
    pub(crate) fn write_manifest(&self, pod: &Pod) {
        let annotations = match pod.source {
            Source::Runtime => json!({}),
            Source::Manifest => pod.annotations.clone(),
        };
        self.node.write_manifest(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": "mesh", "uid": format!("uid-{}", pod.name),
                         "annotations": annotations},
            "spec": {"containers": [
                {"name": "app", "image": "app"},
                {"name": "istio-proxy", "image": "proxy", "args": ["proxy", "sidecar"],
                 "env": [{"name": "ISTIO_DUAL_STACK", "value": "true"}],
                 "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}},
            ]},
        }));
    }

    /// The sandbox `id` of `pod`, and its addresses.
    pub(crate) fn look_into(&self, pod: &Pod, id: &str) -> Result<(Sandbox, Vec<String>), String> {
        let request = json!({"pod_sandbox_id": id, "verbose": true});
        let status = self.cri.call("PodSandboxStatus", &request)?;
        let info: Value = serde_json::from_str(status["info"]["info"].as_str().unwrap()).unwrap();
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
        let network = namespaces.iter().find(|ns| ns["type"] == "network").unwrap();
        let path = network["path"].as_str().unwrap().trim_start_matches('/');
        let network = &status["status"]["network"];
        let more = network["additional_ips"].as_array().into_iter().flatten().map(|ip| &ip["ip"]);
        let addresses =
            [&network["ip"]].into_iter().chain(more).map(|ip| ip.as_str().unwrap().to_owned()).collect();
        // The runtime's mounts, seen through a process in its mount namespace.
        let pid = fs::read_to_string(self.dir.join("pid")).unwrap();
        let netns = Netns::of(&Path::new("/proc").join(pid.trim()).join("root").join(path));
        let (container_id, name) = (id.to_owned(), pod.name.clone());
        let sandbox = Sandbox { netns, container_id, name, ifname: "eth0".into(), namespace: "mesh".into() };
        Ok((sandbox, addresses))
    }

    /// Stop and remove the sandbox `id`.
    pub(crate) fn remove(&self, id: &str) -> Result<(), String> {
        let request = json!({"pod_sandbox_id": id});
        self.cri.call("StopPodSandbox", &request)?;
        self.cri.call("RemovePodSandbox", &request).map(drop)
    }
}

/// Configuration, plugins and image.
fn write_directory(dir: &Path, run_dir: &Path) {
    for sub in ["bin", "net.d", "net.d-manifest"] {
        fs::create_dir_all(dir.join(sub)).unwrap();
    }
    for plugin in ["bridge", "host-local", "loopback"] {
        symlink(Path::new("/usr/lib/cni").join(plugin), dir.join("bin").join(plugin)).unwrap();
    }
    symlink(fs::canonicalize(plugin_binary()).unwrap(), dir.join("bin/istio-cni")).unwrap();
    for (sub, annotations) in [("net.d", true), ("net.d-manifest", false)] {
        let list = network(run_dir, annotations).to_string();
        fs::write(dir.join(sub).join("10-pods.conflist"), list).unwrap();
    }
    fs::write(dir.join("config.toml"), config(dir)).unwrap();
    let image = std::process::Command::new("/usr/bin/python3")
        .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/containerd/image.py")])
        .args([dir.join("image.tar").as_os_str(), IMAGE.as_ref()])
        .status();
    assert!(image.expect("Debian's python3").success(), "the image can be made");
}

/// A vendor's list with our entry at its end.
fn network(run_dir: &Path, annotations: bool) -> Value {
    json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
            "type": "host-local", "dataDir": "/run/cni-ipam",
            "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
        {"type": "istio-cni", "name": "istio-cni", "cni_agent_run_dir": run_dir,
         "exclude_namespaces": ["kube-system"], "pod_namespace": "istio-system", "ambient_enabled": false,
         "agent_deadline_seconds": 60, "capabilities": {"io.kubernetes.cri.pod-annotations": annotations}},
    ]})
}

/// containerd's own configuration: nothing of it is shared with another containerd.
fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
[debug]
level = "warn"
[grpc]
address = "{dir}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "/run/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
# Without CAP_SYS_RESOURCE nobody may lower the score.
restrict_oom_score_adj = true
disable_apparmor = true
# A path without the link /var/run, which would lead out of the mount namespace.
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/bin"
conf_dir = "{dir}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.manifest]
runtime_type = "io.containerd.runc.v2"
cni_conf_dir = "{dir}/net.d-manifest"
"#
    )
}

/// Every process of the runtime dies with the first one of the process namespace, and that one with the test.
fn start(netns: &Netns, dir: &Path) -> Daemon {
    let script = format!(
        "echo $$ >{dir}/pid; exec unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
         {scripts}/containerd/start.sh {dir}",
        dir = dir.display(),
        scripts = env!("CARGO_MANIFEST_DIR"),
    );
    // Nobody here needs that capability, and some machines do not have it.
    let mut daemon = Daemon::start(netns, ROOT, "-sys_resource", &["bash", "-c", &script]);
    daemon.wait_until(|daemon| daemon.printed().lines().any(|line| line == "ready"));
    daemon
}

/// The cgroup directories of one lab, in every hierarchy; removed when dropped.
struct Cgroup(String);

impl Cgroup {
    fn new(name: String) -> Self {
        // A test that was killed could not remove its own.
        for path in cgroups() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let pid = name.strip_prefix(CGROUP).and_then(|rest| rest.split('-').nth(1));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_tree(&path);
            }
        }
        Self(name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in cgroups().into_iter().filter(|path| path.ends_with(&self.0)) {
            remove_tree(&path);
        }
    }
}

/// Those directories of the first and second level that may be ours.
fn cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().map_while(Result::ok);
        entries
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .map(|entry| entry.path())
            .collect()
    };
    let first = below(root);
    let second: Vec<_> = first.iter().flat_map(|dir| below(dir)).collect();
    let ours = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(CGROUP));
    first.into_iter().chain(second).filter(ours).collect()
}

/// Only empty cgroups can be removed; those of a test that has failed are empty a moment after their processes died.
fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().map_while(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    for _ in 0..200 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    eprintln!("{}: cannot be removed", path.display());
}
