# SPDX-License-Identifier: Apache-2.0
"""What the agent costs on a cluster, against limits. n1 has the agent and n2 has not; pods start on both in turn."""
import json
import pathlib
import re
import statistics
import time
from datetime import datetime

import pods
from supervise import wait_for
from world import expect

TITLE = "figures"
NAMESPACE, PODS, KNOWN = "figures", 30, 250
# (figure, unit, limit)
LIMITS = {
    "DaemonSet Ready after helm install": ("s", 3),
    "sandbox time of a mesh pod, p50, more than without us": ("ms", 5),
    "sandbox time of a plain pod, p50, more than without us": ("ms", 2),
    "node CPU of a mesh pod, more than without us": ("ms", 5),
    "node CPU of a plain pod, more than without us": ("ms", 2),
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
    figures = {}
    figures["DaemonSet Ready after helm install"] = world.install()
    alone_on_n1(world)
    for kind in ("mesh", "plain"):
        times, cpu = interleaved(world, kind)
        figures[f"sandbox time of a {kind} pod, p50, more than without us"] = 1000 * (times["n1"] - times["n2"])
        figures[f"node CPU of a {kind} pod, more than without us"] = cpu["n1"] - cpu["n2"]
        say(f"{kind} pods: sandbox p50 {1000 * times['n1']:.0f} ms with us, {1000 * times['n2']:.0f} ms without; "
            f"CPU of a node for each {cpu['n1']:.0f} ms, {cpu['n2']:.0f} ms")
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


def alone_on_n1(world):
    """Takes agent, plugin and entry off n2."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": "n1"}}}}}
    world.lab.kubectl("patch", "daemonset", "istio-cni-node", "-n", world.namespace, "-p", json.dumps(patch))
    world.wait_installed()
    wait_for("the agent of n2 to leave", 60, lambda: len(world.api.pods(world.namespace, "k8s-app=istio-cni-node")) == 1)
    script = "rm -f /etc/cni/net.d/02-istio-cni.conflist /opt/cni/bin/istio-cni && cat >/etc/cni/net.d/new && mv /etc/cni/net.d/new $0"
    world.lab.node("n2", "sh", "-c", script, "/etc/cni/net.d/10-lab.conflist", input=world.primary["n2"])
    time.sleep(1)


def interleaved(world, kind):
    """({node: median seconds of a sandbox}, {node: ms of CPU for each pod})"""
    spent = {node: 0 for node in world.lab.nodes()}
    for number in range(PODS):
        for node in world.lab.nodes():
            name = f"{kind}-{number}-{node}"
            mesh = kind == "mesh"
            pod = pods.sidecar(name, NAMESPACE, node=node, grace=0) if mesh else pods.plain(name, NAMESPACE, node=node, grace=0)
            # Nothing but a sandbox and a container: validation would not pass on n2, and a proxy would be most of the CPU.
            pod["spec"] |= {"initContainers": [], "containers": [
                {"name": "istio-proxy" if mesh else "app", "image": pods.POD, "command": ["sleep", "3600"]}]}
            before = cpu(world, node)
            world.start(pod)
            spent[node] += cpu(world, node) - before
            world.api.delete_pod(NAMESPACE, name)
    medians = {node: statistics.median(sandbox_seconds(world, node, f"{kind}-")) for node in spent}
    return medians, {node: value / PODS for node, value in spent.items()}


def cpu(world, node):
    """Milliseconds of CPU used on a node so far."""
    path = pathlib.Path("/sys/fs/cgroup/cpuacct", f"waylay-e2e-{world.lab.name}", node, "cpuacct.usage")
    return int(path.read_text(encoding="ascii")) / 1e6


def sandbox_seconds(world, node, prefix):
    """From containerd's log: how long it worked on the sandbox of each pod."""
    begun, times = {}, []
    pattern = re.compile(r'time="([^"]{26})[^"]*" .*RunPodSandbox for name:\\"([^\\]+)')
    for line in (world.lab.state / "logs" / node / "containerd.log").read_text(encoding="utf-8").splitlines():
        match = pattern.match(line)
        if match and match[2].startswith(prefix):
            moment = datetime.fromisoformat(match[1])
            if "returns sandbox id" in line:
                times.append((moment - begun[match[2]]).total_seconds())
            else:
                begun[match[2]] = moment
    return times


def requests(world):
    """From the API server's audit log: what the ServiceAccount of the agent asked, for each agent pod."""
    user = f"system:serviceaccount:{world.namespace}:istio-cni"
    seen = {}
    for line in (world.lab.state / "logs" / "audit.log").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["user"]["username"] == user and entry["stage"] == "RequestReceived":
            who = entry["user"].get("extra", {}).get("authentication.kubernetes.io/pod-name", ["?"])[0]
            seen.setdefault(who, []).append((datetime.fromisoformat(entry["requestReceivedTimestamp"].rstrip("Z")), entry["verb"]))
    asked = seen[world.agent_on("n1")]
    # Later watches continue the first one, every few minutes.
    early = [verb for moment, verb in asked if (moment - asked[0][0]).total_seconds() < 60]
    return {
        "API requests of an agent: lists at its start": early.count("list"),
        "API requests of an agent: watches at its start": early.count("watch"),
        "API requests of an agent: others, all ADDs included": sum(verb not in ("list", "watch") for _, verb in asked),
    }


def memory(world):
    """With many pods known: bound to the node, but the kubelet is away."""
    world.lab.kill_daemon("kubelet", "n1", hold=True)
    try:
        for number in range(KNOWN):
            pod = pods.sidecar(f"known-{number}", NAMESPACE, node="n1", grace=0)
            world.api.create_pod(pod)
        wait_for("the agent to know them", 30, lambda: world.metrics("n1").get("waylay_pods", 0) >= KNOWN)
        time.sleep(1)
        agent = next(pod for pod in world.agents() if pod["spec"]["nodeName"] == "n1")
        pid = world.pid("n1", agent["status"]["containerStatuses"][0]["containerID"])
        status = world.lab.node("n1", "cat", f"/proc/{pid}/status")
        script = f"cat /sys/fs/cgroup/memory/$(grep :memory: /proc/{pid}/cgroup | cut -d: -f3)/memory.usage_in_bytes"
        group = world.lab.node("n1", "sh", "-c", script)
        world.api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods?gracePeriodSeconds=0")
    finally:
        world.lab.release("kubelet", "n1")
    return {f"agent's memory with {KNOWN} pods, RSS": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 1e6,
            f"agent's memory with {KNOWN} pods, control group": int(group) / 1e6}
