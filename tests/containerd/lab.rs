// SPDX-License-Identifier: Apache-2.0
//! A real containerd with a bridge network and our plugin, in network, mount and process namespaces of its own: it
//! leaves nothing behind but cgroup directories, which are removed here.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use harness::daemon::Daemon;
use harness::netns::Netns;
use harness::node::{Node, Sandbox, plugin_binary};
use harness::packet::ROOT;
use serde_json::{Value, json};

use crate::cgroup::Cgroup;
use crate::cri::Cri;
use crate::runtime::Runtime;

/// containerd, its client and the node's agents' directories. Fields are dropped in their order.
pub(crate) struct Lab {
    /// What speaks to containerd.
    pub(crate) cri: Cri,
    _containerd: Daemon,
    cgroup: Cgroup,
    /// The node's network namespace, with the bridge.
    pub(crate) netns: Netns,
    /// Run directory, manifests and agents.
    pub(crate) node: Node,
    /// Plugins in `bin`, networks in `net.d`, and what is containerd's.
    pub(crate) dir: PathBuf,
}

/// Where the annotations of a pod come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The runtime hands them to the plugin, which asked for them in its configuration.
    Runtime,
    /// The agent's directory of manifests: a configuration that does not ask for them.
    Manifest,
    /// Both have them: what reaches the plugin depends on who is between.
    Both,
}

/// What a test wants of a pod.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) source: Source,
    pub(crate) annotations: Value,
}

impl Lab {
    /// Start containerd with a network that has our entry, without an agent.
    pub(crate) fn new(runtime: Runtime) -> Self {
        Self::with(runtime, |dir, run_dir| {
            symlink(fs::canonicalize(plugin_binary()).unwrap(), dir.join("bin/istio-cni")).unwrap();
            for (sub, annotations) in [("net.d", true), ("net.d-manifest", false)] {
                let list = network(runtime, run_dir, annotations).to_string();
                fs::write(dir.join(sub).join("10-pods.conflist"), list).unwrap();
            }
        })
    }

    /// Start containerd with the networks that `prepare` writes, given the directory and the run directory.
    pub(crate) fn with(runtime: Runtime, prepare: impl FnOnce(&Path, &Path)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let node = Node::new();
        // Beside the run directory, so that it is removed or kept together with it.
        let dir = node.run_dir().with_file_name("containerd");
        runtime.write(&dir);
        prepare(&dir, &node.run_dir());
        let netns = Netns::fresh();
        // An address of the bridge is usable at once.
        netns.sysctl("ipv6/conf/default/accept_dad", "0");
        let cgroup = Cgroup::new(COUNT.fetch_add(1, Ordering::Relaxed));
        let containerd = start(runtime, &netns, &dir);
        let cri = Cri::connect(&dir.join("containerd.sock"), &dir);
        let lab = Self { cri, _containerd: containerd, cgroup, netns, node, dir };
        lab.ready().unwrap();
        lab
    }

    /// Whether the runtime says that it and its network are ready, as a kubelet asks every few seconds.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let status = self.cri.call("Status", &json!({}))?;
        let conditions = status["status"]["conditions"].as_array().unwrap();
        // `NetworkReady`, `RuntimeReady`, and in later releases others that say nothing about it.
        let ready = |kind: &str| conditions.iter().any(|c| c["type"] == kind && c["status"] == true);
        if ready("NetworkReady") && ready("RuntimeReady") { Ok(()) } else { Err(status.to_string()) }
    }

    /// Start `pod` as a kubelet does, and say which sandbox it got.
    pub(crate) fn run(&self, pod: &Pod) -> Result<String, String> {
        let (annotations, handler) = match pod.source {
            Source::Runtime | Source::Both => (pod.annotations.clone(), ""),
            Source::Manifest => (json!({}), "manifest"),
        };
        let uid = format!("uid-{}", pod.name);
        let request = json!({"runtime_handler": handler, "config": {
            "metadata": {"name": pod.name, "namespace": "mesh", "uid": uid},
            "hostname": pod.name, "log_directory": "/run/pod-logs", "annotations": annotations,
            "linux": {"cgroup_parent": self.cgroup.parent()},
        }});
        let response = self.cri.call("RunPodSandbox", &request)?;
        Ok(response["pod_sandbox_id"].as_str().unwrap().to_owned())
    }

    /// Have `script` run instead of `plugin`, which it finds as `$REAL`; by rename, since a call may be on its way.
    pub(crate) fn wrap(&self, plugin: &str, script: &str) {
        let path = self.dir.join("bin").join(plugin);
        let real = fs::canonicalize(&path).unwrap();
        let temporary = path.with_extension("new");
        fs::write(&temporary, format!("#!/bin/sh\nREAL={}\n{script}\n", real.display())).unwrap();
        fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    /// Write the manifest of `pod`, with its annotations if that is where they come from.
    pub(crate) fn write_manifest(&self, pod: &Pod) {
        let annotations = match pod.source {
            Source::Runtime => json!({}),
            Source::Manifest | Source::Both => pod.annotations.clone(),
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

/// A network of pods as a vendor configures it.
pub(crate) fn bridge() -> Value {
    json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
        "type": "host-local", "dataDir": "/run/cni-ipam",
        "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}})
}

/// A vendor's list with our entry at its end.
fn network(runtime: Runtime, run_dir: &Path, annotations: bool) -> Value {
    json!({"cniVersion": runtime.cni_version(), "name": "k8s-pod-network", "plugins": [
        bridge(),
        {"type": "istio-cni", "name": "istio-cni", "cni_agent_run_dir": run_dir,
         "exclude_namespaces": ["kube-system"], "pod_namespace": "istio-system", "ambient_enabled": false,
         "agent_deadline_seconds": 60, "capabilities": {"io.kubernetes.cri.pod-annotations": annotations}},
    ]})
}

/// Every process of the runtime dies with the first one of the process namespace, and that one with the test.
fn start(runtime: Runtime, netns: &Netns, dir: &Path) -> Daemon {
    let script = format!(
        "echo $$ >{dir}/pid; exec unshare --mount --propagation private --pid --fork --kill-child=KILL --mount-proc \
         {scripts}/containerd/start.sh {dir}",
        dir = dir.display(),
        scripts = env!("CARGO_MANIFEST_DIR"),
    );
    let inherited = std::env::var_os("PATH").unwrap();
    let path = std::env::join_paths(runtime.programs().into_iter().chain(std::env::split_paths(&inherited)));
    let path = format!("PATH={}", path.unwrap().display());
    // Nobody here needs that capability, and some machines do not have it.
    let mut daemon = Daemon::start(netns, ROOT, "-sys_resource", &["env", &path, "bash", "-c", &script]);
    daemon.wait_until(|daemon| daemon.printed().lines().any(|line| line == "ready"));
    daemon
}
