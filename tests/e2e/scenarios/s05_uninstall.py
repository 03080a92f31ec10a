# SPDX-License-Identifier: Apache-2.0
"""Uninstalling leaves the nodes as they were; what only looks like an uninstall does not."""
import json
import time

import pods
from supervise import wait_for
from world import CRASH, difference, expect, url

TITLE = "uninstall, and what is none"
LABEL = "lab/agent"


def run(world, say):
    for shape in ("chart",) if world.smoke else ("chart", "existing-1.32"):
        # From clean nodes: what earlier scenarios left would count as "before".
        if world.installed:
            world.uninstall()
            world.wait_clean("the uninstall of what was there")
        world.install(shape)
        uninstall(world, lambda text, shape=shape: say(f"{shape}: {text}"))
    if not world.smoke:
        for shape in ("chart", "existing-1.32"):
            gone_for_good(world, shape, lambda text, shape=shape: say(f"{shape}: {text}"))
            clean(world)


def uninstall(world, say):
    server, client = world.start(pods.sidecar("server", "stay", node="n1"), pods.sidecar("client", "stay", node="n2"))
    expect(answers(world, client, server), "the pods do not reach each other")
    installed = {node: world.tree(node) for node in world.lab.nodes()}
    expect(all(installed[node] != world.before[node] for node in installed), "installing changed nothing")
    for what, action in (("a rollout", rollout), ("a drain", drain), ("a changed label", unlabel), ("an API server that is down", api_down)):
        action(world)
        for node, tree in installed.items():
            expect(world.tree(node) == tree, f"after {what} the directories of {node} differ:\n{difference(tree, world.tree(node))}")
        say(f"{what} is no uninstall")
    began = time.monotonic()
    world.uninstall()
    world.wait_clean("the uninstall")
    say(f"{time.monotonic() - began:.1f} s after the uninstall began the directories of both nodes are as before the installation")
    expect(answers(world, client, server), "running pods do not reach each other after the uninstall")
    expect(world.redirected(client), "a running pod lost its rules")
    plain, = world.start(pods.plain("late", "stay"))
    world.delete("stay")
    say("running pods went on through their proxies, a new one started, and all could be deleted")


def gone_for_good(world, shape, say):
    """Uninstalled while the agents crash: nobody cleans the nodes."""
    world.install(shape)
    world.update("crash", CRASH, surge=False)
    wait_for("the agents to have crashed", 120, lambda: len(world.agents()) == len(world.before) and all(map(crashed, world.agents())))
    world.uninstall()
    left = [node for node, tree in world.before.items() if world.tree(node) != tree]
    expect(left, "the crashing agents cleaned up: nothing is proven")
    started = world.start(*(pods.plain(f"plain-{node}", "stay", node=node) for node in left))
    expect(len(started) == len(left), "plain pods do not start")
    world.api.create_pod(pods.sidecar("mesh", "stay", node=left[0]))
    event = wait_for("the error of a mesh pod", 120, lambda: next(
        (event for event in world.api.events("stay", "mesh") if event["reason"] == "FailedCreatePodSandBox"), None))
    expect("uninstall" in event["message"] or "node-cleanup" in event["message"],
           f"the mesh pod's error does not name the clean-up command: {event['message']}")
    world.delete("stay")
    say(f"uninstalled while the agents crashed: plain pods start on {', '.join(left)}; a mesh pod's error names the clean-up command")


def clean(world):
    """By hand, for those that come after."""
    script = (world.scripts / "node-cleanup.sh").read_text(encoding="utf-8")
    for node in world.lab.nodes():
        world.lab.node(node, "sh", "-s", input=script)
    world.wait_clean("node-cleanup.sh", seconds=5)


def crashed(pod):
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and all(status["image"].endswith(":crash") and status["restartCount"] >= 1 and "waiting" in status["state"]
                                  for status in statuses)


def rollout(world):
    world.lab.kubectl("rollout", "restart", "daemonset/istio-cni-node", "-n", world.namespace)
    world.wait_installed()


def drain(world):
    node = "n2"
    # Only our DaemonSet is asked to leave, as a node that goes away for good would have it.
    world.lab.kubectl("cordon", node)
    world.api.delete_pod(world.namespace, world.agent_on(node), grace=30)
    world.lab.kubectl("drain", node, "--ignore-daemonsets", "--pod-selector=app=nobody", "--timeout=60s", timeout=70)
    world.wait_installed()
    world.lab.kubectl("uncordon", node)


def unlabel(world):
    """The DaemonSet does not want the nodes any more, but it is there."""
    def selector(value):
        spec = {"spec": {"template": {"spec": {"nodeSelector": {LABEL: value}}}}}
        world.lab.kubectl("patch", "daemonset", "istio-cni-node", "-n", world.namespace, "-p", json.dumps(spec))
    world.lab.kubectl("label", "nodes", "--all", f"{LABEL}=yes", "--overwrite")
    selector("yes")
    world.wait_installed()
    world.lab.kubectl("label", "nodes", "--all", f"{LABEL}=no", "--overwrite")
    wait_for("the agents to leave", 60, lambda: not world.api.pods(world.namespace, "k8s-app=istio-cni-node"))
    time.sleep(1)
    trees = {node: world.tree(node) for node in world.lab.nodes()}
    expect(all(trees[node] != tree for node, tree in world.before.items()), "the nodes were cleaned")
    selector(None)
    world.wait_installed()


def api_down(world):
    """The agent is told to end while nobody can be asked."""
    node = "n1"
    pod = next(pod for pod in world.agents() if pod["spec"]["nodeName"] == node)
    world.lab.kill_daemon("kube-apiserver", hold=True)
    try:
        pid = world.pid(node, pod["status"]["containerStatuses"][0]["containerID"])
        world.lab.node(node, "kill", "-TERM", pid)
        wait_for("the agent to end", 60, lambda: world.lab.run("node", node, "kill", "-0", pid, check=False).returncode != 0)
    finally:
        world.lab.release("kube-apiserver")
    world.wait_api()
    world.wait_installed()


def answers(world, client, server):
    status, hops, _ = world.get(client, url(server, 4))
    return status == 200 and hops == ["client 15001", "server 15006"]
