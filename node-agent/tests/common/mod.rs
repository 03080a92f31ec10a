// SPDX-License-Identifier: Apache-2.0
//! The agent as a process, in a netns of its own with few capabilities, and peers that talk to its sockets.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use agent_api::netns::{Netlink, Netns};
use agent_api::{Answer, ExchangeError, Operation, PROTOCOL, Request, Sandbox, exchange, frame};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;

/// Longer than anything takes that works.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// A directory that goes away with the value.
pub(crate) struct Dir(pub PathBuf);

impl Dir {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("wl-{}-{number}", std::process::id()));
        for sub in ["run", "pods"] {
            fs::create_dir_all(dir.join(sub)).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.0.join("run")
    }

    pub(crate) fn requests(&self) -> PathBuf {
        agent_api::path::requests(&self.run())
    }

    /// Write a manifest by renaming, as a careful tool does.
    pub(crate) fn pod(&self, name: &str, annotations: &str) {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: n\n  annotations: {{{annotations}}}\n\
             spec:\n  containers:\n  - name: app\n  - name: istio-proxy\n    args: [proxy, sidecar]\n"
        );
        let part = self.0.join("pods").join(format!(".{name}.part"));
        fs::write(&part, text).unwrap();
        fs::rename(part, self.0.join("pods").join(format!("{name}.yaml"))).unwrap();
    }

    pub(crate) fn mesh_pod(&self, name: &str) {
        self.pod(name, "sidecar.istio.io/status: ''");
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running agent, killed when dropped.
pub(crate) struct Agent {
    pub(crate) child: Child,
    log: Arc<Mutex<String>>,
}

impl Agent {
    /// Start it as a runtime does that adds `capabilities` (`+net_admin`) to none, and wait until it answers.
    pub(crate) fn start(dir: &Dir) -> Self {
        let agent = Self::spawn(dir, &["--bounding-set=-all,+net_admin"], &[]);
        agent.wait_log("took the socket");
        agent
    }

    /// Start it without waiting. unshare(1) and setpriv(1) become the agent: its process id is the child's.
    pub(crate) fn spawn(dir: &Dir, setpriv: &[&str], flags: &[&str]) -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "setpriv"])
            .args(setpriv)
            .arg(env!("CARGO_BIN_EXE_install-cni"))
            .arg(format!("--cni-agent-run-dir={}", dir.run().display()))
            .arg(format!("--pod-manifest-dir={}", dir.0.join("pods").display()))
            .args(["--log_output_level=debug", "--cni-enable-install=false"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::clone(&log);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let mut lines = lines.lock().unwrap();
                lines.push_str(&line);
                lines.push('\n');
            }
        });
        Self { child, log }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// What `happens` while nobody reads the log.
    pub(crate) fn unread<T>(&self, happens: impl FnOnce() -> T) -> T {
        let _held = self.log.lock().unwrap();
        happens()
    }

    pub(crate) fn wait_log(&self, text: &str) {
        wait(&format!("{text:?} in the log of the agent"), || self.log().contains(text), || self.log());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// End it by SIGTERM; its exit status.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        self.signal(Signal::SIGTERM);
        let status = self.child.wait().unwrap();
        (status.code(), self.log())
    }

    /// Exit status and stderr of an agent that ends by itself.
    pub(crate) fn failed(mut self) -> (Option<i32>, String) {
        let status = self.child.wait().unwrap();
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        thread::sleep(Duration::from_millis(50));
        (status.code(), stderr + &self.log())
    }

    /// A line of `/proc/<pid>/status`.
    pub(crate) fn status(&self, key: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    }

    /// The body of `path` on `port`, asked for inside the agent's netns.
    pub(crate) fn http(&self, port: u16, path: &'static str) -> String {
        let netns = Netns::open(Path::new(&format!("/proc/{}/ns/net", self.child.id()))).unwrap();
        thread::spawn(move || {
            netns.enter().unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            use std::io::Write as _;
            let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .join()
        .unwrap()
    }

    pub(crate) fn metrics(&self) -> String {
        self.http(15014, "/metrics")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Wait until `holds`, or panic with what `report` says.
pub(crate) fn wait(what: &str, mut holds: impl FnMut() -> bool, report: impl FnOnce() -> String) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "no {what}:\n{}", report());
        thread::sleep(Duration::from_millis(2));
    }
}

/// The netns of a pod, and what the plugin opens in it.
pub(crate) struct PodNetns {
    pub(crate) netns: OwnedFd,
    pub(crate) nfnetlink: OwnedFd,
    pub(crate) rtnetlink: OwnedFd,
    pub(crate) own: OwnedFd,
}

impl PodNetns {
    /// A new one with an address.
    pub(crate) fn new() -> Self {
        let own = owned(&Netns::own().unwrap());
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            for args in
                [["address", "add", "10.0.0.1/8", "dev", "lo"].as_slice(), &["link", "set", "lo", "up"]]
            {
                assert!(Command::new("ip").args(args).status().unwrap().success());
            }
            Self {
                netns: owned(&Netns::own().unwrap()),
                nfnetlink: Netlink::Netfilter.open().unwrap(),
                rtnetlink: Netlink::Route.open().unwrap(),
                own,
            }
        })
        .join()
        .unwrap()
    }

    /// In the order of the protocol.
    pub(crate) fn fds(&self) -> Vec<&OwnedFd> {
        vec![&self.netns, &self.own, &self.nfnetlink, &self.rtnetlink]
    }

    /// `nft list ruleset` in it.
    pub(crate) fn rules(&self) -> String {
        self.command("nft list ruleset")
    }

    /// What a command prints that runs in it; it must succeed.
    pub(crate) fn command(&self, line: &'static str) -> String {
        self.inside(move || {
            let mut words = line.split(' ');
            let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// What `job` returns on a thread in it.
    pub(crate) fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = Netns::from_fd(self.netns.try_clone().unwrap()).unwrap();
        let thread = thread::spawn(move || {
            netns.enter().unwrap();
            job()
        });
        thread.join().unwrap()
    }
}

pub(crate) fn owned(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

pub(crate) fn request(operation: Operation, name: &str) -> Request {
    Request {
        protocol: PROTOCOL,
        operation,
        sandbox: Sandbox {
            container_id: format!("id-of-{name}"),
            ifname: "eth0".to_owned(),
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: Some("u".to_owned()),
        },
        annotations: None,
        environment: BTreeMap::new(),
        addresses: Vec::new(),
        wait_ms: 10_000,
    }
}

/// The answer of whoever holds the socket of `dir`, asked for as the plugin does: again after every transient error.
pub(crate) fn ask(dir: &Dir, request: &Request, fds: &[&OwnedFd]) -> Result<Answer, ExchangeError> {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let until = Instant::now() + LONG;
    loop {
        match exchange(&dir.requests(), request, &fds, until) {
            Err(error) if error.transient() && Instant::now() < until => {
                thread::sleep(Duration::from_millis(10))
            }
            result => return result,
        }
    }
}

/// A connection that has not sent anything.
pub(crate) fn dial(path: &Path) -> OwnedFd {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    fd
}

/// Send `bytes` and `fds` on a new connection; the answer, or nothing when the agent hangs up.
pub(crate) fn raw(path: &Path, bytes: &[u8], fds: &[&OwnedFd]) -> Option<Answer> {
    let fd = dial(path);
    let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    // The agent may hang up before the request is sent.
    match frame::send(&fd, bytes, &raw).and_then(|()| frame::receive(&fd)) {
        Ok(frame) => Some(Answer::decode(&frame.bytes).unwrap()),
        Err(frame::FrameError::Closed | frame::FrameError::Io(Errno::ECONNRESET | Errno::EPIPE)) => None,
        Err(error) => panic!("{error}"),
    }
}
