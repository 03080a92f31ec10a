// SPDX-License-Identifier: Apache-2.0
//! The agent over its life on a node: as installer, replaced by its successor, and with nothing to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::node::{Agent, Node, finish};
use nix::sys::signal::Signal;

use crate::report::{Report, median, percentile};

/// The primary network's file.
const LIST: &str = "{\"name\": \"net\", \"cniVersion\": \"1.0.0\", \"plugins\": [{\"type\": \"bridge\"}]}\n";
/// How often it is overwritten, and how long apart: who answers the agent at once is taken for an opponent.
const OVERWRITES: usize = 300;
const APART: Duration = Duration::from_millis(120);
/// How often the agent is replaced, and by how many at once pods are started meanwhile.
const ROLLS: usize = 20;
const RUNTIMES: usize = 3;
/// How long nothing happens.
const IDLE: Duration = Duration::from_secs(65);
/// Wake-ups of one thread in that time that are further apart than 30 s.
const WAKE_UPS: f64 = 2.0;

/// A node whose directories are the agent's to keep.
pub(crate) struct Host {
    pub(crate) node: Node,
    root: PathBuf,
    plugin: PathBuf,
}

impl Host {
    pub(crate) fn new(plugin: &Path) -> Self {
        let node = Node::new();
        let root = node.run_dir().with_file_name("host");
        Self::at(root, node, plugin)
    }

    /// With directories that cost no wait for a disk.
    fn in_memory(plugin: &Path) -> Self {
        let root = PathBuf::from(format!("/dev/shm/waylay-bench-{}", std::process::id()));
        Self::at(root, Node::new(), plugin)
    }

    fn at(root: PathBuf, node: Node, plugin: &Path) -> Self {
        for dir in ["bin", "net.d"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        let host = Self { node, root, plugin: plugin.to_owned() };
        fs::write(host.list(), LIST).unwrap();
        host
    }

    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.root.join(name).display().to_string();
        vec![
            ("CNI_ENABLE_INSTALL", "true".to_owned()),
            ("CNI_BIN_SOURCE", self.plugin.display().to_string()),
            ("MOUNTED_CNI_BIN_DIR", path("bin")),
            ("MOUNTED_CNI_NET_DIR", path("net.d")),
        ]
    }

    fn list(&self) -> PathBuf {
        self.root.join("net.d/10-net.conflist")
    }

    /// An agent that is ready.
    fn agent(&self, program: &Path) -> Agent {
        let settings = self.settings();
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let agent = self.node.spawn_agent(program, &settings);
        self.node.wait_for_agent();
        until(Duration::from_millis(20), || agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"));
        agent
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What is left harms nobody.
        let _ = fs::remove_dir_all(&self.root);
    }
}

pub(crate) fn measure(plugin: &Path, program: &Path, report: &mut Report) {
    restored(plugin, program, report);
    rolled(plugin, program, report);
    idle(plugin, program, report);
}

fn until(pause: Duration, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited for in vain");
        std::thread::sleep(pause);
    }
}

/// The limit is the agent's. A disk that others write to may take longer for its part, which is beside it.
fn restored(plugin: &Path, program: &Path, report: &mut Report) {
    let (took, _) = overwrite(&Host::in_memory(plugin), program);
    report.limited("overwritten entry restored, p99", percentile(took, 0.99), "ms", 20.0);
    let (took, disk) = overwrite(&Host::new(plugin), program);
    for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
        report.note(&format!("… on this disk, {name}"), percentile(took.clone(), share), "ms");
        report.note(&format!("… of it the disk alone, {name}"), percentile(disk.clone(), share), "ms");
    }
}

/// Milliseconds from the moment that a vendor's file is in place without our entry, until it has it again; and those
/// that the disk takes.
fn overwrite(host: &Host, program: &Path) -> (Vec<f64>, Vec<f64>) {
    let _agent = host.agent(program);
    let vendors = host.root.join("vendors");
    let (mut took, mut disk) = (Vec::with_capacity(OVERWRITES), Vec::with_capacity(OVERWRITES));
    for _ in 0..OVERWRITES {
        std::thread::sleep(APART);
        disk.push(write_through(&host.root));
        fs::write(&vendors, LIST).unwrap();
        let begin = Instant::now();
        fs::rename(&vendors, host.list()).unwrap();
        until(Duration::from_micros(100), || {
            fs::read_to_string(host.list()).is_ok_and(|text| text.contains("istio-cni"))
        });
        took.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    (took, disk)
}

/// Milliseconds that the disk takes for what a restoration writes.
fn write_through(dir: &Path) -> f64 {
    let (temporary, file) = (dir.join("disk.new"), dir.join("disk"));
    let begin = Instant::now();
    fs::write(&temporary, LIST).unwrap();
    fs::File::open(&temporary).unwrap().sync_all().unwrap();
    fs::rename(temporary, file).unwrap();
    fs::File::open(dir).unwrap().sync_all().unwrap();
    begin.elapsed().as_secs_f64() * 1e3
}

/// ADDs without a pause while one agent replaces the other as a DaemonSet with `maxSurge` does it.
fn rolled(plugin: &Path, program: &Path, report: &mut Report) {
    let host = Host::new(plugin);
    let mut agent = host.agent(program);
    let sandboxes: Vec<_> = (0..RUNTIMES).map(|n| host.node.sandbox(&format!("web-{n}"))).collect();
    sandboxes.iter().for_each(|sandbox| host.node.write_mesh_pod(sandbox, &[]));
    let over = AtomicBool::new(false);
    let waits: Vec<f64> = std::thread::scope(|scope| {
        let runtime = |sandbox| {
            let mut waits = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let begin = Instant::now();
                let printed = finish(host.node.spawn_plugin("ADD", sandbox, &host.node.config()));
                waits.push(begin.elapsed().as_secs_f64() * 1e3);
                assert_eq!(printed.code(), 0, "{printed:?}");
                // The agent's work is measured, not that of starting processes.
                std::thread::sleep(Duration::from_millis(5));
            }
            waits
        };
        let runtimes: Vec<_> =
            sandboxes.iter().map(|sandbox| scope.spawn(move || runtime(sandbox))).collect();
        let over = Over(&over);
        for _ in 0..ROLLS {
            let mut older = std::mem::replace(&mut agent, host.agent(program));
            older.signal(Signal::SIGTERM);
            assert!(older.wait());
        }
        drop(over);
        runtimes.into_iter().flat_map(|runtime| runtime.join().unwrap()).collect()
    });
    report.note(&format!("ADDs while the agent is replaced {ROLLS} times"), waits.len() as f64, "");
    report.note("… p50", median(waits.clone()), "ms");
    report.limited("… longest", percentile(waits, 1.0), "ms", 300.0);
}

/// Ends the runtimes, also by a panic: the scope would wait for ever.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What an agent costs that has nothing to do.
fn idle(plugin: &Path, program: &Path, report: &mut Report) {
    let host = Host::new(plugin);
    let agent = host.agent(program);
    // The start has its timers.
    std::thread::sleep(Duration::from_secs(5));
    let before = threads(agent.pid());
    std::thread::sleep(IDLE);
    let after = threads(agent.pid());
    let mut ran = 0;
    let mut most = (0, "");
    for (thread, now) in &after {
        let then = before.get(thread).copied().unwrap_or_default();
        ran += now.1 - then.1;
        most = most.max((now.0 - then.0, &thread.1));
    }
    let share = ran as f64 / IDLE.as_nanos() as f64 * 100.0;
    // 0.0 to one digit.
    report.limited("idle agent's processor time", share, "%", 0.05);
    let name = format!("idle, wake-ups in {} s of thread {}", IDLE.as_secs(), most.1);
    report.limited(&name, f64::from(most.0), "", WAKE_UPS);
}

/// How often each thread went to sleep, and for how many nanoseconds it ran.
fn threads(pid: u32) -> BTreeMap<(String, String), (u32, u64)> {
    let of_thread = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.unwrap().path();
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        let (status, ran) = (read("status"), read("schedstat"));
        let slept = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        let ran = ran.split(' ').next().unwrap().parse().unwrap();
        let id = path.file_name().unwrap().to_string_lossy().into_owned();
        ((id, read("comm").trim().to_owned()), (slept.trim().parse().unwrap(), ran))
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(of_thread).collect()
}
