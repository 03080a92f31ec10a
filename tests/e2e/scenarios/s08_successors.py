# SPDX-License-Identifier: Apache-2.0
"""Pods of one name in a row, a Job, and an init container that needs the network before the proxy runs."""
import pods
from supervise import wait_for
from world import expect, url

TITLE = "StatefulSet successors, a Job, init containers that need the network"
KEY = "traffic.sidecar.istio.io/excludeOutboundPorts"
NAMESPACE = "row"


def run(world, say):
    world.install()
    world.namespace_for(NAMESPACE)
    successors(world, say)
    job(world, say)
    early_network(world, say)
    world.delete(NAMESPACE)


def successors(world, say):
    pod = pods.sidecar("db", NAMESPACE, annotations={KEY: "7001"})
    world.lab.kubectl("apply", "-f", "-", input=pods.listing(pods.workload("StatefulSet", pod)))
    wait_for("db-0", 30, lambda: world.api.pods(NAMESPACE, "app=db"))
    first = world.ready(NAMESPACE, "db-0")
    expect("7001" in world.rules(first), "the first pod's rules are not by its annotation")
    pod["metadata"]["annotations"][KEY] = "7002"
    world.lab.kubectl("apply", "-f", "-", input=pods.listing(pods.workload("StatefulSet", pod)))
    uid = first["metadata"]["uid"]
    wait_for("a successor of db-0", 60, lambda: any(
        item["metadata"]["uid"] != uid for item in world.api.pods(NAMESPACE, "app=db")))
    rules = world.rules(world.ready(NAMESPACE, "db-0"))
    expect("7002" in rules and "7001" not in rules, "the successor got its predecessor's settings")
    world.lab.kubectl("delete", "statefulset", "db", "-n", NAMESPACE, "--timeout=60s", timeout=70)
    say("a StatefulSet's successor has its own settings, not its predecessor's")


def job(world, say):
    pod = pods.sidecar("job", NAMESPACE, native=True)
    spec = pod["spec"] | {"restartPolicy": "Never"}
    spec["containers"][0] |= {"command": ["true"]}
    spec["containers"][0].pop("readinessProbe")
    document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": NAMESPACE},
                "spec": {"backoffLimit": 0, "template": {"metadata": {"annotations": pod["metadata"]["annotations"]}, "spec": spec}}}
    world.lab.kubectl("apply", "-f", "-", input=pods.listing(document))
    world.lab.kubectl("wait", "--for=condition=Complete", "job/job", "-n", NAMESPACE, "--timeout=60s", timeout=70)
    say("a Job with a native sidecar completes")


def early_network(world, say):
    """Before the proxy runs nothing gets out: an init container sees a refused connection, not a bypass."""
    outside, = world.start(pods.plain("outside", NAMESPACE))
    early = {"name": "early", "image": pods.POD, "command": ["pod", "get", url(outside, 4)], "securityContext": pods.AS_APPLICATION}
    classic = pods.sidecar("classic", NAMESPACE)
    classic["spec"]["initContainers"].append(early)
    native = pods.sidecar("native", NAMESPACE, native=True)
    native["spec"]["initContainers"].append(early)
    exempt = pods.sidecar("exempt", NAMESPACE, annotations={KEY: "8080"})
    exempt["spec"]["initContainers"].append(early)
    world.start(classic, native, exempt)
    logs = {name: world.lab.kubectl("logs", "-n", NAMESPACE, name, "-c", "early") for name in ("classic", "native", "exempt")}
    expect("refused" in logs["classic"], f"classic sidecar: {logs['classic']}")
    expect('"status":200' in logs["native"] and "15001" in logs["native"], f"native sidecar: {logs['native']}")
    expect('"status":200' in logs["exempt"] and "15001" not in logs["exempt"], f"excluded port: {logs['exempt']}")
    say("an init container before the proxy: refused with a classic sidecar, through the proxy with a native one, and direct where "
        "its port is excluded")
