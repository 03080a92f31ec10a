// SPDX-License-Identifier: Apache-2.0
//! A fresh network namespace with a thread that lives in it.
//!
//! Owns the only way into a namespace of the tests: a job for that thread. Sockets keep the namespace they were made
//! in, so a job that makes one and returns it is all that most tests need. The thread never leaves.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getpid, gettid};

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of our own; it ends with this value and the sockets made in it.
pub struct Netns {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Netns {
    /// A namespace with nothing in it but `lo`, which is up.
    #[must_use]
    pub fn fresh() -> Self {
        let netns = Self::inhabit(|| unshare(CloneFlags::CLONE_NEWNET));
        netns.ip("link set lo up");
        netns
    }

    /// The namespace at `path`, which a process of the test made.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        let netns = agent_api::netns::Netns::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::inhabit(move || netns.enter())
    }

    fn inhabit(enter: impl FnOnce() -> nix::Result<()> + Send + 'static) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let made = enter();
            let path = PathBuf::from(format!("/proc/{}/task/{}/ns/net", getpid(), gettid()));
            ready.send(made.map(|()| path)).unwrap();
            queue.into_iter().for_each(|job| job());
        });
        let path = started.recv().unwrap().expect("a network namespace: these tests need root");
        Self { jobs: Some(jobs), thread: Some(thread), path }
    }

    /// Its file, valid as long as this value.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What `job` returns when it runs inside; a panic in it is a panic here.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        let job = move || {
            let _ = done.send(catch_unwind(AssertUnwindSafe(job)));
        };
        self.jobs.as_ref().expect("jobs end with the value").send(Box::new(job)).unwrap();
        result.recv().unwrap().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// What a program prints that runs inside with `input`; it must succeed.
    pub fn program(&self, program: &'static str, args: &[&str], input: &str) -> String {
        let (args, input): (Vec<_>, _) = (args.iter().map(ToString::to_string).collect(), input.to_owned());
        self.run(move || {
            let mut child = Command::new(program)
                .args(&args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error}"));
            child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {}: {error}\n{input}", args.join(" "));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Run ip(8) commands, one a line.
    pub fn ip(&self, commands: &str) {
        self.program("ip", &["-batch", "-"], commands);
    }

    /// Wait until all links can send; what is sent earlier is lost.
    pub fn wait_for_links(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let running = || getifaddrs().unwrap().all(|link| link.flags.contains(InterfaceFlags::IFF_RUNNING));
        while !self.run(running) {
            assert!(Instant::now() < deadline, "a link does not come up");
            std::thread::yield_now();
        }
    }

    /// Write `value` to a file under `/proc/sys/net`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let (path, value) = (Path::new("/proc/sys/net").join(name), value.to_owned());
        self.run(move || std::fs::write(&path, value).unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
