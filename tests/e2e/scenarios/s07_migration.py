# SPDX-License-Identifier: Apache-2.0
"""From the existing plugin to ours and back while pods run: their rules stay, and so do their connections."""
import json
import pathlib
import re
import time

import pods
from supervise import wait_for
from world import PRIMARY, expect, url

TITLE = "migration and back with 20 running pods"
BACK_ENDS = ["iptables-legacy", "iptables-nft", "nft"]
NAMESPACE, PODS = "theirs", 20
THEIRS = pathlib.Path(__file__).resolve().parent.parent / "manifests/their-plugin.py"


def run(world, say):
    if world.installed:
        world.uninstall()
        world.wait_clean("the uninstall of what was there")
    server, = world.start(pods.plain("server", NAMESPACE, node="n1"))
    migrated = start_pods(world, server)
    before = {pod["metadata"]["name"]: rules(world, pod) for pod in migrated}
    for name, text in before.items():
        expect("15006" in text and re.search("istio-|ISTIO_", text), f"{name} has no rules of theirs:\n{text}")
    say(f"{PODS} pods redirected by the existing plugin, by {', '.join(BACK_ENDS)}, each with an open connection through its proxy")
    held = {name: held_lines(world, name) for name in before}

    def unharmed(when):
        for pod in migrated:
            name = pod["metadata"]["name"]
            expect(rules(world, pod) == before[name], f"{when} the rules of {name} are others")
        time.sleep(1)
        for name in before:
            lines = held_lines(world, name)
            expect(lines > held[name], f"{when} the connection of {name} stands still at {lines}")
            held[name] = lines
        expect(not any(restarts(world, name) for name in before), f"{when} a connection was lost")
        say(f"{when}: rules byte for byte the same, no connection lost")

    world.install()
    unharmed("our agent swapped in")
    ours, = world.start(pods.sidecar("ours", NAMESPACE, node="n2"))
    expect(world.redirected(ours) and "istio-proxy-nat" not in world.rules(ours), "a new pod is not ours, or ours and theirs")
    expect(world.get(ours, url(server, 4))[1] == ["ours 15001"], "the new pod's traffic does not go through its proxy")
    world.lab.kubectl("rollout", "restart", "daemonset/istio-cni-node", "-n", world.namespace)
    world.wait_installed()
    unharmed("our agent restarted")
    world.uninstall()
    world.wait_clean("the uninstall")
    for node in world.lab.nodes():
        their_agent(world, node, "nft")
    unharmed("our agent swapped out")
    theirs, = world.start(pods.sidecar("theirs", NAMESPACE, node="n2"))
    listing = world.rules(theirs)
    expect("istio-proxy-nat" in listing and "waylay" not in listing, "a new pod is not theirs again")
    say("a new pod was ours while our agent was there, and is theirs again")
    world.delete(NAMESPACE)
    for node in world.lab.nodes():
        their_agent(world, node, None)


def their_agent(world, node, back_end):
    """Does what the existing agent does to a node; with None, takes it away."""
    document = json.loads(world.primary[node])
    if back_end:
        world.lab.node(node, "sh", "-c", "cat >/opt/cni/bin/new && chmod 755 /opt/cni/bin/new && mv /opt/cni/bin/new /opt/cni/bin/istio-cni",
                       input=THEIRS.read_text(encoding="utf-8"))
        document["plugins"].append({"type": "istio-cni", "name": "istio-cni", "backend": back_end, "namespaces": [NAMESPACE]})
    text = json.dumps(document, indent=2) + "\n" if back_end else world.primary[node]
    world.lab.node(node, "sh", "-c", f"cat >{PRIMARY}.new && mv {PRIMARY}.new {PRIMARY}", input=text)
    if not back_end:
        world.lab.node(node, "rm", "-f", "/opt/cni/bin/istio-cni")
    time.sleep(1)  # the runtime reads the directory again


def start_pods(world, server):
    started = []
    for number, back_end in enumerate(BACK_ENDS):
        for node in world.lab.nodes():
            their_agent(world, node, back_end)
        batch = []
        for index in range(number, PODS, len(BACK_ENDS)):
            pod = pods.sidecar(f"pod-{index}", NAMESPACE, node=f"n{index % 2 + 1}")
            pod["spec"]["containers"].append({
                "name": "held", "image": pods.POD, "command": ["pod", "hold", url(server, 4, path="/echo")],
                "securityContext": pods.AS_APPLICATION})
            batch.append(pod)
        started += world.start(*batch, seconds=180)
    # Those that began before their proxy was there were started again.
    for pod in started:
        wait_for(f"the connection of {pod['metadata']['name']}", 60, lambda pod=pod: held_lines(world, pod["metadata"]["name"]) > 3)
    world.held_restarts = {pod["metadata"]["name"]: count(world, pod["metadata"]["name"]) for pod in started}
    return started


def held_lines(world, name):
    text = world.lab.kubectl("logs", "-n", NAMESPACE, name, "-c", "held", "--tail=1").strip()
    return int(text) if text.isdigit() else -1


def count(world, name):
    statuses = world.api.pod(NAMESPACE, name)["status"]["containerStatuses"]
    return next(status["restartCount"] for status in statuses if status["name"] == "held")


def restarts(world, name):
    return count(world, name) - world.held_restarts[name]


def rules(world, pod):
    """Everything in the pod's namespace, without the packets counted."""
    path = world.netns(pod)
    text = world.lab.node(pod["spec"]["nodeName"], "nsenter", f"--net={path}", "sh", "-c",
                          "nft -s list ruleset 2>&1; iptables-legacy-save 2>&1; ip6tables-legacy-save 2>&1")
    return re.sub(r"\[\d+:\d+\]|^#.*$", "", text, flags=re.MULTILINE)
