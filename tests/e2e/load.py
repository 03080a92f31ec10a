# SPDX-License-Identifier: Apache-2.0
"""Mesh pods that keep coming while something is done to the agent, and what became of each."""
import threading
import time

import api
import pods

NAMESPACE = "load"


def small_pod(name, node):
    """A mesh pod that proves its redirection by the validation init container, once, and does nothing else."""
    pod = pods.sidecar(name, NAMESPACE, node=node, grace=0)
    pod["metadata"]["labels"]["app"] = "load"
    spec = pod["spec"]
    spec["restartPolicy"] = "Never"
    spec["containers"] = [{"name": "istio-proxy", "image": pods.POD, "command": ["sleep", "3600"], "args": [],
                           "securityContext": pods.AS_PROXY}]
    return pod


class Load(threading.Thread):
    """`rate` pods a second, over all nodes in turn, until `finish`."""

    def __init__(self, world, rate):
        super().__init__(daemon=True)
        self.world, self.rate = world, rate
        self.api = api.Api(world.lab.state / "pki")
        world.namespace_for(NAMESPACE)
        self.created, self.waits, self.unredirected = {}, {}, []
        self.stopping, self.error, self.count = threading.Event(), None, 0

    def run(self):
        try:
            due = time.monotonic()
            while not self.stopping.is_set():
                if time.monotonic() >= due:
                    self.create()
                    due += 1 / self.rate
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
        """Notes what became Ready and takes it away."""
        for pod in self.api.pods(NAMESPACE):
            name = pod["metadata"]["name"]
            if name not in self.created or name in self.waits or name in self.unredirected:
                continue
            if pod["status"].get("phase") == "Failed":
                self.unredirected.append(name)
            elif api.condition(pod, "Ready") == "True":
                self.waits[name] = time.monotonic() - self.created[name]
                self.api.delete_pod(NAMESPACE, name)

    def pending(self):
        return sorted(set(self.created) - set(self.waits) - set(self.unredirected))

    def finish(self, seconds=180):
        """Stops, gives the rest time, and says what happened. Everything failed or unredirected is an error."""
        self.stopping.set()
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
        return (f"{len(waits)} pods, 0 failed, 0 unredirected; from creation to Ready: median {waits[len(waits) // 2]:.1f} s, "
                f"longest {waits[-1]:.1f} s; sandboxes tried again: {len(events)}")
