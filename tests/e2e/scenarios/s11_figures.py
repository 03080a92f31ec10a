# SPDX-License-Identifier: Apache-2.0
"""What the agent costs on a cluster, against limits. Sandboxes with our list and with that of the primary network alone start in
turn on the same node: two nodes, and one node at two times, differ by more than is measured."""
import itertools
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
MEASURES = ("sandbox time", "node CPU")
# Of the runtime, for both lists.
WITH_US, WITHOUT = HANDLERS = ("", "bare")
# Pairs of sandboxes of a kind in a round, some before them do not count; and rounds, on each node in turn, at most.
PAIRS, WARM_UP, ROUNDS = 100, 4, 12
# Stands still meanwhile. The pods are known before.
CONTROL_PLANE = ("kube-controller-manager", "kube-scheduler", "kube-apiserver", "etcd")
# Where the agent is asked for its memory.
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
    taken, uncertain = {(kind, handler): [] for kind in KINDS for handler in HANDLERS}, {}
    nodes = world.lab.nodes()
    for number in range(ROUNDS):
        kinds = [kind for kind in KINDS if number < len(nodes) or undecided(kind, figures, uncertain)]
        if not kinds:
            break
        interleaved(world, nodes[number % len(nodes)], number, kinds, taken)
        compare(taken, figures, uncertain)
    for kind, (index, measure) in itertools.product(KINDS, enumerate(MEASURES)):
        one, other = (statistics.median(values[index] for values in taken[kind, handler]) for handler in HANDLERS)
        say(f"{measure} of a {kind} pod, p50 of {len(taken[kind, WITH_US])} pairs: {one:.1f} ms with us, {other:.1f} ms without")
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


def more(measure, kind):
    return f"{measure} of a {kind} pod, p50, more than without us"


def undecided(kind, figures, uncertain):
    """Whether a limit is so near that more is to be measured. What was measured counts all the same."""
    names = [more(measure, kind) for measure in MEASURES]
    return any(abs(figures[name] - LIMITS[name][1]) < 2 * uncertain[name] for name in names)


def compare(taken, figures, uncertain):
    """Into `figures` what a pod takes more than without us, and into `uncertain` the standard error of that."""
    for kind, (index, measure) in itertools.product(KINDS, enumerate(MEASURES)):
        # One after the other: what the machine does meanwhile goes out.
        pairs = zip(taken[kind, WITH_US], taken[kind, WITHOUT], strict=True)
        differences = [one[index] - other[index] for one, other in pairs]
        name = more(measure, kind)
        figures[name], uncertain[name] = middle(differences), middle_error(differences)


def middle(values):
    """Their median as Hodges and Lehmann estimate it, from the means of any two: as robust, and less uncertain."""
    return statistics.median((one + other) / 2 for one, other in itertools.combinations_with_replacement(values, 2))


def middle_error(values):
    """Its standard error, from the half of them that is nearest to it: a machine does other things, too."""
    center = statistics.median(values)
    deviation = 1.4826 * statistics.median(abs(value - center) for value in values)
    return 1.0233 * deviation / math.sqrt(len(values))


def forget_old_groups():
    """The kernel's caches keep the memory control groups of sandboxes that are gone (version 1): after some thousands a sandbox
    takes a third longer, and not always the same."""
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")


def interleaved(world, node, number, kinds, taken):
    """Into `taken` (milliseconds of each sandbox, and of the node's CPU for it). Without the kubelet, whose work for a pod is many
    times what is measured, and while the control plane stands still."""
    forget_old_groups()
    wanted = [(place, kind, handler) for place in range(-WARM_UP, PAIRS) for kind in kinds
              for handler in (HANDLERS if place % 2 else HANDLERS[::-1])]
    world.lab.kill_daemon("kubelet", node, hold=True)
    known = [world.api.create_pod(pods.idle(f"{kind}-{place + WARM_UP}{handler and '-'}{handler}-{number}", NAMESPACE, node,
                                            mesh=kind == "mesh")) for place, kind, handler in wanted]
    wait_for("the agent to know them", 30, lambda: world.metrics(node).get("waylay_pods", 0) >= len(known))
    before = came_to_us(world, node)
    calls = runtime.Runtime(world, node)
    for daemon in CONTROL_PLANE:
        world.lab.kill_daemon(daemon, signal="STOP")
    try:
        for (place, kind, handler), pod in zip(wanted, known, strict=True):
            values = one_sandbox(world, calls, node, runtime.sandbox(pod, handler))
            if place >= 0:
                taken[kind, handler].append(values)
    finally:
        for daemon in CONTROL_PLANE:
            world.lab.kill_daemon(daemon, signal="CONT")
        calls.close()
    world.wait_api()
    came = came_to_us(world, node)
    for kind in kinds:
        expect(came[kind] - before[kind] == PAIRS + WARM_UP, f"of the {kind} pods with us {came[kind] - before[kind]:.0f} came to the agent")
    delete_all(world)
    world.lab.release("kubelet", node)
    world.wait_installed()


def came_to_us(world, node):
    """{kind: sandboxes that the agent of a node programmed, or was told of}"""
    names = {"mesh": ("waylay_adds_total", '"programmed"'), "plain": ("waylay_notices_total", '"pass"')}
    counts = world.metrics(node).items()
    return {kind: sum(count for text, count in counts if text.startswith(name) and label in text) for kind, (name, label) in names.items()}


def one_sandbox(world, calls, node, wanted):
    """(milliseconds, those of the node's CPU) until it is there; then it goes."""
    before, began = cpu(world, node), time.monotonic()
    identity = {"pod_sandbox_id": calls.call("RunPodSandbox", wanted)["pod_sandbox_id"]}
    result = 1000 * (time.monotonic() - began), cpu(world, node) - before
    for method in ("StopPodSandbox", "RemovePodSandbox"):
        calls.call(method, identity)
    return result


def cpu(world, node):
    """Milliseconds of CPU used on a node so far."""
    path = pathlib.Path("/sys/fs/cgroup/cpuacct", f"waylay-e2e-{world.lab.name}", node, "cpuacct.usage")
    return int(path.read_text(encoding="ascii")) / 1e6


def requests(world):
    """Of the agent that made the most of each."""
    figures = {name: 0 for name in LIMITS if name.startswith("API requests")}
    for agent in world.agents():
        asked = audit.requests(world)[agent["metadata"]["name"]]
        # Later watches continue the first one, every few minutes.
        early = [request for request in asked if (request.moment - asked[0].moment).total_seconds() < 60]
        counts = [audit.count(early, "list"), audit.count(early, "watch"),
                  sum(request.verb not in ("list", "watch") for request in asked)]
        figures = {name: max(one, other) for (name, one), other in zip(figures.items(), counts, strict=True)}
    return figures


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
