// SPDX-License-Identifier: Apache-2.0
//! The plugin and the agent on a node: how long a call takes, alone and among others, and what the agent holds on to.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::netns::Netns;
use harness::node::{Node, Programmed, Sandbox};

use crate::calls::Call;
use crate::report::{Report, median, percentile};

/// Pods that a batch starts: as many network namespaces exist at once.
const BATCH: usize = 50;
/// Batches of one call after the other, for the latency of each.
const SERIAL: usize = 6;
/// Batches in all; the others are of calls at once.
const BATCHES: usize = 30;
/// Most that the agent may grow by between one third of all ADDs and the next, in kB: pages that an allocator touches
/// late are no leak, and one that loses 1 kB an ADD is seen.
const FLAT: f64 = 250.0;

/// Pods that a busy node has.
const KNOWN: usize = 250;
/// ADDs on a node with one pod, and as many on a node with [`KNOWN`].
const KNOWN_ADDS: usize = 400;

/// Milliseconds of each call.
#[derive(Default)]
struct Times {
    nothing: Vec<f64>,
    version: Vec<f64>,
    excluded: Vec<f64>,
    mesh: Vec<f64>,
    at_once: Vec<f64>,
}

pub(crate) fn measure(plugin: &Path, agent: &Path, report: &mut Report) {
    let node = Node::new();
    let bench = Bench { netns: Netns::fresh(), plugin, node };
    let agent = bench.start_agent(agent);
    let mut times = Times::default();
    let mut memory = Vec::new();
    for batch in 0..BATCHES {
        let pods: Vec<Sandbox> = (0..BATCH).map(|n| bench.node.sandbox(&format!("web-{n}"))).collect();
        // As old as what the plugins before ours take makes it: see `lo.rs` of the agent.
        std::thread::sleep(Duration::from_millis(50));
        if batch == 0 {
            pods.iter().for_each(|pod| bench.node.write_mesh_pod(pod, &[]));
        }
        // The first batch warms up, and its times do not count.
        match batch {
            0 => drop(bench.at_once(&pods)),
            1..=SERIAL => bench.one_by_one(&pods, &mut times),
            _ => times.at_once.push(bench.at_once(&pods)),
        }
        assert_eq!(pods[0].programmed(), Programmed::Complete);
        assert_eq!(pods[BATCH - 1].programmed(), Programmed::Complete);
        for pod in &pods {
            bench.call("DEL", pod).time("");
        }
        if (batch + 1) % (BATCHES / 3) == 0 {
            memory.push(resident_kb(agent.0.id()));
        }
    }
    say(report, times, &memory);
}

/// Whether the number of pods that the agent knows changes how long an ADD takes: two nodes, called in turn.
pub(crate) fn measure_known(plugin: &Path, agent: &Path, report: &mut Report) {
    let nodes = [1, KNOWN].map(|known| {
        let bench = Bench { netns: Netns::fresh(), plugin, node: Node::new() };
        let pod = bench.node.sandbox("web-0");
        for number in 0..known {
            bench.node.write_mesh_manifest(&pod.namespace, &format!("web-{number}"), &[]);
        }
        let agent = bench.start_agent(agent);
        // In the order in which they are to end.
        (agent, pod, bench)
    });
    // As old as what the plugins before ours take makes it: see `lo.rs` of the agent.
    std::thread::sleep(Duration::from_millis(50));
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..KNOWN_ADDS {
        for ((_, pod, bench), times) in nodes.iter().zip(&mut times) {
            let prev_result = bench.node.config()["prevResult"].to_string();
            times.push(bench.call("ADD", pod).time(&prev_result));
            pod.nft("delete table inet waylay");
        }
    }
    let [one, many] = times.map(median);
    report.limited(&format!("ADD with {KNOWN} manifests known, p50"), many / one, "x with 1", 1.1);
}

fn say(report: &mut Report, times: Times, memory: &[f64]) {
    let nothing = median(times.nothing);
    report.note("/bin/true, p50", nothing, "ms");
    report.limited("VERSION, p50", median(times.version) / nothing, "x true", 0.7);
    report.limited("ADD of an excluded pod, p50", median(times.excluded) / nothing, "x true", 0.9);
    report.limited("ADD of a mesh pod, p50", median(times.mesh.clone()) / nothing, "x true", 1.8);
    report.limited("ADD of a mesh pod, p99", percentile(times.mesh.clone(), 0.99) / nothing, "x true", 4.0);
    report.note("ADD of a mesh pod, p50", median(times.mesh), "ms");
    report.limited("50 ADDs at once, all done", median(times.at_once) / nothing, "x true", 60.0);
    for (adds, kb) in [500, 1_000, 1_500].into_iter().zip(memory) {
        let name = format!("agent's memory (RSS) after {adds} ADDs");
        if adds == 1_000 {
            report.limited(&name, kb / 1e3, "MB", 8.0);
        } else {
            report.note(&name, kb / 1e3, "MB");
        }
    }
    report.limited("agent's growth from 500 to 1000 ADDs", memory[1] - memory[0], "kB", FLAT);
    report.limited("agent's growth from 1000 to 1500 ADDs", memory[2] - memory[1], "kB", FLAT);
}

/// The running agent; killed when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Bench<'a> {
    /// The agent's.
    netns: Netns,
    plugin: &'a Path,
    node: Node,
}

impl Bench<'_> {
    /// The agent with its usual settings, in a network namespace of its own.
    fn start_agent(&self, agent: &Path) -> Agent {
        let mut command = Command::new(agent);
        command
            .arg(format!("--cni-agent-run-dir={}", self.node.run_dir().display()))
            .arg(format!("--pod-manifest-dir={}", self.node.run_dir().with_file_name("pods").display()))
            .arg("--cni-enable-install=false")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let agent = Agent(self.netns.run(move || command.spawn().unwrap()));
        self.node.wait_for_agent();
        agent
    }

    /// A call for `pod` as containerd makes it.
    fn call(&self, verb: &str, pod: &Sandbox) -> Call<'_> {
        let Sandbox { container_id, name, namespace, .. } = pod;
        let args = format!(
            "K8S_POD_INFRA_CONTAINER_ID={container_id};K8S_POD_UID=0d7a6a4c-8c5f-4a66-9d3c-2b7e1f1f0a11;IgnoreUnknown=1;\
             K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
        );
        let environment = vec![
            ("CNI_COMMAND", verb.to_owned()),
            ("CNI_CONTAINERID", container_id.clone()),
            ("CNI_NETNS", pod.path()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("CNI_ARGS", args),
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()),
        ];
        Call { program: self.plugin, environment, stdin: self.node.config().to_string() }
    }

    /// Each kind of call in turn, so that all of them meet the same machine.
    fn one_by_one(&self, pods: &[Sandbox], times: &mut Times) {
        let prev_result = self.node.config()["prevResult"].to_string();
        assert_eq!(pods[0].programmed(), Programmed::Nothing);
        for pod in pods {
            let add = self.call("ADD", pod);
            times.nothing.push(Call { program: Path::new("/bin/true"), ..self.call("ADD", pod) }.time(""));
            let question = r#"{"cniVersion":"1.0.0"}"#.to_owned();
            let versions = "{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.1.0\",\"0.2.0\",\"0.3.0\",\"0.3.1\",\
                            \"0.4.0\",\"1.0.0\",\"1.1.0\"]}";
            times.version.push(Call { stdin: question, ..self.call("VERSION", pod) }.time(versions));
            let mut excluded = self.call("ADD", pod);
            let args = &mut excluded.environment.iter_mut().find(|(key, _)| *key == "CNI_ARGS").unwrap().1;
            *args = args.replace(&format!("NAMESPACE={}", pod.namespace), "NAMESPACE=kube-system");
            times.excluded.push(excluded.time(&prev_result));
            times.mesh.push(add.time(&prev_result));
        }
    }

    /// All pods at once: milliseconds until the last is done.
    fn at_once(&self, pods: &[Sandbox]) -> f64 {
        let calls: Vec<Call<'_>> = pods.iter().map(|pod| self.call("ADD", pod)).collect();
        let begin = Instant::now();
        let children: Vec<Child> = calls.iter().map(Call::start).collect();
        for child in children {
            assert!(child.wait_with_output().unwrap().status.success());
        }
        begin.elapsed().as_secs_f64() * 1e3
    }
}

/// Resident memory of a process in kB (1,000 bytes).
fn resident_kb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1.024
}
