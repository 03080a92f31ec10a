# SPDX-License-Identifier: Apache-2.0
"""Multus calls the plugin for the pods that ask for its network, as an injector has them do with `provider: multus`."""
import pods
from world import expect, url

TITLE = "behind Multus: a NetworkAttachmentDefinition for the pods of the mesh"
LAB = {"multus": True}
VALUES = ["provider=multus", "chained=false", "cniConfFileName=istio-cni.conf", "cniConfDir=/etc/cni/multus/net.d"]
NETWORKS = {"k8s.v1.cni.cncf.io/networks": "default/istio-cni"}
NAMESPACE = "attached"
PLUGIN = "/opt/cni/bin/istio-cni"


def run(world, say):
    world.install(values=VALUES)
    server, client, outside = world.start(
        pods.sidecar("server", NAMESPACE, node="n1", annotations=NETWORKS),
        pods.sidecar("client", NAMESPACE, node="n2", native=True, annotations=NETWORKS),
        pods.plain("outside", NAMESPACE, node="n2"))

    def traffic():
        for family in (4, 6):
            for source, hops in ((client, ["client 15001", "server 15006"]), (outside, ["server 15006"])):
                status, seen, _ = world.get(source, url(server, family))
                expect((status, seen) == (200, hops), f"{source['metadata']['name']} by IPv{family}: {status} by {seen}")
    traffic()
    expect(world.rules(outside) == "", "a pod that did not ask for the network has rules")
    say("pods that ask for the network go through their proxies in both families; one that does not is left alone")
    world.uninstall()
    traffic()
    left = [line.split()[0] for line in world.tree("n1").splitlines() if line.startswith(PLUGIN + " ")]
    expect(left, "the plugin is gone while Multus needs it to delete pods")
    world.delete(NAMESPACE)
    late, = world.start(pods.plain("late", NAMESPACE, node="n1"))
    expect(world.rules(late) == "", "a plain pod has rules")
    world.delete(NAMESPACE)
    say("after the uninstall running pods go on and can be deleted, and plain ones start")
