// SPDX-License-Identifier: Apache-2.0
//! A call of the binary, a run directory, a netns and an agent that follows a script.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent_api::netns::{Netns, NetnsId};
use agent_api::{Answer, Notice, Outcome, PROTOCOL, Request, frame, path};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// The binary under test.
pub(crate) const PLUGIN: &str = env!("CARGO_BIN_EXE_istio-cni");

/// What a process left behind.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Finished {
    /// Assert success with exactly this on stdout.
    #[track_caller]
    pub(crate) fn succeeded_with(&self, stdout: &str) {
        assert_eq!((self.status, self.stdout.as_str()), (0, stdout), "{self:?}");
    }

    /// Assert an error object with exactly this code and text.
    #[track_caller]
    pub(crate) fn failed_with(&self, code: u32, msg: &str) {
        let expected = format!("{}\n", cni::Error::with_number(code, msg).to_json());
        assert_eq!((self.status, self.stdout.as_str()), (1, expected.as_str()), "{self:?}");
    }
}

/// A call with the variables of an ordinary ADD.
pub(crate) struct Caller {
    variables: BTreeMap<String, String>,
    stdin: Vec<u8>,
    wrapper: Vec<String>,
}

impl Caller {
    pub(crate) fn new(verb: &str, stdin: impl Into<Vec<u8>>) -> Self {
        let variables = [
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c0ffee"),
            ("CNI_NETNS", "/nonexistent/netns"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"),
        ];
        let variables = variables.map(|(key, value)| (key.into(), value.into())).into();
        Self { variables, stdin: stdin.into(), wrapper: vec![] }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.remove(name);
        self
    }

    /// Run the binary as an argument of this command.
    pub(crate) fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| String::from(*word)).collect();
        self
    }

    pub(crate) fn start(&self) -> (Child, Instant) {
        let words: Vec<&str> = self.wrapper.iter().map(String::as_str).chain([PLUGIN]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env_clear()
            .envs(&self.variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let started = Instant::now();
        // A plugin that does not read its stdin to the end closes it; that is its right.
        let _ = child.stdin.take().unwrap().write_all(&self.stdin);
        (child, started)
    }

    pub(crate) fn run(&self) -> Finished {
        finish(self.start())
    }
}

/// Wait for the end, which comes within 30 s or is brought about.
pub(crate) fn finish((mut child, started): (Child, Instant)) -> Finished {
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = started.elapsed();
    let output = child.wait_with_output().unwrap();
    Finished {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        took,
    }
}

/// A run directory that is removed again.
pub(crate) struct RunDir(pub(crate) PathBuf);

impl RunDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("istio-cni-test-{}-{next}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    /// A configuration of version 1.0.0 that uses this directory, with more keys: `,"key":value`.
    pub(crate) fn config(&self, more: &str) -> String {
        self.config_of("1.0.0", more)
    }

    pub(crate) fn config_of(&self, version: &str, more: &str) -> String {
        format!(
            r#"{{"name":"k8s-pod-network","type":"istio-cni","cniVersion":"{version}","cni_agent_run_dir":"{}"{more}}}"#,
            self.0.display()
        )
    }

    pub(crate) fn requests(&self) -> String {
        path::requests(&self.0).display().to_string()
    }

    /// Receive notices.
    pub(crate) fn notices(&self) -> Notices {
        let socket = UnixDatagram::bind(path::notices(&self.0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Notices(socket)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) struct Notices(UnixDatagram);

impl Notices {
    pub(crate) fn next(&self) -> Notice {
        let mut buffer = vec![0; 64 * 1024];
        let len = self.0.recv(&mut buffer).expect("a notice within 5 s");
        Notice::decode(&buffer[..len]).unwrap()
    }

    /// Nothing was sent. Datagrams of a process that has ended are there already.
    pub(crate) fn none(&self) {
        self.0.set_nonblocking(true).unwrap();
        assert!(self.0.recv(&mut [0; 16]).is_err());
    }
}

/// A netns of its own, reachable by a path as long as this value lives.
pub(crate) struct TestNetns(File);

impl TestNetns {
    pub(crate) fn new() -> Self {
        let made = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests run as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub(crate) fn id(&self) -> NetnsId {
        Netns::from_fd(self.0.as_fd().try_clone_to_owned().unwrap()).unwrap().id().unwrap()
    }
}

/// What the agent does with one connection.
pub(crate) enum Step {
    Answer(Answer),
    /// An answer of another release, as text.
    Raw(&'static str),
    /// Reads the request and closes: the plugin sees EOF.
    Close,
    /// Closes with the request unread: the plugin sees a reset.
    Reset,
    /// Reads the request, says nothing and keeps the connection.
    Hang,
}

/// An answer of this release.
pub(crate) fn answer(outcome: Outcome, message: &str) -> Step {
    Step::Answer(Answer { protocol: PROTOCOL, outcome, reason: "scripted".into(), message: message.into() })
}

pub(crate) fn done() -> Step {
    answer(Outcome::Done, "")
}

/// What came in one connection.
pub(crate) struct Received {
    pub(crate) request: Request,
    pub(crate) fds: Vec<OwnedFd>,
}

/// An agent that serves as many connections as its script has steps. `seen` fails when there were fewer.
pub(crate) struct FakeAgent(JoinHandle<Vec<Received>>);

impl FakeAgent {
    pub(crate) fn start(dir: &RunDir, script: Vec<Step>) -> Self {
        Self::listening(&path::requests(&dir.0), script)
    }

    /// One that takes the name of the socket, as a newer agent does.
    pub(crate) fn take_over(dir: &RunDir, script: Vec<Step>) -> Self {
        let own = dir.0.join("newer.sock");
        let agent = Self::listening(&own, script);
        fs::rename(own, path::requests(&dir.0)).unwrap();
        agent
    }

    fn listening(path: &Path, script: Vec<Step>) -> Self {
        let listener = bound(path);
        listen(&listener, Backlog::new(128).unwrap()).unwrap();
        setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(20)).unwrap();
        Self(std::thread::spawn(move || serve(&listener, script)))
    }

    pub(crate) fn seen(self) -> Vec<Received> {
        self.0.join().unwrap()
    }
}

/// A socket at `path` that nobody listens to: connecting is refused.
pub(crate) fn bound(path: &Path) -> OwnedFd {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    socket
}

fn serve(listener: &OwnedFd, script: Vec<Step>) -> Vec<Received> {
    let (mut seen, mut kept) = (Vec::new(), Vec::new());
    for step in script {
        let connection = accept4(listener, SockFlag::SOCK_CLOEXEC).expect("a connection within 20 s");
        if matches!(step, Step::Reset) {
            // Peeked at, so that it is certainly there and unread.
            let flags = nix::sys::socket::MsgFlags::MSG_PEEK;
            nix::sys::socket::recv(connection.as_raw_fd(), &mut [0; 1], flags).unwrap();
            continue;
        }
        let frame = frame::receive(&connection).unwrap();
        seen.push(Received { request: Request::decode(&frame.bytes).unwrap(), fds: frame.fds });
        let bytes = match step {
            Step::Answer(answer) => answer.encode(),
            Step::Raw(text) => text.into(),
            Step::Close | Step::Reset => continue,
            Step::Hang => {
                kept.push(connection);
                continue;
            }
        };
        frame::send(&connection, &bytes, &[]).unwrap();
    }
    seen
}
