// SPDX-License-Identifier: Apache-2.0
//! The container runtime interface, as a kubelet uses it. Speaking gRPC is left to Debian's `python3-grpcio`: a stack of
//! HTTP/2 and protobuf crates for four calls would be most of what this package compiles.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// How long a call may take. The plugin gives up before.
const SECONDS: u64 = 90;

type Answers = Arc<Mutex<HashMap<u64, Sender<Value>>>>;

/// A connection to the runtime; calls may be made by many threads at once.
pub(crate) struct Cri {
    child: Child,
    calls: Mutex<ChildStdin>,
    answers: Answers,
    next: AtomicU64,
    reader: Option<JoinHandle<()>>,
}

impl Cri {
    /// To the runtime that serves `socket`; what is generated goes to `dir`.
    pub(crate) fn connect(socket: &Path, dir: &Path) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/containerd/cri.py")])
            .args([socket, dir])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Debian's python3");
        let answers = Answers::default();
        let (calls, printed) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let waiting = Arc::clone(&answers);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(printed).lines().map_while(Result::ok) {
                let answer: Value = serde_json::from_str(&line).unwrap();
                let sender = waiting.lock().unwrap().remove(&answer["id"].as_u64().unwrap());
                // Nobody waits any more when a test has failed.
                let _ = sender.map(|sender| sender.send(answer));
            }
            waiting.lock().unwrap().clear();
        });
        Self { child, calls: Mutex::new(calls), answers, next: AtomicU64::new(0), reader: Some(reader) }
    }

    /// The runtime's answer to `method`, or its error as text.
    pub(crate) fn call(&self, method: &str, request: &Value) -> Result<Value, String> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = channel();
        self.answers.lock().unwrap().insert(id, sender);
        let call = json!({"id": id, "method": method, "seconds": SECONDS, "request": request});
        writeln!(self.calls.lock().unwrap(), "{call}").map_err(|e| format!("cri.py: {e}"))?;
        let mut answer = answered.recv().map_err(|_| format!("{method}: cri.py ended"))?;
        match answer["error"].as_str() {
            Some(error) => Err(format!("{method}: {error}")),
            None => Ok(answer["response"].take()),
        }
    }
}

impl Drop for Cri {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}
