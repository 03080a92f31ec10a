# SPDX-License-Identifier: Apache-2.0
"""What the settings say about pods: selectors, runtime classes, IPv6, observing; static pods; and the events about them."""
import json
import time

import audit
import pods
from supervise import wait_for
from world import expect

TITLE = "selectors, runtime classes, static pods, observing, and events"
IN, OUT = "policy", "policy-out"
RUNTIME_CLASS = "lab-sandbox"
VALUES = ["excludeNamespaceSelector.matchLabels.lab/mesh=off", "excludePodSelector.matchLabels.lab/mesh=off",
          f"runtimeClassBypass.classes={{{RUNTIME_CLASS}}}"]
NODE = "n1"


def run(world, say):
    runtime_class = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": RUNTIME_CLASS}, "handler": "runc"}
    world.lab.kubectl("apply", "-f", "-", input=json.dumps(runtime_class))
    world.namespace_for(IN)
    world.namespace_for(OUT, labels={"lab/mesh": "off"})
    if world.installed:
        world.uninstall()
    world.install(values=VALUES)
    selectors(world, say)
    bypasses(world, say)
    static_pod(world, say)
    fight(world, say)
    world.install(values=[*VALUES, "runtimeClassBypass.policy=refuse"])
    refused_class(world, say)
    world.install(values=["mode=observe"])
    observe(world, say)
    world.uninstall()


def selectors(world, say):
    pod_out, = world.start(pods.idle("out", IN, NODE, labels={"lab/mesh": "off"}))
    inside, outside = world.start(pods.idle("in", IN, NODE), pods.idle("in", OUT, NODE))
    expect(world.redirected(inside), "a pod that no selector selects is not redirected")
    expect(world.rules(outside) == world.rules(pod_out) == "", "an excluded pod has rules")
    # The labels of a namespace change while its pods come and go.
    for value, wanted in (("on", True), ("off", False)):
        world.lab.kubectl("label", "namespace", OUT, f"lab/mesh={value}", "--overwrite")
        time.sleep(0.5)
        pod, = world.start(pods.idle(f"label-{value}", OUT, NODE))
        expect(world.redirected(pod) == wanted, f"with the label {value} of its namespace the pod's redirection is not {wanted}")
    same_everywhere(world, "excluded_by_selector", 'waylay_adds_total{result="done",reason="excluded_by_selector"}')
    asked = audit.requests(world)[world.agent_on(NODE)]
    expect(audit.count(asked, "list", "namespaces") == audit.count(asked, "watch", "namespaces") == 1, f"asked for namespaces: {asked}")
    expect(not audit.count(asked, "get"), "an ADD asked for its pod")
    say("namespace and pod selectors: excluded pods have no rules, also after the namespace's label changed; one more list and watch")


def bypasses(world, say):
    """Pods that are redirected, and yet something goes past their proxy."""
    single, classy = pods.idle("single", IN, NODE, dual_stack=False), pods.idle("classy", IN, NODE)
    classy["spec"]["runtimeClassName"] = RUNTIME_CLASS
    world.start(single, classy)
    for name, reason in (("single", "ipv6_bypass"), ("classy", "runtime_class_bypass")):
        event = the_event(world, IN, name, reason)
        same_everywhere(world, reason, f'waylay_bypasses_total{{reason="{reason}"}}')
        say(f"{reason}, in log, metric and event: {event['message']}")
    expect(not of_the_agent(world, IN, "in"), "a redirected pod has an event")


def static_pod(world, say):
    """A manifest on the node's disk, though it looks like a pod of the mesh."""
    pod = pods.idle("static", IN)
    path = "/etc/kubernetes/manifests/static.json"
    world.lab.node(NODE, "sh", "-c", f"cat >{path}.new && mv {path}.new {path}", input=json.dumps(pod))
    try:
        wait_for("the static pod's mirror", 60, lambda: any(item["metadata"]["name"] == f"static-{NODE}" for item in world.api.pods(IN)))
        mirror = world.ready(IN, f"static-{NODE}")
        expect(world.rules(mirror) == "", "a static pod has rules")
        line = wait_for("the reason static_pod in the agent's log", 30, lambda: next(
            (line for line in world.agent_log(NODE).splitlines() if "static_pod" in line and f"static-{NODE}" in line), None))
    finally:
        world.lab.node(NODE, "rm", path)
    say(f"a static pod runs without rules: {line[line.find('op='):][:100]}")
    wait_for("the static pod to go", 60, lambda: not any(item["metadata"]["name"] == f"static-{NODE}" for item in world.api.pods(IN)))


def fight(world, say):
    """Somebody removes our entry again and again."""
    agent = world.agent_on(NODE)
    script = "for i in $(seq 200); do rm -f /etc/cni/net.d/02-istio-cni.conflist; [ -e /run/stop-the-fight ] && exit; sleep 0.1; done"
    remover = world.lab.start_on_node(NODE, "sh", "-c", script)
    try:
        event = the_event(world, world.namespace, agent, "install_fight")
    finally:
        world.lab.node(NODE, "touch", "/run/stop-the-fight")
        remover.wait(timeout=30)
        world.lab.node(NODE, "rm", "/run/stop-the-fight")
    wait_for("our entry to be back", 60, lambda: "istio-cni" in world.lab.node(NODE, "sh", "-c", "cat /etc/cni/net.d/02-* || true"))
    say(f"an event on the agent's pod: {event['message']}")


def refused_class(world, say):
    pod = pods.idle("refused", IN, NODE)
    pod["spec"]["runtimeClassName"] = RUNTIME_CLASS
    world.api.create_pod(pod)
    event = the_event(world, IN, "refused", "runtime_class_bypass")
    expect(world.api.pod(IN, "refused")["status"]["phase"] == "Pending", "it started all the same")
    say(f"refused: {event['message']}")
    world.delete(IN, OUT)


def observe(world, say):
    mesh, = world.start(pods.idle("mesh", IN, NODE))
    bad, = world.start(pods.idle("bad", IN, NODE, annotations={"traffic.sidecar.istio.io/excludeOutboundPorts": "mysql"}))
    expect(world.rules(mesh) == world.rules(bad) == "", "an agent that observes wrote rules")
    for would in ("programmed", "invalid_annotation"):
        wait_for(f"the log to say that {would} would have been", 10, lambda would=would: any(
            "observed" in line and would in line for line in world.agent_log(NODE).splitlines()))
    # Enough time for an event about a pod that runs without a record.
    time.sleep(3)
    expect(not of_the_agent(world, IN, "mesh"), "an agent that observes has something to say about a pod")
    say("observing: mesh pods start without rules, also one with a bad annotation, and the log says what would have been")
    world.delete(IN)


def of_the_agent(world, namespace, name):
    return [event for event in world.api.events(namespace, name) if event.get("source", {}).get("component") == "waylay"]


def the_event(world, namespace, name, reason):
    """The only one with this reason."""
    wait_for(f"the event {reason} of {name}", 60, lambda: any(
        event["reason"] == reason for event in of_the_agent(world, namespace, name)))
    events = [event for event in of_the_agent(world, namespace, name) if event["reason"] == reason]
    expect(len(events) == 1 and events[0]["type"] == "Warning" and events[0]["count"] == 1, f"not one warning: {events}")
    # It must be found where people look.
    expect(reason in world.lab.kubectl("describe", "pod", "-n", namespace, name), f"kubectl describe does not show {reason}")
    return events[0]


def same_everywhere(world, reason, metric):
    """A reason code is spelled the same in the log and in the metrics."""
    wait_for(f"{reason} in the log", 10, lambda: reason in world.agent_log(NODE))
    counted = {name: value for name, value in world.metrics(NODE).items() if metric in name and value}
    expect(counted, f"{metric} does not count it")
