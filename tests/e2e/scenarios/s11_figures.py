# SPDX-License-Identifier: Apache-2.0
"""What the agent costs on a cluster, against limits. One node has the agent and the other has not; pods start on both in turn."""
import contextlib
import json
import pathlib
import re
import statistics
import time
from datetime import datetime

import audit
import pods
from supervise import wait_for
from world import expect

TITLE = "figures"
NAMESPACE, PODS, KNOWN = "figures", 30, 250
# Where the agent is in the end.
NODE = "n1"
# (figure, unit, limit)
LIMITS = {
    "DaemonSet Ready after helm install": ("s", 3),
    "sandbox time of a mesh pod, p50, more than without us": ("ms", 5),
    "sandbox time of a plain pod, p50, more than without us": ("ms", 2),
    "node CPU of a mesh pod, p50, more than without us": ("ms", 5),
    "node CPU of a plain pod, p50, more than without us": ("ms", 2),
    f"agent's memory with {KNOWN} pods, RSS": ("MB", 12),
    f"agent's memory with {KNOWN} pods, control group": ("MB", 20),
    "API requests of an agent: lists at its start": ("", 1),
    "API requests of an agent: watches at its start": ("", 1),
    "API requests of an agent: others, all ADDs included": ("", 0),
}


def run(world, say):
    if world.installed:
        world.uninstall()
    world.namespace_for(NAMESPACE)
    figures = {"DaemonSet Ready after helm install": world.install()}
    # With us and without on each node in turn: no two nodes are alike.
    taken = {}
    for with_us, without in (world.lab.nodes()[::-1], world.lab.nodes()):
        alone_on(world, with_us, without)
        for kind in ("mesh", "plain"):
            for node, (seconds, cpu) in interleaved(world, kind, with_us).items():
                times, spent = taken.setdefault((kind, node == with_us), ([], []))
                times.append(statistics.median(seconds))
                spent.append(statistics.median(cpu))
    for kind in ("mesh", "plain"):
        (times, spent), (times_without, spent_without) = taken[kind, True], taken[kind, False]
        figures[f"sandbox time of a {kind} pod, p50, more than without us"] = 1000 * (statistics.mean(times) - statistics.mean(times_without))
        figures[f"node CPU of a {kind} pod, p50, more than without us"] = statistics.mean(spent) - statistics.mean(spent_without)
        say(f"{kind} pods, {PODS} on each node: sandbox p50 {words(1000 * value for value in times)} ms with us, "
            f"{words(1000 * value for value in times_without)} ms without; CPU of a node for each {words(spent)} ms, {words(spent_without)} ms")
    figures.update(requests(world))
    figures.update(memory(world))
    over = []
    for name, (unit, limit) in LIMITS.items():
        value = figures[name]
        say(f"{name}: {value:.1f} {unit} (limit {limit} {unit})")
        if value > limit:
            over.append(name)
    world.uninstall()
    expect(not over, f"over the limit: {', '.join(over)}")


def words(values):
    return " and ".join(f"{value:.0f}" for value in values)


def alone_on(world, node, other):
    """An agent on `node`; agent, plugin and entry are off the other one."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}}}
    world.lab.kubectl("patch", "daemonset", "istio-cni-node", "-n", world.namespace, "-p", json.dumps(patch))
    world.wait_installed()
    wait_for(f"the agent of {other} to leave", 60, lambda: len(world.api.pods(world.namespace, "k8s-app=istio-cni-node")) == 1)
    world.lab.node(other, "rm", "-f", "/etc/cni/net.d/02-istio-cni.conflist", "/opt/cni/bin/istio-cni")
    time.sleep(1)  # the runtime reads the directory again


def interleaved(world, kind, first):
    """{node: (seconds of each sandbox, milliseconds of the node's CPU for each pod)}"""
    spent = {node: [] for node in world.lab.nodes()}
    for number in range(PODS):
        for node in spent:
            # Nothing but a sandbox and idle containers: a proxy would be most of the CPU.
            name = f"{kind}-{number}-of-{first}-{node}"
            pod = pods.idle(name, NAMESPACE, node, mesh=kind == "mesh")
            before = cpu(world, node)
            world.start(pod)
            spent[node].append(cpu(world, node) - before)
            world.api.delete_pod(NAMESPACE, name)
            wait_for(f"{name} to be gone", 60, lambda: not world.api.pods(NAMESPACE))
            time.sleep(0.2)
    return {node: (sandbox_seconds(world, node, re.compile(rf"{kind}-\d+-of-{first}-")), values) for node, values in spent.items()}


def cpu(world, node):
    """Milliseconds of CPU used on a node so far."""
    path = pathlib.Path("/sys/fs/cgroup/cpuacct", f"waylay-e2e-{world.lab.name}", node, "cpuacct.usage")
    return int(path.read_text(encoding="ascii")) / 1e6


def sandbox_seconds(world, node, names):
    """From containerd's log: how long it worked on the sandbox of each pod."""
    begun, times = {}, []
    pattern = re.compile(r'time="([^"]{26})[^"]*" .*RunPodSandbox for name:\\"([^\\]+)')
    for line in (world.lab.state / "logs" / node / "containerd.log").read_text(encoding="utf-8").splitlines():
        match = pattern.match(line)
        if match and names.match(match[2]):
            moment = datetime.fromisoformat(match[1])
            if "returns sandbox id" in line:
                times.append((moment - begun[match[2]]).total_seconds())
            else:
                begun[match[2]] = moment
    return times


def requests(world):
    agent, = world.agents()
    asked = audit.requests(world)[agent["metadata"]["name"]]
    # Later watches continue the first one, every few minutes.
    early = [request for request in asked if (request.moment - asked[0].moment).total_seconds() < 60]
    return {
        "API requests of an agent: lists at its start": audit.count(early, "list"),
        "API requests of an agent: watches at its start": audit.count(early, "watch"),
        "API requests of an agent: others, all ADDs included": sum(request.verb not in ("list", "watch") for request in asked),
    }


def memory(world):
    """With many pods known: bound to the node, but the kubelet is away."""
    world.lab.kill_daemon("kubelet", NODE, hold=True)
    try:
        for number in range(KNOWN):
            pod = pods.sidecar(f"known-{number}", NAMESPACE, node=NODE, grace=0)
            world.api.create_pod(pod)
        wait_for("the agent to know them", 30, lambda: world.metrics(NODE).get("waylay_pods", 0) >= KNOWN)
        time.sleep(1)
        resident, group = world.agent_memory(NODE)
        world.api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods?gracePeriodSeconds=0")
    finally:
        world.lab.release("kubelet", NODE)
    return {f"agent's memory with {KNOWN} pods, RSS": resident, f"agent's memory with {KNOWN} pods, control group": group}
