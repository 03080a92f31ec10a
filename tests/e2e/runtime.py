# SPDX-License-Identifier: Apache-2.0
"""A node's container runtime, called as the kubelet calls it: for what is to be measured without the kubelet."""
import json
import pathlib
import subprocess
import tempfile

CRI = pathlib.Path(__file__).resolve().parent.parent / "containerd/cri.py"


class Runtime:
    """One call after the other. Ends with the process that made it."""

    def __init__(self, world, node):
        self.generated = tempfile.TemporaryDirectory()
        socket = world.lab.root_of(node) / "run/containerd/containerd.sock"
        # Debian's, for its python3-grpcio.
        self.process = subprocess.Popen(["/usr/bin/python3", "-B", CRI, socket, self.generated.name], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def call(self, method, request):
        self.process.stdin.write(json.dumps({"id": 1, "method": method, "seconds": 60, "request": request}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["response"]

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.generated.cleanup()


def sandbox(pod, handler=""):
    """The request for the sandbox of a pod that the API server has, by one of the node's runtime handlers."""
    meta = pod["metadata"]
    # The kubelet adds these two: without any, a runtime that passes annotations passes null, and the agent is asked.
    annotations = meta.get("annotations", {}) | {"kubernetes.io/config.seen": "2026-01-01T00:00:00Z", "kubernetes.io/config.source": "api"}
    return {"runtime_handler": handler, "config": {"metadata": {key: meta[key] for key in ("name", "namespace", "uid")}, "hostname": meta["name"],
                       "log_directory": "/tmp", "annotations": annotations, "linux": {"cgroup_parent": "/figures"}}}
