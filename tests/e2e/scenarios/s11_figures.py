# SPDX-License-Identifier: Apache-2.0
"""What the agent costs on a cluster, against limits. One node has the agent and the other has not; pods start on both in turn."""
import itertools
import json
import math
import os
import pathlib
import statistics
import time

import audit
import pods
import runtime
from supervise import wait_for
from world import expect

TITLE = "figures"
LAB = {"cni_version": "1.0.0"}  # a cluster of its own
NAMESPACE, KNOWN, KINDS = "figures", 250, ("mesh", "plain")
COMPARED = [(kind, index, name) for kind in KINDS for index, name in enumerate(("sandbox time", "node CPU"))]
# Sandboxes of a kind on a node in a round, some before them do not count; and rounds at most.
SANDBOXES, WARM_UP, ROUNDS = 100, 4, 4
# Stands still meanwhile. The pods are known before.
CONTROL_PLANE = ("kube-controller-manager", "kube-scheduler", "kube-apiserver", "etcd")
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
    taken, uncertain = [], {}
    while len(taken) < 2 * ROUNDS and undecided(figures, uncertain):
        # With us and without on each node in turn: no two nodes are alike.
        for with_us, without in (world.lab.nodes()[::-1], world.lab.nodes()):
            alone_on(world, with_us, without)
            forget_old_groups()
            taken.append((with_us, without, interleaved(world, with_us)))
        compare(taken, figures, uncertain)
    for kind, index, name in COMPARED:
        medians = [" against ".join(f"{statistics.median(values[kind, node][index]):.1f}" for node in (with_us, without))
                   for with_us, without, values in taken]
        say(f"{name} of a {kind} pod, p50 of {SANDBOXES}, with us against without: {', '.join(medians)} ms")
    figures.update(requests(world))
    figures.update(memory(world))
    over = []
    for name, (unit, limit) in LIMITS.items():
        value, error = figures[name], uncertain.get(name, 0)
        say(f"{name}: {value:.1f}{f' ± {error:.1f}' if error else ''} {unit} (limit {limit} {unit})")
        if value > limit:
            over.append(name)
    world.uninstall()
    expect(not over, f"over the limit: {', '.join(over)}")


def undecided(figures, uncertain):
    """Whether a limit is so near that more is to be measured. What was measured counts all the same."""
    return not uncertain or any(abs(figures[name] - LIMITS[name][1]) < 2 * error for name, error in uncertain.items())


def compare(taken, figures, uncertain):
    """Into `figures` what a pod takes more than without us, and into `uncertain` the standard error of that."""
    for kind, index, name in COMPARED:
        more, errors = [], []
        for with_us, without, values in taken:
            # One after the other: what the machine does meanwhile goes out.
            differences = [one - other for one, other in zip(values[kind, with_us][index], values[kind, without][index], strict=True)]
            more.append(middle(differences))
            errors.append(middle_error(differences))
        figure = f"{name} of a {kind} pod, p50, more than without us"
        figures[figure], uncertain[figure] = statistics.mean(more), math.hypot(*errors) / len(errors)


def middle(values):
    """Their median as Hodges and Lehmann estimate it, from the means of any two: as robust, and less uncertain."""
    return statistics.median((one + other) / 2 for one, other in itertools.combinations_with_replacement(values, 2))


def middle_error(values):
    """Its standard error, from the half of them that is nearest to it: a machine does other things, too."""
    center = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - center) for value in values)
    return 1.0233 * deviation / math.sqrt(len(values))


def alone_on(world, node, other):
    """An agent on `node`; agent, plugin and entry are off the other one."""
    patch = {"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}}}}
    world.lab.kubectl("patch", "daemonset", "istio-cni-node", "-n", world.namespace, "-p", json.dumps(patch))
    world.wait_installed()
    wait_for(f"the agent of {other} to leave", 60, lambda: len(world.api.pods(world.namespace, "k8s-app=istio-cni-node")) == 1)
    world.lab.node(other, "rm", "-f", "/etc/cni/net.d/02-istio-cni.conflist", "/opt/cni/bin/istio-cni")
    time.sleep(1)  # the runtime reads the directory again


def forget_old_groups():
    """The kernel's caches keep the memory control groups of sandboxes that are gone (version 1): after some thousands a sandbox
    takes a third longer, and not always the same."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def interleaved(world, first):
    """{(kind, node): (milliseconds of each sandbox, and of the node's CPU for it)}, on two nodes in turn. Without kubelets,
    whose work for a pod is many times what is measured, and while the control plane stands still."""
    nodes = world.lab.nodes()
    wanted = [(number, kind, node) for number in range(-WARM_UP, SANDBOXES) for kind in KINDS
              for node in (nodes if number % 2 else nodes[::-1])]
    taken = {(kind, node): ([], []) for kind in KINDS for node in nodes}
    for node in nodes:
        world.lab.kill_daemon("kubelet", node, hold=True)
    known = [world.api.create_pod(pods.idle(f"{kind}-{number + WARM_UP}-of-{first}-{node}", NAMESPACE, node, mesh=kind == "mesh"))
             for number, kind, node in wanted]
    wait_for("the agent to know them", 30, lambda: world.metrics(first).get("waylay_pods", 0) >= len(known) / len(nodes))
    runtimes = {node: runtime.Runtime(world, node) for node in nodes}
    for daemon in CONTROL_PLANE:
        world.lab.kill_daemon(daemon, signal="STOP")
    try:
        for (number, kind, node), pod in zip(wanted, known, strict=True):
            took, spent = one_sandbox(world, runtimes[node], node, pod)
            if number >= 0:
                taken[kind, node][0].append(took)
                taken[kind, node][1].append(spent)
    finally:
        for daemon in CONTROL_PLANE:
            world.lab.kill_daemon(daemon, signal="CONT")
        for node in nodes:
            runtimes[node].close()
    world.wait_api()
    delete_all(world)
    for node in nodes:
        world.lab.release("kubelet", node)
    world.wait_installed()
    return taken


def one_sandbox(world, calls, node, pod):
    """(milliseconds, those of the node's CPU) until it is there; then it goes."""
    before, began = cpu(world, node), time.monotonic()
    identity = {"pod_sandbox_id": calls.call("RunPodSandbox", runtime.sandbox(pod))["pod_sandbox_id"]}
    result = 1000 * (time.monotonic() - began), cpu(world, node) - before
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        calls.call(method, identity)
    return result


def cpu(world, node):
    """Milliseconds of CPU used on a node so far."""
    path = pathlib.Path("/sys/fs/cgroup/cpuacct", f"waylay-e2e-{world.lab.name}", node, "cpuacct.usage")
    return int(path.read_text(encoding="ascii")) / 1e6


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
        delete_all(world)
    finally:
        world.lab.release("kubelet", NODE)
    return {f"agent's memory with {KNOWN} pods, RSS": resident, f"agent's memory with {KNOWN} pods, control group": group}


def delete_all(world):
    """Without their kubelets."""
    world.api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods?gracePeriodSeconds=0")
