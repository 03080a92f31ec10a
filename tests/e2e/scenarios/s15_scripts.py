# SPDX-License-Identifier: Apache-2.0
"""Without Helm: the plain manifests, put on and taken off by install-scripts/."""
import os
import subprocess

import pods
from world import difference, expect, url

TITLE = "install.sh, preflight.sh, uninstall.sh and node-cleanup.sh on a cluster"
IMAGE, NAMESPACE = ["--image", "localhost/waylay:dev"], "scripts"


def run(world, say):
    if world.installed:
        world.uninstall()
        world.wait_clean("the uninstall of what was there")
    done = script(world, "preflight.sh", "--cluster")
    expect(done.returncode == 0, f"preflight.sh: {done.stdout}{done.stderr}")
    for time in ("first", "second"):
        done = script(world, "install.sh", *IMAGE)
        expect(done.returncode == 0, f"install.sh, for the {time} time: {done.stderr}")
    say(f"install.sh, twice: {done.stderr.strip().splitlines()[-1]}")
    # Also when agents that had just been uninstalled were still at it.
    for node in world.lab.nodes():
        world.lab.node(node, "ls", "/run/istio-cni/since", "/run/istio-cni/sandboxes")
    server, client = world.start(pods.sidecar("server", NAMESPACE, node="n1"), pods.sidecar("client", NAMESPACE, node="n2"))
    through_proxies(world, client, server)
    done = script(world, "uninstall.sh")
    expect(done.returncode == 0, f"uninstall.sh: {done.stderr}")
    world.wait_clean("uninstall.sh", seconds=5)
    through_proxies(world, client, server)
    say(f"uninstall.sh: {done.stderr.strip().splitlines()[-1]}; the nodes are as before, and pods that run go on")
    leftovers(world, say)
    world.delete(NAMESPACE)


def through_proxies(world, client, server):
    status, hops, body = world.get(client, url(server, 6))
    expect(hops == ["client 15001", "server 15006"], f"not through the proxies: {status} {hops} {body[:300]}")


def leftovers(world, say):
    """Agents that were killed with their namespace clean nothing: one node is cleaned by hand, and the cluster by uninstall.sh."""
    expect(script(world, "install.sh", *IMAGE, "--no-canary").returncode == 0, "install.sh")
    for pod in world.agents():
        node = pod["spec"]["nodeName"]
        # It cannot say goodbye.
        world.lab.node(node, "kill", "-STOP", world.agent_pid(node))
    world.lab.kubectl("delete", "namespace", "istio-cni", "--timeout=120s", timeout=130)
    trees = {node: world.tree(node) for node in world.lab.nodes()}
    expect(all(trees[node] != tree for node, tree in world.before.items()), "the agents cleaned up: nothing is proven")
    world.lab.node("n1", "sh", "-s", input=(world.scripts / "node-cleanup.sh").read_text(encoding="utf-8"))
    expect(world.tree("n1") == world.before["n1"], f"node-cleanup.sh left:\n{difference(world.before['n1'], world.tree('n1'))}")
    done = script(world, "uninstall.sh", *IMAGE)
    expect(done.returncode == 0, f"uninstall.sh without the namespace: {done.stderr}")
    world.wait_clean("uninstall.sh", seconds=5)
    left = world.lab.kubectl("get", "namespaces,clusterroles,clusterrolebindings", "-o", "name")
    expect("istio-cni" not in left, f"uninstall.sh left {left}")
    say("gone with the namespace: node-cleanup.sh cleans its node, uninstall.sh the others and the rest of the cluster")


def script(world, name, *arguments):
    """As a person runs it, with the cluster's kubectl."""
    environment = dict(os.environ, PATH=f"{world.lab.state}/bin:{os.environ['PATH']}")
    return subprocess.run([world.scripts / name, *arguments], env=environment, capture_output=True, text=True, timeout=300)
