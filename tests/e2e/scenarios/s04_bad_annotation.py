# SPDX-License-Identifier: Apache-2.0
"""An annotation that cannot be used: the pod does not start, and its events say what to do."""
import pods
from supervise import wait_for
from world import expect

TITLE = "a bad annotation is told in the pod's events"
KEY = "traffic.sidecar.istio.io/excludeOutboundPorts"
VALUE = "3306,mysql"


def run(world, say):
    world.install()
    world.namespace_for("bad")
    world.api.create_pod(pods.sidecar("shop", "bad", annotations={KEY: VALUE}))
    event = wait_for("an event of the agent that names the annotation", 60, lambda: next(
        (event for event in world.api.events("bad", "shop")
         if KEY in event["message"] and event["reason"] != "FailedCreatePodSandBox"), None))
    say(f"{event['type']} {event['reason']}: {event['message']}")
    expect(VALUE in event["message"], f"the value {VALUE} is not said")
    expect(event["type"] == "Warning", "it is no warning")
    wait_for("the kubelet's event to say it too", 60, lambda: any(
        item["reason"] == "FailedCreatePodSandBox" and KEY in item["message"] for item in world.api.events("bad", "shop")))
    expect(world.api.pod("bad", "shop")["status"]["phase"] == "Pending", "the pod started")
    world.delete("bad")
    good, = world.start(pods.sidecar("shop", "bad", annotations={KEY: "3306"}))
    expect(world.redirected(good), "the corrected pod is not redirected")
    expect("3306" in world.rules(good), "the corrected annotation is not in the rules")
    say("the corrected pod runs, with the port in its rules")
    world.delete("bad")
