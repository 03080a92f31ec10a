// SPDX-License-Identifier: Apache-2.0
//! How soon the agent answers a probe, and how soon with 200, on a node whose primary network's file is there: a probe
//! that comes too early costs a node the ten seconds until the next one.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::netns::Netns;

use crate::life::Host;
use crate::report::{Report, percentile};

/// Starts of the agent.
const STARTS: usize = 20;

/// Killed when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn measure(plugin: &Path, agent: &Path, report: &mut Report) {
    let (mut first, mut ready) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (host, netns) = (Host::new(plugin), Netns::fresh());
        let node = &host.node;
        let mut command = Command::new(agent);
        command
            .arg(format!("--cni-agent-run-dir={}", node.run_dir().display()))
            .arg(format!("--pod-manifest-dir={}", node.run_dir().with_file_name("pods").display()))
            .envs(host.settings())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let (answer, ok) = netns.run(move || {
            let begin = Instant::now();
            let _agent = Agent(command.spawn().unwrap());
            let until = |holds: fn(&str) -> bool| {
                while !probe().is_some_and(|answer| holds(&answer)) {
                    assert!(begin.elapsed() < Duration::from_secs(10), "the agent does not get ready");
                    std::thread::sleep(Duration::from_micros(200));
                }
                begin.elapsed().as_secs_f64() * 1e3
            };
            (
                until(|answer| answer.starts_with("HTTP/1.1 ")),
                until(|answer| answer.starts_with("HTTP/1.1 200")),
            )
        });
        first.push(answer);
        ready.push(ok);
    }
    report.limited("process start to the first answer, p90", percentile(first, 0.9), "ms", 50.0);
    report.limited("process start to /readyz 200, p90", percentile(ready, 0.9), "ms", 100.0);
}

/// The answer of `/readyz`; nothing while nobody listens.
fn probe() -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", 8000)).ok()?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}
