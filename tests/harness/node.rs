// SPDX-License-Identifier: Apache-2.0
//! A node without Kubernetes: the real agent as a process of its own, pods as network namespaces, and the real plugin
//! called as a container runtime calls it.
//!
//! Everything is below one temporary directory and ends with the value that owns it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use agent_api::netns::{self, Netlink};
use agent_api::{Operation, PROTOCOL, Request, exchange};
use kernel::Backend as _;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ruleset::{Fingerprint, Table};
use serde_json::{Value, json};

use crate::netns::Netns;

/// Build a binary of the workspace, once per test process, and say where it is. Building here means that a test never
/// runs against a stale one. A machine without a compiler has them below `WAYLAY_BUILT`.
fn build(arguments: &[&str], binary: &str) -> PathBuf {
    if let Some(built) = std::env::var_os("WAYLAY_BUILT") {
        return Path::new(&built).join(binary);
    }
    let target = target_dir();
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .args(arguments)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo build {arguments:?}");
    let path = target.join(binary);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// The plugin as it is shipped.
pub fn plugin_binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let arguments = ["-p", "cni-plugin", "--profile", "plugin", "--target", "x86_64-unknown-linux-musl"];
        build(&arguments, "x86_64-unknown-linux-musl/plugin/istio-cni")
    })
}

/// The agent as it is shipped.
pub fn agent_binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let arguments = ["-p", "node-agent", "--release", "--target", "x86_64-unknown-linux-musl"];
        build(&arguments, "x86_64-unknown-linux-musl/release/install-cni")
    })
}

/// The agent with kill points.
pub fn faulty_agent_binary() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let built = build(&["-p", "node-agent", "--features", "fault-injection"], "debug/install-cni");
        // Whoever builds the agent next, without them, puts that in the same place.
        let (path, new) =
            (built.with_file_name("install-cni.faulty"), built.with_file_name("install-cni.new"));
        fs::copy(built, &new).and_then(|_| fs::rename(&new, &path)).expect("the target directory is ours");
        path
    })
}

/// A node: a run directory, a directory of Pod manifests.
pub struct Node {
    dir: PathBuf,
}

/// A running agent; killed when dropped.
pub struct Agent(Child);

/// The network namespace of a pod, with what the runtime says of it.
pub struct Sandbox {
    /// The namespace.
    pub netns: Netns,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Pod name.
    pub name: String,
    /// Pod namespace.
    pub namespace: String,
}

/// What a plugin process printed and how it ended.
#[derive(Debug)]
pub struct Printed {
    /// Exit status.
    pub status: i32,
    /// stdout.
    pub stdout: String,
}

/// What is programmed in a pod's netns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// Nothing of ours.
    Nothing,
    /// All of it: the fingerprint fits the content.
    Complete,
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// A node without pods and without an agent.
    #[must_use]
    pub fn new() -> Self {
        // Before anything is timed.
        let _ = (plugin_binary(), agent_binary());
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("waylay-{}-{n}", std::process::id()));
        for sub in ["run", "pods"] {
            fs::create_dir_all(dir.join(sub)).expect("the temporary directory is writable");
        }
        Self { dir }
    }

    /// The run directory.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The file that holds the log of all agents of this node.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Start `binary` in a netns of its own with CAP_NET_ADMIN alone, without waiting for anything.
    #[must_use]
    #[allow(
        unsafe_code,
        reason = "the namespace and the capabilities of a child are set between fork and exec"
    )]
    pub fn spawn_agent(&self, binary: &Path, environment: &[(&str, &str)]) -> Agent {
        let log =
            fs::File::options().create(true).append(true).open(self.log()).expect("the log can be made");
        let mut command = Command::new(binary);
        command
            .arg(format!("--cni-agent-run-dir={}", self.run_dir().display()))
            .arg(format!("--pod-manifest-dir={}", self.dir.join("pods").display()))
            .args(["--monitoring-port=15014", "--health-port=8000", "--log_output_level=all:debug"])
            // Unless a test wants it.
            .env("CNI_ENABLE_INSTALL", "false")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor is free"))
            .stderr(log);
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                // Also when the test is killed.
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                unshare(CloneFlags::CLONE_NEWNET)?;
                keep_only_net_admin()
            });
        }
        Agent(command.spawn().expect("the agent starts"))
    }

    /// Start the shipped agent and wait until it answers.
    #[must_use]
    pub fn start_agent(&self) -> Agent {
        let agent = self.spawn_agent(agent_binary(), &[]);
        self.wait_for_agent();
        agent
    }

    /// Wait until an agent answers.
    ///
    /// # Panics
    /// When none does within 10 s.
    pub fn wait_for_agent(&self) {
        let ping = Request {
            protocol: PROTOCOL,
            operation: Operation::Ping,
            sandbox: agent_api::Sandbox::default(),
            annotations: None,
            environment: BTreeMap::new(),
            addresses: Vec::new(),
            wait_ms: 1000,
        };
        let path = agent_api::path::requests(&self.run_dir());
        let give_up = Instant::now() + Duration::from_secs(10);
        while let Err(error) = exchange(&path, &ping, &[], Instant::now() + Duration::from_secs(1)) {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            assert!(Instant::now() < give_up, "no agent answers: {error}\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Write the manifest of a pod as an injector would have left it, with `annotations` on top.
    pub fn write_mesh_pod(&self, sandbox: &Sandbox, annotations: &[(&str, &str)]) {
        self.write_mesh_manifest(&sandbox.namespace, &sandbox.name, annotations);
    }

    /// The same for a pod without a sandbox.
    pub fn write_mesh_manifest(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) {
        let mut all: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        all.entry("sidecar.istio.io/status").or_insert("{}");
        self.write_manifest(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "annotations": all},
            "spec": {"containers": [
                {"name": "app", "image": "app"},
                {"name": "istio-proxy", "image": "proxy", "args": ["proxy", "sidecar"],
                 "env": [{"name": "ISTIO_DUAL_STACK", "value": "true"}],
                 "securityContext": {"runAsUser": 1337, "runAsGroup": 1337}},
            ]},
        }));
    }

    /// Write a manifest by temporary file and rename.
    pub fn write_manifest(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().expect("a pod has a name");
        let path = self.dir.join("pods").join(format!("{name}.json"));
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, pod.to_string()).expect("the manifest can be written");
        // An agent that starts takes a file as complete once it is a second old.
        let old = SystemTime::now() - Duration::from_secs(10);
        let file = fs::File::options().write(true).open(&temporary).expect("it was just written");
        file.set_modified(old).expect("our own file takes a time");
        fs::rename(temporary, path).expect("the manifest can be renamed");
    }

    /// A pod's netns as the primary plugin leaves it: an interface with an IPv4 and an IPv6 address.
    #[must_use]
    pub fn sandbox(&self, name: &str) -> Sandbox {
        self.sandbox_in(Netns::fresh(), name)
    }

    /// The same in a netns that the test made.
    #[must_use]
    pub fn sandbox_in(&self, netns: Netns, name: &str) -> Sandbox {
        let sandbox = self.ipv4_sandbox(netns, name);
        sandbox.netns.ip("addr add fd00:9::2/64 dev eth0 nodad");
        sandbox
    }

    /// Without an IPv6 address, for a kernel that may have none.
    #[must_use]
    pub fn sandbox_without_ipv6(&self, name: &str) -> Sandbox {
        self.ipv4_sandbox(Netns::fresh(), name)
    }

    fn ipv4_sandbox(&self, netns: Netns, name: &str) -> Sandbox {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        netns.ip("link add eth0 type veth peer name peer0\n\
                  link set eth0 up\n\
                  link set peer0 up\n\
                  addr add 10.9.0.2/24 dev eth0\n");
        Sandbox {
            netns,
            container_id: format!("{n:064x}"),
            ifname: "eth0".to_owned(),
            name: name.to_owned(),
            namespace: "mesh".to_owned(),
        }
    }

    /// The network configuration on stdin of the plugin, as an object that a test may change.
    #[must_use]
    pub fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "istio-cni",
            "cni_agent_run_dir": self.run_dir(), "exclude_namespaces": ["kube-system"],
            "pod_namespace": "istio-cni", "ambient_enabled": false, "agent_deadline_seconds": 20,
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.9.0.2/24"}]},
        })
    }

    /// Start the plugin for `verb`, with the arguments that containerd gives.
    #[must_use]
    pub fn spawn_plugin(&self, verb: &str, sandbox: &Sandbox, config: &Value) -> Child {
        let Sandbox { container_id, ifname, name, namespace, .. } = sandbox;
        let mut child = Command::new(plugin_binary())
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container_id)
            .env("CNI_NETNS", sandbox.path())
            .env("CNI_IFNAME", ifname)
            .env("CNI_PATH", "/opt/cni/bin")
            .env(
                "CNI_ARGS",
                format!(
                    "K8S_POD_INFRA_CONTAINER_ID={container_id};IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};\
                     K8S_POD_NAME={name}"
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the plugin starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        stdin.write_all(config.to_string().as_bytes()).expect("the plugin reads stdin");
        child
    }

    /// Run the plugin for `verb` to its end.
    #[must_use]
    pub fn plugin(&self, verb: &str, sandbox: &Sandbox) -> Printed {
        finish(self.spawn_plugin(verb, sandbox, &self.config()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("kept for a look: {}", self.dir.display());
        } else {
            // What is left of a temporary directory harms nobody.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Wait for a plugin process.
#[must_use]
pub fn finish(child: Child) -> Printed {
    let output = child.wait_with_output().expect("the plugin ends");
    Printed {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).expect("the plugin prints UTF-8"),
    }
}

impl Printed {
    /// The code of the error object, or 0 for success.
    #[must_use]
    pub fn code(&self) -> u64 {
        if self.status == 0 {
            return 0;
        }
        let error: Value = serde_json::from_str(&self.stdout).expect("a failure prints an error object");
        error["code"].as_u64().expect("an error object has a code")
    }
}

impl Agent {
    /// Send `signal`.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a pid is an i32"));
        kill(pid, signal).expect("the agent is a child of ours");
    }

    /// The pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether the process has ended by itself.
    pub fn ended(&mut self) -> bool {
        self.0.try_wait().expect("the agent is a child of ours").is_some()
    }

    /// Wait for the end and say whether it was a success.
    ///
    /// # Panics
    /// When it lasts longer than 10 s.
    pub fn wait(&mut self) -> bool {
        self.status().success()
    }

    /// Wait for the end and say whether SIGKILL brought it about.
    ///
    /// # Panics
    /// When it lasts longer than 10 s.
    pub fn killed(&mut self) -> bool {
        self.status().signal() == Some(Signal::SIGKILL as i32)
    }

    fn status(&mut self) -> ExitStatus {
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.0.try_wait().expect("the agent is a child of ours") {
                return status;
            }
            assert!(Instant::now() < give_up, "the agent does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What `GET path` on `port` inside the agent's netns answers: status line, headers and body.
    #[must_use]
    pub fn http(&self, port: u16, path: &str) -> String {
        let netns =
            netns::Netns::open(Path::new(&format!("/proc/{}/ns/net", self.0.id()))).expect("the agent runs");
        let path = path.to_owned();
        std::thread::spawn(move || {
            netns.enter().expect("the tests run as root");
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("iproute2 is there").success(), "ip link set lo up");
            let address = SocketAddr::from((IpAddr::from([127, 0, 0, 1]), port));
            let mut stream =
                TcpStream::connect_timeout(&address, Duration::from_secs(5)).expect("the port is open");
            stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket takes a timeout");
            write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
                .expect("it is sent");
            std::io::read_to_string(stream).expect("it answers")
        })
        .join()
        .expect("the request is made")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sandbox {
    /// `CNI_NETNS`.
    #[must_use]
    pub fn path(&self) -> String {
        self.netns.path().display().to_string()
    }

    /// Our tables in the pod's netns.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        self.netns.run(|| {
            let socket = Netlink::Netfilter.open().expect("a netlink socket can be made");
            kernel::Nftables::new(socket).expect("it can be used").observe().expect("it can be read")
        })
    }

    /// Give `nft` these commands in the sandbox.
    pub fn nft(&self, commands: &str) {
        self.netns.program("nft", &["-f", "-"], commands);
    }

    /// All of the sandbox's rules, as `nft` lists them.
    pub fn ruleset(&self) -> String {
        self.netns.program("nft", &["list", "ruleset"], "")
    }

    /// What `ip` prints for `arguments` in the pod's netns.
    #[must_use]
    pub fn ip(&self, arguments: &str) -> String {
        self.netns.program("ip", &arguments.split(' ').collect::<Vec<_>>(), "")
    }

    /// Whether `::6` is on `lo`.
    #[must_use]
    pub fn has_passthrough(&self) -> bool {
        self.ip("-6 addr show dev lo").contains("inet6 ::6/128")
    }

    /// Whether our rules are programmed; see also [`Sandbox::has_passthrough`].
    ///
    /// # Panics
    /// When it is neither nothing nor complete.
    #[must_use]
    pub fn programmed(&self) -> Programmed {
        let tables = self.tables();
        for table in &tables {
            assert!(!table.chains.is_empty(), "a table without chains: {table:?}");
            Fingerprint::verify(table).unwrap_or_else(|e| panic!("{e}: {}", ruleset::render(table)));
        }
        if tables.is_empty() { Programmed::Nothing } else { Programmed::Complete }
    }
}

/// Leave CAP_NET_ADMIN in the bounding set alone: what an exec as root then gets is that.
fn keep_only_net_admin() -> std::io::Result<()> {
    const CAP_NET_ADMIN: u64 = 12;
    for capability in (0..64).filter(|c| *c != CAP_NET_ADMIN) {
        // SAFETY: prctl with PR_CAPBSET_DROP takes one number and touches no memory.
        #[allow(unsafe_code, reason = "nix has no wrapper for it")]
        let result = unsafe { nix::libc::prctl(nix::libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        // Numbers beyond the last capability of this kernel are refused.
        if result != 0 && std::io::Error::last_os_error().raw_os_error() != Some(nix::libc::EINVAL) {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
