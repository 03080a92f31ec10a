// SPDX-License-Identifier: Apache-2.0
//! A real program that runs in a netns of the test as somebody else, with what it prints.

use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::netns::Netns;
use crate::packet::Ids;

/// How long a program may take to start, on a busy machine.
const START: Duration = Duration::from_secs(20);

/// The program; killed when dropped, and also when the test dies.
pub struct Daemon {
    child: Child,
    printed: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    what: String,
}

impl Daemon {
    /// Start `command`, program and arguments, in `netns` as `ids` with no other capabilities than those named, as
    /// setpriv(1) names them: `-all,+net_admin`.
    #[must_use]
    pub fn start(netns: &Netns, ids: Ids, capabilities: &str, command: &[&str]) -> Self {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .args([format!("--reuid={}", ids.uid), format!("--regid={}", ids.gid)])
            .args(["--clear-groups", "--no-new-privs", "--pdeathsig=kill"])
            .args([format!("--bounding-set={capabilities}"), format!("--inh-caps={capabilities}")])
            .arg("--")
            .args(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = netns.run(move || setpriv.spawn().expect("setpriv of util-linux"));
        let printed = Arc::default();
        let readers = vec![
            collect(child.stdout.take().expect("it is piped"), &printed),
            collect(child.stderr.take().expect("it is piped"), &printed),
        ];
        Self { child, printed, readers, what: command[0].to_owned() }
    }

    /// What it has printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap().clone()
    }

    /// Wait until `ready` says yes.
    ///
    /// # Panics
    /// When the program ends or the time is over.
    pub fn wait_until(&mut self, ready: impl Fn(&Self) -> bool) {
        let give_up = Instant::now() + START;
        while !ready(self) {
            let ended = self.child.try_wait().expect("a child of ours");
            let state = ended.map_or("not ready".to_owned(), |status| status.to_string());
            assert!(
                ended.is_none() && Instant::now() < give_up,
                "{}: {state}\n{}",
                self.what,
                self.printed()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // With its own children, which hold the pipes that are read; fails only when all have ended already.
        let _ =
            killpg(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid is an i32")), Signal::SIGKILL);
        let _ = self.child.wait();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("{} printed:\n{}", self.what, self.printed());
        }
    }
}

fn collect(from: impl Read + Send + 'static, into: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().extend([&line, "\n"]);
        }
    })
}
