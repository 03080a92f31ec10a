# SPDX-License-Identifier: Apache-2.0
"""The API server is away for 30 s: the pods of the node go on, and start again when their sandbox dies."""
import statistics
import time

import pods
from supervise import wait_for
from world import expect

TITLE = "API server away for 30 s, refusing and not answering"
AWAY = 30
NODE = "n1"
# Pods of each kind that are restarted in each of the two ways.
EACH = 3
# What may be added to what the kubelet takes to notice and to start a sandbox, seconds.
LIMIT = 2


def run(world, say):
    world.install()
    # Each pod is restarted once: the kubelet delays a container's second restart.
    started = world.start(*(pod for number in range(2 + 2 * EACH) for pod in (
        pods.idle(f"plain-{number}", "away", NODE, mesh=False), pods.idle(f"mesh-{number}", "away", NODE))), seconds=240)
    usual, rest = started[:4], started[4:]
    usual = statistics.median(restart(world, pod) for pod in usual)
    say(f"with the API server a sandbox that died is back after {usual:.1f} s")
    for how, leave, back in (("refuses", refuse, accept), ("does not answer", freeze, thaw)):
        leave(world)
        began = time.monotonic()
        try:
            time.sleep(3)
            waits = []
            for _ in range(2 * EACH):
                waits.append(restart(world, rest.pop()))
                time.sleep(AWAY / 2 / EACH / 2)
            time.sleep(max(0, began + AWAY - time.monotonic()))
        finally:
            back(world)
        world.wait_api()
        expect(max(waits) <= usual + LIMIT, f"the API server {how}: restarts took {waits} s, {usual:.1f} s otherwise")
        say(f"the API server {how} for {AWAY} s: {len(waits)} restarts of plain and mesh pods, longest {max(waits):.1f} s")
    world.wait_installed()
    world.delete("away")


def restart(world, pod):
    """Kills a pod's sandbox; the seconds until its application runs in another."""
    name = pod["metadata"]["name"]
    sandbox, application = tasks(world, name)
    began = time.monotonic()
    world.lab.node(NODE, "kill", "-KILL", sandbox)

    def again():
        now = tasks(world, name)
        return now and now[0] != sandbox and now[1] != application
    wait_for(f"{name} to run in another sandbox", 60, again, [world.lab.state / "logs" / NODE / "kubelet.log"])
    return time.monotonic() - began


def tasks(world, name):
    """The pids of a pod's sandbox and application, or None while one of them does not run."""
    listing = world.lab.node(NODE, "ctr", "-n", "k8s.io", "containers", "list", "-q", f'labels."io.kubernetes.pod.name"=={name}').split()
    running = {words[0]: words[1] for words in map(str.split, world.lab.node(NODE, "ctr", "-n", "k8s.io", "tasks", "list").splitlines())
               if words[2] == "RUNNING"}
    found = {}
    for container in listing:
        if container in running:
            labels = world.lab.node(NODE, "ctr", "-n", "k8s.io", "containers", "info", container)
            kind = "sandbox" if '"io.cri-containerd.kind": "sandbox"' in labels else (
                "app" if '"io.kubernetes.container.name": "app"' in labels else "other")
            found[kind] = running[container]
    return (found["sandbox"], found["app"]) if {"sandbox", "app"} <= set(found) else None


def refuse(world):
    world.lab.kill_daemon("kube-apiserver", hold=True)


def accept(world):
    world.lab.release("kube-apiserver")


def freeze(world):
    world.lab.kill_daemon("kube-apiserver", signal="STOP")


def thaw(world):
    world.lab.kill_daemon("kube-apiserver", signal="CONT")
