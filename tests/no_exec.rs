// SPDX-License-Identifier: Apache-2.0
//! An ADD executes no other program, neither in the plugin nor in the agent: strace sees every execve(2).

#![allow(clippy::unwrap_used, reason = "test code")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use harness::node::{Node, Programmed, Sandbox, plugin_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What every look at a process asks for.
const EXEC: [&str; 4] = ["-f", "-qq", "-e", "trace=execve,execveat"];

/// strace on a running process and all its threads.
struct Watch {
    strace: Child,
    lines: BufReader<std::process::ChildStderr>,
}

impl Watch {
    /// Watch `pid`; it is watched when this returns.
    fn attach(pid: u32) -> Self {
        // Without -qq, strace says when it is attached.
        let mut strace = Command::new("strace")
            .args(["-f", "-e", "trace=execve,execveat", "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is installed");
        let mut lines = BufReader::new(strace.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        Self { strace, lines }
    }

    /// Stop watching: what was executed since.
    fn executed(mut self) -> Vec<String> {
        // Fails when the process has ended, and strace with it.
        let _ = kill(Pid::from_raw(i32::try_from(self.strace.id()).unwrap()), Signal::SIGINT);
        let mut said = String::new();
        self.lines.read_to_string(&mut said).unwrap();
        self.strace.wait().unwrap();
        executions(&said)
    }
}

fn executions(said: &str) -> Vec<String> {
    said.lines().filter(|line| line.contains("execve")).map(str::to_owned).collect()
}

/// What the plugin executes from its start to its end, itself included.
fn executed_by_plugin(node: &Node, verb: &str, pod: &Sandbox) -> Vec<String> {
    let Sandbox { container_id, name, namespace, .. } = pod;
    let mut plugin = Command::new("strace")
        .args(EXEC)
        .arg(plugin_binary())
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container_id)
        .env("CNI_NETNS", pod.path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace is installed");
    plugin.stdin.take().unwrap().write_all(node.config().to_string().as_bytes()).unwrap();
    let output = plugin.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    executions(&String::from_utf8(output.stderr).unwrap())
}

#[test]
fn an_add_executes_the_plugin_and_nothing_else() {
    let node = Node::new();
    let agent = node.start_agent();
    let pod = node.sandbox("web");
    node.write_mesh_pod(&pod, &[("sidecar.istio.io/interceptionMode", "TPROXY")]);
    let watch = Watch::attach(agent.pid());
    for verb in ["ADD", "CHECK", "ADD", "DEL"] {
        let executed = executed_by_plugin(&node, verb, &pod);
        assert_eq!(executed.len(), 1, "{verb}: {executed:?}");
        assert!(executed[0].contains("istio-cni"), "{executed:?}");
    }
    assert_eq!(watch.executed(), [""; 0]);
    assert_eq!(pod.programmed(), Programmed::Complete);
}

#[test]
fn a_process_that_executes_something_is_noticed() {
    // From a child, as a library would do it.
    let mut shell = Command::new("sh")
        .args(["-c", "read go; (/bin/true); read go"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let watch = Watch::attach(shell.id());
    shell.stdin.take().unwrap().write_all(b"go\ngo\n").unwrap();
    shell.wait().unwrap();
    let executed = watch.executed();
    assert!(executed.iter().any(|line| line.contains("/bin/true")), "{executed:?}");
}
