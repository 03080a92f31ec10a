// SPDX-License-Identifier: Apache-2.0
//! The agent as installer: what is on the node while it serves, while it is replaced, after it has ended, and after
//! `install-cni uninstall`. What the installer does to files is in `tests/install`.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use harness::node::{Agent, Node, agent_binary, plugin_binary};
use nix::sys::signal::Signal;

const LIST: &str = "{\"name\": \"net\", \"cniVersion\": \"1.0.0\",\n \"plugins\": [ {\"type\": \"bridge\", \"mtu\": 1e3} ] }\n";

/// A node's directories beside those of [`Node`].
struct Host {
    node: Node,
    root: PathBuf,
}

impl Host {
    fn new() -> Self {
        let node = Node::new();
        let root = node.run_dir().with_file_name("host");
        for dir in ["bin", "net.d"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        Self { node, root }
    }

    fn list(&self) -> PathBuf {
        self.root.join("net.d/10-net.conflist")
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.root.join(name).display().to_string();
        vec![
            ("CNI_ENABLE_INSTALL", "true".to_owned()),
            ("CNI_BIN_SOURCE", plugin_binary().display().to_string()),
            ("MOUNTED_CNI_BIN_DIR", path("bin")),
            ("MOUNTED_CNI_NET_DIR", path("net.d")),
        ]
    }

    fn agent(&self) -> Agent {
        self.agent_excluding("kube-system")
    }

    /// An agent whose entry is another one by these namespaces.
    fn agent_excluding(&self, namespaces: &str) -> Agent {
        let mut settings = self.settings();
        settings.push(("EXCLUDE_NAMESPACES", namespaces.to_owned()));
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let agent = self.node.spawn_agent(agent_binary(), &settings);
        self.node.wait_for_agent();
        agent
    }

    fn uninstall(&self) -> Output {
        Command::new(agent_binary()).arg("uninstall").envs(self.settings()).output().unwrap()
    }

    /// Paths, modes and contents.
    fn tree(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let files = ["bin", "net.d"].into_iter().flat_map(|dir| fs::read_dir(self.root.join(dir)).unwrap());
        let read = |path: PathBuf| {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            let bytes = fs::read(&path).unwrap();
            (path, (mode, bytes))
        };
        files.map(|file| read(file.unwrap().path())).collect()
    }

    fn installed(&self) -> bool {
        let entry = fs::read_to_string(self.list()).is_ok_and(|text| text.contains("\"istio-cni\""));
        entry && self.root.join("bin/istio-cni").exists()
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < give_up, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, path).unwrap();
}

#[test]
fn an_agent_installs_keeps_and_leaves_in_place_what_uninstall_takes_away_to_the_byte() {
    let host = Host::new();
    fs::write(host.list(), LIST).unwrap();
    let before = host.tree();
    let mut agent = host.agent();
    until("installed", || host.installed());
    until("ready", || agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
    // Somebody overwrites the file: our entry is back, and what they wrote is in it.
    write(&host.list(), &LIST.replace("bridge", "macvlan"));
    until("restored", || host.installed());
    assert!(fs::read_to_string(host.list()).unwrap().contains("macvlan"));
    until("counted", || agent.http(15014, "/metrics").contains("waylay_install_restored_total 1"));
    write(&host.list(), LIST);
    until("restored again", || host.installed());
    // A stop is no uninstall.
    let kept = host.tree();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait());
    assert_eq!(host.tree(), kept);
    let log = fs::read_to_string(host.node.log()).unwrap();
    let last = log.lines().rfind(|line| !line.contains(" DEBUG ")).unwrap_or_default();
    assert!(last.contains("install-cni uninstall"), "{last}");

    let output = host.uninstall();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(host.tree(), before);
    let output = host.uninstall();
    assert!(output.status.success() && output.stdout.starts_with(b"nothing of ours"), "{output:?}");
}

#[test]
fn without_a_primary_network_the_agent_serves_and_says_what_it_waits_for() {
    let host = Host::new();
    let agent = host.agent();
    until("blocked", || agent.http(8000, "/readyz?verbose").contains("[-]install failed: look in"));
    assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 503"));
    write(&host.list(), LIST);
    until("ready", || agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(host.installed());
}

#[test]
fn only_the_holder_of_the_socket_writes() {
    let host = Host::new();
    fs::write(host.list(), LIST).unwrap();
    let older = host.agent();
    until("installed", || host.installed());
    let newer = host.agent_excluding("of-the-newer");
    until("taken over", || newer.http(15014, "/metrics").contains("waylay_socket_holder 1"));
    until("stands by", || older.http(15014, "/metrics").contains("waylay_socket_holder 0"));
    let newers = || fs::read_to_string(host.list()).is_ok_and(|text| text.contains("of-the-newer"));
    until("the newer agent's entry", newers);
    for _ in 0..3 {
        // Both see it, one writes.
        write(&host.list(), LIST);
        until("restored by the newer agent", newers);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(newers() && older.http(15014, "/metrics").contains("waylay_install_restored_total 0"));
    newer.signal(Signal::SIGSTOP);
    // The older one finds out within a second and takes the role back; until then nobody restores.
    write(&host.list(), LIST);
    until("the older agent restores", || host.installed());
    until("it holds the role then", || older.http(15014, "/metrics").contains("waylay_socket_holder 1"));
    newer.signal(Signal::SIGCONT);
    until("ready", || older.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn an_agent_outlives_the_uninstall_of_an_older_one() {
    let host = Host::new();
    fs::write(host.list(), LIST).unwrap();
    let agent = host.agent();
    until("installed", || host.installed());
    let records = host.node.run_dir().join("sandboxes");
    assert!(records.is_dir());
    // What the older one does at its end, when this one holds the role already.
    let mut uninstall = Command::new(agent_binary());
    let run_dir = host.node.run_dir().display().to_string();
    let output =
        uninstall.arg("uninstall").envs(host.settings()).env("CNI_AGENT_RUN_DIR", run_dir).output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"clean: "), "{output:?}");
    until("entry and plugin are back", || host.installed());
    until("the records' directory is back", || records.is_dir());
    until("ready", || agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn settings_that_name_no_place_are_refused_before_anything_is_done() {
    let host = Host::new();
    fs::write(host.list(), LIST).unwrap();
    let before = host.tree();
    let output = Command::new(agent_binary())
        .args(["uninstall", "--cni-conf-name=../escape.conflist"])
        .envs(host.settings())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert_eq!(host.tree(), before);
}
