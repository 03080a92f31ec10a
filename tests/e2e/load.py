# SPDX-License-Identifier: Apache-2.0
"""Mesh pods that keep coming while something is done to the agent, and what became of each."""
import threading
import time

import api
import pods

NAMESPACE = "load"


# On a machine that cannot keep up, pods that pile up would only measure that. Those that wait for an agent cost nothing.
ON_THE_WAY = 8


def small_pod(name, node, namespace=NAMESPACE):
    """A mesh pod that does nothing but prove that it is redirected, as istio-validation does, and ends."""
    pod = pods.sidecar(name, namespace, node=node, grace=0)
    pod["metadata"]["labels"]["app"] = "load"
    pod["spec"] |= {"restartPolicy": "Never", "initContainers": [], "containers": [pods.validation() | {"name": "istio-proxy"}]}
    return pod


class Load(threading.Thread):
    """Up to `rate` pods a second, over all nodes in turn, until `finish`."""

    def __init__(self, world, rate, on_the_way=ON_THE_WAY):
        super().__init__(daemon=True)
        self.world, self.rate, self.on_the_way = world, rate, on_the_way
        self.api = api.Api(world.lab.state / "pki")
        world.namespace_for(NAMESPACE)
        self.created, self.waits, self.unredirected = {}, {}, []
        self.began = time.monotonic()
        self.stopping, self.error, self.count = threading.Event(), None, 0

    def run(self):
        try:
            due = time.monotonic()
            while not self.stopping.is_set():
                if time.monotonic() >= due and len(self.pending()) < self.on_the_way:
                    self.create()
                    due = max(due + 1 / self.rate, time.monotonic() - 1)
                self.look()
                time.sleep(0.1)
        except Exception as error:  # reported by finish()
            self.error = error

    def create(self):
        nodes = self.world.lab.nodes()
        name = f"load-{self.count}"
        self.created[name] = time.monotonic()
        self.api.create_pod(small_pod(name, nodes[self.count % len(nodes)]))
        self.count += 1

    def look(self):
        """Notes what has proven itself and takes it away."""
        for pod in self.api.pods(NAMESPACE):
            name = pod["metadata"]["name"]
            if name not in self.created or name in self.waits or name in self.unredirected:
                continue
            phase = pod["status"].get("phase")
            if phase == "Failed":
                self.unredirected.append(name)
            elif phase == "Succeeded":
                self.waits[name] = time.monotonic() - self.created[name]
                self.api.delete_pod(NAMESPACE, name)

    def pending(self):
        return sorted(set(self.created) - set(self.waits) - set(self.unredirected))

    def finish(self, seconds=180):
        """Stops, gives the rest time, and says what happened. Everything failed or unredirected is an error."""
        self.stopping.set()
        rate = len(self.created) / (time.monotonic() - self.began)
        self.join(timeout=60)
        if self.error:
            raise self.error
        deadline = time.monotonic() + seconds
        while self.pending() and time.monotonic() < deadline:
            self.look()
            time.sleep(0.2)
        pending = self.pending()
        problems = [self.world.explain(NAMESPACE, name) for name in (pending + self.unredirected)[:3]]
        if problems:
            raise AssertionError(f"{len(pending)} pods did not start, {len(self.unredirected)} without redirection:\n" + "\n".join(problems))
        events = self.api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/events?fieldSelector=reason=FailedCreatePodSandBox")["items"]
        waits = sorted(self.waits.values())
        return (f"{len(waits)} pods, {rate:.1f} a second, 0 failed, 0 unredirected; from creation to proof: median {waits[len(waits) // 2]:.1f} s, "
                f"longest {waits[-1]:.1f} s; sandboxes tried again: {len(events)}")
