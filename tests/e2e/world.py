# SPDX-License-Identifier: Apache-2.0
"""What the scenarios do with a cluster: install the agent, start pods, look at rules, send requests."""
import json
import os
import pathlib
import re
import subprocess
import time

import api
from supervise import TooLate, wait_for

HERE = pathlib.Path(__file__).resolve().parent
CHART = HERE.parent.parent / "daemonset/chart"
CRASH = "/usr/local/bin/pod crash install-cni"
AGENT = "k8s-app=istio-cni-node"
PRIMARY = "/etc/cni/net.d/10-lab.conflist"
# What the agent may change on a node.
NODE_DIRECTORIES = ["/etc/cni", "/opt/cni"]


class Failed(Exception):
    """What a scenario is to prove does not hold."""


class World:
    """A running lab, and what was installed into it."""

    def __init__(self, lab, smoke):
        self.lab = lab
        self.smoke = smoke  # the quicker half of what takes minutes
        self.scripts = HERE.parent.parent / "install-scripts"
        lab.enter()
        self.api = api.Api(lab.state / "pki")
        self.installed = None  # (shape, tag, ...)
        self.namespace = "istio-cni"
        self.primary = {node: lab.node(node, "cat", PRIMARY) for node in lab.nodes()}
        self.before = {node: self.tree(node) for node in lab.nodes()}
        self.made_namespaces = {"default", "kube-system"}
        self.expected_alarms = set()

    # The agent

    def install(self, shape="chart", tag="dev", values=(), wait=True):
        """Our chart, or one of manifests/; nothing if that is there already. The seconds until every agent was Ready."""
        wanted = (shape, tag, tuple(values))
        if self.installed == wanted:
            return None
        self.namespace = "kube-system" if shape == "existing-1.12" else "istio-cni"
        started = time.monotonic()
        if shape == "chart":
            settings = [word for value in (f"tag={tag}", *values) for word in ("--set", value)]
            self.lab.run("helm", "upgrade", "--install", "istio-cni", CHART, "-n", self.namespace, "--create-namespace", *settings)
        else:
            text = (HERE / "manifests" / f"{shape}.yaml").read_text(encoding="utf-8")
            self.lab.kubectl("apply", "-f", "-", input=text.replace("localhost/waylay:dev", f"localhost/waylay:{tag}"))
        self.installed = wanted
        if wait:
            self.wait_installed()
        return time.monotonic() - started

    def wait_installed(self, seconds=90):
        self.lab.kubectl("rollout", "status", "daemonset/istio-cni-node", "-n", self.namespace, f"--timeout={seconds}s", timeout=seconds + 10)
        self.lab.keep_agent_logs()

    def uninstall(self):
        """What a person does; cleaning the nodes is the agents' task."""
        shape, self.installed = self.installed[0], None
        self.lab.keep_agent_logs()
        if shape == "chart":
            self.lab.run("helm", "uninstall", "istio-cni", "-n", self.namespace, "--wait", "--timeout=150s", timeout=180)
        else:
            self.lab.kubectl("delete", "--ignore-not-found", "--timeout=150s", "-f", HERE / "manifests" / f"{shape}.yaml", timeout=180)

    def wait_clean(self, when, seconds=150):
        """Until the directories of all nodes are as they were before anything was installed."""
        for node, tree in self.before.items():
            try:
                wait_for("clean directories", seconds, lambda node=node, tree=tree: self.tree(node) == tree)
            except TooLate as error:
                raise Failed(f"after {when} the directories of {node} differ:\n{difference(tree, self.tree(node))}") from error

    def update(self, tag, command="install-cni", surge=None):
        """Another release in the DaemonSet; `surge`: beside the old one, or after it."""
        container = {"name": "install-cni", "image": f"localhost/waylay:{tag}", "command": command.split()}
        patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
        if surge is not None:
            patch["spec"]["updateStrategy"] = {"rollingUpdate": {"maxSurge": int(surge), "maxUnavailable": int(not surge)}}
        self.lab.kubectl("patch", "daemonset", "istio-cni-node", "-n", self.namespace, "-p", json.dumps(patch))
        self.installed = (*self.installed[:1], tag)

    def agents(self):
        """The pods of the DaemonSet that were not told to end."""
        return [pod for pod in self.api.pods(self.namespace, AGENT) if "deletionTimestamp" not in pod["metadata"]]

    def agent_on(self, node):
        return next(pod["metadata"]["name"] for pod in self.agents() if pod["spec"]["nodeName"] == node)

    def replace_agent(self, node):
        """Has the agent of a node end, and waits for the next one to be Ready."""
        old = self.agent_on(node)
        self.api.delete_pod(self.namespace, old, grace=30)

        def another():
            return any(pod["spec"].get("nodeName") == node and pod["metadata"]["name"] != old and api.condition(pod, "Ready") == "True"
                       for pod in self.agents())
        wait_for(f"another agent on {node}", 90, another)
        self.lab.keep_agent_logs()

    def agent_log(self, node=None):
        names = [self.agent_on(node)] if node else [pod["metadata"]["name"] for pod in self.agents()]
        return "\n".join(self.lab.kubectl("logs", "-n", self.namespace, name, "--tail=-1") for name in names)

    def agent_pid(self, node):
        """Of the agent that runs on a node; None while there is none."""
        pod = next(pod for pod in self.agents() if pod["spec"]["nodeName"] == node)
        status = pod["status"].get("containerStatuses", [{"state": {}}])[0]
        return self.pid(node, status["containerID"]) if "running" in status["state"] else None

    def agent_memory(self, node):
        """MB of the agent on a node: (resident, its control group)."""
        pid = self.agent_pid(node)
        status = self.lab.node(node, "cat", f"/proc/{pid}/status")
        script = f"cat /sys/fs/cgroup/memory/$(grep :memory: /proc/{pid}/cgroup | cut -d: -f3)/memory.usage_in_bytes"
        group = self.lab.node(node, "sh", "-c", script)
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 1e6, int(group) / 1e6

    def agent_cpu(self, node):
        """Seconds of CPU that the agent on a node used so far."""
        fields = self.lab.node(node, "cat", f"/proc/{self.agent_pid(node)}/stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def alarms(self):
        """What the agents ever said about pods that run without redirection: {(namespace, name, event)}"""
        events = self.api.request("GET", "/api/v1/events?fieldSelector=reason=started_unredirected")["items"]
        return {(event["metadata"]["namespace"], event["involvedObject"]["name"], event["metadata"]["name"]) for event in events}

    def metrics(self, node):
        """{'name{labels}': value} of the agent on a node."""
        pod = next(pod for pod in self.agents() if pod["spec"]["nodeName"] == node)
        text = subprocess.run(["curl", "-sSf", "--noproxy", "*", "-m", "5", f"http://{pod['status']['podIP']}:15014/metrics"],
                              check=True, capture_output=True, text=True).stdout
        pairs = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#")
        return {name: float(value) for name, _, value in pairs}

    def wait_api(self):
        """Until the API server, which was away, answers, and all of the control plane has noticed."""
        wait_for("the API server to come back", 60, lambda: self.lab.run(
            "kubectl", "get", "--raw=/readyz", "--request-timeout=2s", check=False).returncode == 0)
        # It would wait for up to a minute more before it makes or deletes anything, which no scenario is about.
        self.lab.kill_daemon("kube-controller-manager")

    # Pods

    def namespace_for(self, name, labels=None):
        if name not in self.made_namespaces:
            document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}
            self.lab.kubectl("apply", "-f", "-", input=json.dumps(document))
            wait_for(f"the ServiceAccount of namespace {name}", 30, lambda: self.lab.run(
                "kubectl", "get", "serviceaccount", "default", "-n", name, check=False).returncode == 0)
            self.made_namespaces.add(name)

    def start(self, *wanted, seconds=120):
        """Creates pods and waits until all are Ready. As they are then, in the same order."""
        for pod in wanted:
            self.namespace_for(pod["metadata"]["namespace"])
            self.api.create_pod(pod)
        return [self.ready(pod["metadata"]["namespace"], pod["metadata"]["name"], seconds) for pod in wanted]

    def ready(self, namespace, name, seconds=120):
        last = {}

        def is_ready():
            last.update(self.api.pod(namespace, name))
            return api.condition(last, "Ready") == "True"
        try:
            wait_for(f"pod {namespace}/{name} to be Ready", seconds, is_ready)
        except Exception as error:
            raise Failed(f"{error}\n{self.explain(namespace, name)}") from error
        return last

    def explain(self, namespace, name):
        """Why a pod is not as it should be."""
        pod = self.api.pod(namespace, name)
        lines = [f"pod {namespace}/{name} on {pod['spec'].get('nodeName')}: {pod['status'].get('phase')}"]
        for status in pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", []):
            lines.append(f"  {status['name']}: {json.dumps(status['state'])}")
        # The last of each reason: a pod that cannot start has dozens.
        events = {event["reason"]: event["message"] for event in self.api.events(namespace, name)}
        lines += [f"  event {reason}: {message[-600:]}" for reason, message in events.items()]
        return "\n".join(lines)

    def delete(self, *namespaces):
        """All pods of these namespaces, at once, and waits until they are gone."""
        for namespace in namespaces:
            self.api.request("DELETE", f"{api.PODS.format(namespace=namespace)}?gracePeriodSeconds=1")
        for namespace in namespaces:
            seconds = 60 + len(self.api.pods(namespace))
            wait_for(f"the pods of {namespace} to be gone", seconds, lambda: not self.api.pods(namespace))

    def rules(self, pod):
        """`nft list ruleset` in a pod's network namespace; "" if there are none."""
        node = pod["spec"]["nodeName"]
        path = self.netns(pod)
        return self.lab.node(node, "nsenter", f"--net={path}", "nft", "list", "ruleset")

    def netns(self, pod):
        """The path of the pod's network namespace on its node, by its first container's process."""
        status = (pod["status"].get("containerStatuses") or pod["status"].get("initContainerStatuses"))[0]
        pid = self.pid(pod["spec"]["nodeName"], status["containerID"])
        expect(pid, f"no process of pod {pod['metadata']['namespace']}/{pod['metadata']['name']}")
        return f"/proc/{pid}/ns/net"

    def pid(self, node, container):
        """Of a container's process, in the cluster's PID namespace; None if it does not run."""
        for line in self.lab.node(node, "ctr", "-n", "k8s.io", "tasks", "list").splitlines():
            words = line.split()
            if words[0] == container.removeprefix("containerd://") and words[2] == "RUNNING":
                return words[1]
        return None

    def redirected(self, pod):
        rules = self.rules(pod)
        return "table inet waylay" in rules and "redirect to :15001" in rules and "redirect to :15006" in rules

    def get(self, pod, url):
        """A request by the application of a pod. (status, [hop...], body)"""
        meta = pod["metadata"]
        text = self.lab.kubectl("exec", "-n", meta["namespace"], meta["name"], "-c", "app", "--", "pod", "get", url, timeout=30)
        answer = json.loads(text)
        if "error" in answer:
            return 0, [], answer["error"]
        hops = [" ".join(hop.split()[:2]) for hop in answer["hops"] or []][::-1]
        return answer["status"], hops, answer["body"]

    def echo(self, pod, target, family):
        """A line by the application of a pod to the echo of another, and what came back."""
        meta, address = pod["metadata"], api.addresses(target)[family]
        return self.lab.kubectl("exec", "-n", meta["namespace"], meta["name"], "-c", "app", "--", "pod", "say",
                                f"[{address}]:9000" if family == 6 else f"{address}:9000", "world", timeout=30).strip()

    # Nodes

    def tree(self, node):
        """Everything below the directories that the agent may change: {path: (mode, size, hash)}."""
        script = ('for d in "$@"; do [ -e "$d" ] || continue; find "$d" -printf "%p %y %m %l\\n"; '
                  'find "$d" -type f -exec sha256sum {} +; done | sort')
        return self.lab.node(node, "sh", "-c", script, "sh", *NODE_DIRECTORIES)


def difference(one, other):
    """Of two trees, as a person reads it."""
    one, other = set(one.splitlines()), set(other.splitlines())
    return "\n".join([f"- {line}" for line in sorted(one - other)] + [f"+ {line}" for line in sorted(other - one)])


def url(pod, family, port=8080, path="/"):
    address = api.addresses(pod)[family]
    return f"http://[{address}]:{port}{path}" if family == 6 else f"http://{address}:{port}{path}"


def expect(truth, message):
    if not truth:
        raise Failed(message)
