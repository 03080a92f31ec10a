# SPDX-License-Identifier: Apache-2.0
"""The real API server: what it grants, its restart, history it has forgotten, tokens it refuses, and how many pods it has."""
import datetime
import json
import threading
import time
import urllib.request

import api
import audit
import pods
import s09_api_away as away
from supervise import wait_for
from world import expect

TITLE = "API server: rights, restart, compaction, refused tokens, 5,000 pods elsewhere, 250 on the node"
NAMESPACE, BAD = "server", {"traffic.sidecar.istio.io/excludeOutboundPorts": "3306,mysql"}
ELSEWHERE, HERE = 5000, 250
ETCD = "http://127.0.0.1:2379/v3/kv"


def run(world, say):
    if world.installed:
        world.uninstall()
    world.namespace_for(NAMESPACE)
    for shape in ("existing-1.32", "chart"):
        rights(world, shape, lambda text, shape=shape: say(f"{shape}: {text}"))
    world.install()
    restart(world, say)
    compaction(world, say)
    refused_tokens(world, say)
    elsewhere(world, say)
    here(world, say)


def rights(world, shape, say):
    """All that the agents ask for, from their start to their end, and whether they may."""
    world.install(shape)
    world.start(pods.idle("good", NAMESPACE, "n1"))
    world.api.create_pod(pods.idle(f"bad-{shape}", NAMESPACE, "n2", annotations=BAD))
    wait_for("the event of the agent", 60, lambda: any(event["reason"] == "invalid_annotation" for event in world.api.events(NAMESPACE, f"bad-{shape}")))
    world.delete(NAMESPACE)
    agents = {pod["metadata"]["name"] for pod in world.agents()}
    world.uninstall()
    world.wait_clean(f"the uninstall of {shape}")
    asked = [request for name, requests in audit.requests(world).items() if name in agents for request in requests]
    granted = {f"{request.verb} {request.resource}" for request in asked if 200 <= request.code < 300}
    refused = {f"{request.verb} {request.resource}" for request in asked if request.code in (401, 403)}
    say(f"{len(asked)} requests of {len(agents)} agents; granted: {', '.join(sorted(granted))}; refused: {', '.join(sorted(refused)) or 'none'}")
    expect(granted - {"get daemonsets"} == {"list pods", "watch pods", "create events"}, "they asked for more, or less")
    # Whether it is an uninstall is asked while the rights are taken away.
    expect(refused <= {"get daemonsets"}, "they asked for what they may not")


def watching_again(world, before):
    """Until the agents' watches go on. (An ADD before that asks for its pod after 2 s.)"""
    def quiet():
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        last = [requests[-1] for requests in since(world, before).values() if requests]
        return len(last) == len(before) and all(request.verb == "watch" and (now - request.moment).total_seconds() > 5 for request in last)
    wait_for("the agents' watches to go on", 90, quiet)


def restart(world, say):
    before = asked_by_node(world)
    world.lab.kill_daemon("kube-apiserver")
    world.wait_api()
    watching_again(world, before)
    start_and_delete(world, "restarted")
    more = since(world, before)
    expect(not any(audit.count(requests, "get") for requests in more.values()), f"an ADD asked for its pod: {more}")
    say(f"started again: new mesh pods are redirected; each agent asked {counted(more)}")


def compaction(world, say):
    """The API server forgets what the agents' watches would continue from."""
    before = asked_by_node(world)
    for number in range(20):
        pod = pods.idle(f"churn-{number}", NAMESPACE)
        pod["spec"]["schedulerName"] = "nobody"
        world.api.create_pod(pod)
        world.api.delete_pod(NAMESPACE, f"churn-{number}")
    world.lab.kill_daemon("kube-apiserver", hold=True)
    revision = int(etcd("range", {"key": "AA=="})["header"]["revision"])
    etcd("compaction", {"revision": revision, "physical": True})
    world.lab.release("kube-apiserver")
    world.wait_api()
    watching_again(world, before)
    start_and_delete(world, "compacted")
    more = since(world, before)
    expect(all(audit.count(requests, "list") == 1 for requests in more.values()), f"not one new list each: {counted(more)}")
    expect(not any(audit.count(requests, "get") for requests in more.values()), f"an ADD asked for its pod: {more}")
    say(f"history compacted up to revision {revision}: new mesh pods are redirected; each agent asked {counted(more)}")


def refused_tokens(world, say):
    """The API server takes another signing key: every token is refused (401) until the kubelet brings new ones."""
    known, fresh = pods.idle("known", NAMESPACE, away.NODE), pods.idle("fresh", NAMESPACE, away.NODE)
    known, = world.start(known)
    agents = {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in world.agents()}
    before = watch_errors(world)
    world.lab.kill_daemon("kube-apiserver", hold=True)
    world.lab.new_signing_key()
    world.lab.release("kube-apiserver")
    world.wait_api()
    wait_for("a refused watch", 60, lambda: all(watch_errors(world)[node] > before[node] for node in before))
    took = away.restart(world, known)
    # The pod's status is behind.
    _, application = away.tasks(world, "known")
    rules = world.lab.node(away.NODE, "nsenter", f"--net=/proc/{application}/ns/net", "nft", "list", "ruleset")
    expect("redirect to :15006" in rules, "a known pod that started again is not redirected")
    say(f"tokens refused: a known mesh pod is back, redirected, after {took:.1f} s")
    world.api.create_pod(fresh)
    event = wait_for("the ADD of an unknown pod to fail", 60, lambda: next(
        (event for event in world.api.events(NAMESPACE, "fresh") if event["reason"] == "FailedCreatePodSandBox"), None))
    say(f"an unknown one does not start: {event['message'][-160:]}")
    began = time.monotonic()
    for node in world.lab.nodes():
        world.lab.kill_daemon("kubelet", node)
    fresh = world.ready(NAMESPACE, "fresh", 180)
    expect(world.redirected(fresh), "it is not redirected in the end")
    expect(agents == {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in world.agents()},
           "an agent was started again")
    say(f"new tokens: it runs, redirected, {time.monotonic() - began:.0f} s after the kubelets brought them, with the same agents")
    world.delete(NAMESPACE)


def elsewhere(world, say):
    """Pods of other nodes: bound to a node that has no kubelet."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "elsewhere"}}
    world.lab.kubectl("apply", "-f", "-", input=json.dumps(node))
    world.namespace_for("elsewhere")
    before, requests, (resident, _), cpu = world.metrics("n1")["waylay_pods"], asked_by_node(world), world.agent_memory("n1"), world.agent_cpu("n1")
    began = time.monotonic()
    failures = []
    threads = [threading.Thread(target=create_elsewhere, args=(world, range(first, ELSEWHERE, 4), failures)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(not failures, f"pods could not be created: {failures[:3]}")
    took = time.monotonic() - began
    expect(world.metrics("n1")["waylay_pods"] <= before, "the agent knows pods of other nodes")
    grown, cpu = world.agent_memory("n1")[0] - resident, world.agent_cpu("n1") - cpu
    say(f"{ELSEWHERE} pods of another node created in {took:.0f} s: the agent used {1000 * cpu:.0f} ms of CPU, grew by {grown:.1f} MB, "
        f"and asked {counted({'n1': since(world, requests)['n1']})}")
    expect(cpu < 0.5 and grown < 1, "they cost the agent something")
    world.replace_agent("n1")
    say(f"an agent that starts then: {world.metrics('n1')['waylay_pods']:.0f} pods, {world.agent_memory('n1')[0]:.1f} MB resident, "
        f"asked {counted({'n1': asked_by_node(world)['n1']})}")


def create_elsewhere(world, numbers, failures):
    client = api.Api(world.lab.state / "pki")
    for number in numbers:
        pod = pods.sidecar(f"pod-{number}", "elsewhere", node="elsewhere")
        # Not to be evicted from a node that does not answer.
        pod["spec"]["tolerations"] = [{"operator": "Exists"}]
        try:
            client.create_pod(pod)
        except (api.ApiError, OSError) as error:
            failures.append(str(error))


def here(world, say):
    before, began = asked_by_node(world), time.monotonic()
    started = world.start(*(pods.idle(f"here-{number}", NAMESPACE, "n1") for number in range(HERE)), seconds=600)
    took = time.monotonic() - began
    more, metrics = since(world, before)["n1"], world.metrics("n1")
    expect(all(world.redirected(pod) for pod in started[::25]), "not redirected")
    failed = {name: value for name, value in metrics.items() if name.startswith("waylay_adds_total") and 'result="done"' not in name and value}
    resident, group = world.agent_memory("n1")
    say(f"{HERE} mesh pods on one node, all running after {took:.0f} s: ADDs refused {failed or 'none'}; the agent asked "
        f"{counted({'n1': more})}, {resident:.1f} MB resident, {group:.1f} MB of its control group")
    expect(not audit.count(more, "get"), "an ADD asked for its pod")
    expect(resident <= 12 and group <= 20, "more memory than 12 and 20 MB")
    pid, began = world.agent_pid("n1"), time.monotonic()
    world.lab.node("n1", "kill", "-KILL", pid)
    wait_for("another agent", 60, lambda: world.agent_pid("n1") not in (None, pid))
    last, = world.start(pods.idle("last", NAMESPACE, "n1"))
    expect(world.redirected(last), "the next pod is not redirected")
    expect(world.metrics("n1")["waylay_pods"] > HERE, "the agent does not know the pods of its node")
    say(f"killed: a new mesh pod runs, redirected, {time.monotonic() - began:.1f} s later; {world.agent_memory('n1')[0]:.1f} MB resident")
    world.delete(NAMESPACE)


def start_and_delete(world, name):
    """A mesh pod on each node, redirected."""
    started = world.start(*(pods.idle(f"{name}-{node}", NAMESPACE, node) for node in world.lab.nodes()))
    expect(all(map(world.redirected, started)), f"not redirected: {name}")
    world.delete(NAMESPACE)


def asked_by_node(world):
    requests = audit.requests(world)
    return {node: requests[world.agent_on(node)] for node in world.lab.nodes()}


def since(world, before):
    return {node: requests[len(before[node]):] for node, requests in asked_by_node(world).items()}


def counted(by_node):
    """`1 list and 2 watch (n1), nothing (n2)`"""
    def words(requests):
        verbs = [f"{request.verb} {request.resource}" for request in requests]
        return " and ".join(f"{verbs.count(verb)} {verb}" for verb in sorted(set(verbs))) or "nothing"
    return ", ".join(f"{words(requests)} ({node})" for node, requests in by_node.items())


def watch_errors(world):
    return {node: world.metrics(node)["waylay_pod_watch_errors_total"] for node in world.lab.nodes()}


def etcd(what, document):
    request = urllib.request.Request(f"{ETCD}/{what}", json.dumps(document).encode(), {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        return json.load(answer)
