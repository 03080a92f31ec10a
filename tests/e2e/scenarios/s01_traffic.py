# SPDX-License-Identifier: Apache-2.0
"""Pods of the mesh reach each other through their proxies, in each family; others are left alone."""
import pods
from world import expect, url

TITLE = "traffic through proxies in ipv4, ipv6 and dual-stack namespaces"
# Namespace: what its server listens at, and the families in which it is called.
NAMESPACES = {"ipv4": ("ipv4", [4]), "ipv6": ("ipv6", [6]), "dual-stack": ("dual", [4, 6])}
NETWORK_ADMIN = {"NET_ADMIN", "CAP_NET_ADMIN", "ALL"}


def run(world, say):
    seconds = world.install()
    world.lab.kubectl("wait", "--for=condition=Ready", "pod", "-n", world.namespace, "-l", "k8s-app=istio-cni-node", "--timeout=60s",
                      timeout=70)
    say("DaemonSet Ready" + (f" {seconds:.1f} s after it was applied" if seconds else ""))
    check_traffic(world, say)


def check_traffic(world, say):
    """Everything that is to hold whoever installed the agent."""
    wanted = [pods.sidecar("tcp-echo", namespace, listen=listen, node="n1", native=namespace == "ipv6")
              for namespace, (listen, _) in NAMESPACES.items()]
    wanted += [pods.sidecar("client", "sleep", node="n2"), pods.sidecar("client-native", "sleep", node="n1", native=True),
               pods.plain("outside", "sleep", node="n2"), pods.sidecar("excluded", "kube-system", node="n2")]
    # In an excluded namespace the validation would, rightly, find nothing.
    wanted[-1]["spec"]["initContainers"].clear()
    started = world.start(*wanted)
    servers = dict(zip(NAMESPACES, started))
    client, native, outside, excluded = started[len(NAMESPACES):]
    requests = echoes = 0
    for namespace, (_, families) in NAMESPACES.items():
        for family in families:
            target = servers[namespace]
            for source, hops in ((client, ["client 15001", "tcp-echo 15006"]), (native, ["client-native 15001", "tcp-echo 15006"]),
                                 (outside, ["tcp-echo 15006"])):
                check(world, source, url(target, family), hops, "tcp-echo")
            # The other direction: what was the server calls, through its own proxy, one whose proxy serves all it has.
            check(world, target, url(client, family), ["tcp-echo 15001", "client 15006"], "client")
            requests += 4
            # The proxy in front of the server is who connects to it, from the address that the rules know it by.
            seen = {source["metadata"]["name"]: world.echo(source, target, family) for source in (client, native, outside)}
            expect(set(seen.values()) == {f"hello world from {'::6' if family == 6 else '127.0.0.6'}"}, f"echo by IPv{family}: {seen}")
            echoes += 3
    say(f"{requests} requests went through the proxies of both sides, in both directions")
    for source in (client, native):
        counted = connections(world, source)
        expect(counted == echoes // 3, f"of {echoes // 3} connections {counted} went through the proxy of {source['metadata']['name']}")
    say(f"{echoes} connections that are not HTTP went the same way, counted by the proxies")
    check(world, outside, url(excluded, 4), [], "excluded")
    check(world, excluded, url(outside, 4), [], "outside")
    expect(world.rules(excluded) == "" and world.rules(outside) == "", "an excluded or plain pod has rules")
    say("a pod in an excluded namespace and a plain pod have no rules, and no proxy took their traffic")
    privileged = [pod["metadata"]["name"] for pod in started if NETWORK_ADMIN & added_capabilities(pod)]
    expect(not privileged, f"containers with NET_ADMIN in {privileged}")
    redirected = [pod for pod in started if world.redirected(pod)]
    expect(len(redirected) == 5, f"redirected: {[pod['metadata']['name'] for pod in redirected]}")
    say("validation init containers passed; no container of any pod has NET_ADMIN")
    world.delete(*NAMESPACES, "sleep")
    world.api.delete_pod("kube-system", "excluded")


def check(world, source, address, hops, answered_by):
    status, seen, body = world.get(source, address)
    name = source["metadata"]["name"]
    expect(status == 200 and f'"pod":"{answered_by}"' in body, f"{name} to {address}: {status} {body}")
    expect(seen == hops, f"{name} to {address}: went by {seen}, not {hops}")


def connections(world, pod):
    """That are not HTTP, through the outbound listener of a pod's proxy."""
    _, _, body = world.get(pod, "http://127.0.0.1:15000/stats?filter=tcp.outbound.downstream_cx_total")
    return int(body.rpartition(":")[2])


def added_capabilities(pod):
    containers = pod["spec"]["containers"] + pod["spec"].get("initContainers", [])
    return {name for container in containers for name in container.get("securityContext", {}).get("capabilities", {}).get("add", [])}
