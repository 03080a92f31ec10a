#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster of its own: `lab.py up|shell|down [--runtime 1.6] [--nodes N]`, and the class Lab for tests.

All state is below LABS. A lab holds a lock on its directory as long as its first process lives; what killed labs left is
removed when the next one starts.
"""
import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import build
import cgroups
import images
import layout
import pki
from supervise import TooLate, tail, wait_for

HERE = pathlib.Path(__file__).resolve().parent
LABS = pathlib.Path(tempfile.gettempdir()) / "waylay-e2e"
BY_HAND = "by-hand"
CLONE_NEWNET = 0x40000000


class Lab:
    """One cluster. `attached`: it dies with this process, however that ends."""

    def __init__(self, name, nodes=2, runtime="2.2", agent_images=(), crash_image=None, cni_version=None, audit=False,
                 multus=False):
        self.state = LABS / name
        self.name, self.node_count, self.runtime = name, nodes, runtime
        self.agent_images, self.crash_image, self.audit = list(agent_images), crash_image, audit
        self.multus = multus
        self.cni_version = cni_version or "1.0.0"
        self.init = None

    def up(self, attached=True):
        if os.geteuid() != 0:
            raise RuntimeError("a lab needs root")
        programs = self.programs()
        LABS.mkdir(exist_ok=True)
        # Two labs that start at once: neither may take the other's directory for one that was left.
        with open(LABS / "lock", "w", encoding="ascii") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            sweep()
            self.state.mkdir()
            lock = open(self.state / "lock", "w", encoding="ascii")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("logs", "images", *self.nodes()):
            (self.state / name).mkdir()
        pki.make(self.state / "pki", f"https://{layout.API[0]}:6443",
                 [*layout.API, *layout.SERVICE_API, "127.0.0.1"],
                 {layout.node_name(i): layout.node_addresses(i) for i in range(1, self.node_count + 1)})
        files = [images.pause(self.state / "images"), images.pods()]
        files += [images.agent(self.state / "images", source, tag) for source, tag in self.agent_images]
        if self.crash_image:
            files.append(images.crashing_agent(self.state / "images", self.crash_image, "crash"))
        if self.multus:
            files.append(images.multus(self.state / "images"))
        options = programs | {
            "nodes": self.node_count, "runtime": self.runtime, "cgroup": f"waylay-e2e-{self.name}", "audit": self.audit,
            "cni_version": self.cni_version, "images": [str(file) for file in files]}
        (self.state / "options.json").write_text(json.dumps(options), encoding="utf-8")
        self.tools(programs)
        command = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--mount-proc",
                   "--propagation", "private", sys.executable, "-B", str(HERE / "cluster.py"), str(self.state)]
        if attached:
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with open(self.state / "logs" / "cluster.log", "ab") as log:
            parent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock.fileno()],
                                      start_new_session=True)
        lock.close()
        self.parent = parent
        self.init = int(wait_for("the first process", 20, lambda: children(parent.pid)).split()[0])
        (self.state / "pid").write_text(str(self.init), encoding="ascii")
        self.wait_ready()
        if self.multus:
            self.kubectl("apply", "-f", HERE / "manifests/multus.yaml")
            for node in self.nodes():
                written = self.state / node / "disk/etc/cni/net.d/00-multus.conf"
                wait_for(f"Multus to write its configuration on {node}", 60, written.exists, [self.state / "logs" / node / "kubelet.log"])

    def programs(self):
        """Where everything is, built if it is missing."""
        path = []
        if self.runtime == "2.2":
            path = [str(build.ensure("containerd")), str(build.ensure("runc"))]
        plugins = build.ensure("cni") if self.runtime == "2.2" else pathlib.Path("/usr/lib/cni")
        return {"kubernetes": str(build.ensure("kubernetes") / "kubernetes"), "helm": str(build.ensure("helm") / "helm"), "path": path, "plugins": str(plugins)}

    def tools(self, programs):
        """Commands for people and tests, on the PATH of `make cluster-shell`."""
        tools = self.state / "bin"
        tools.mkdir()
        enter = f"nsenter --target $(cat {self.state}/pid)"
        scripts = {
            "kubectl": f'exec {enter} --net env KUBECONFIG={self.state}/pki/admin.conf {programs["kubernetes"]} kubectl "$@"',
            "helm": f'exec {enter} --net env KUBECONFIG={self.state}/pki/admin.conf {programs["helm"]} "$@"',
            "net": f'exec {enter} --net "$@"',
            "node": f'name=$1\nshift\nexec {enter} --mount --pid nsenter --target $(cat {self.state}/$name/init.pid) '
                    f'--mount --net --uts --ipc --cgroup env PATH={":".join(programs["path"] + ["$PATH"])} "$@"',
        }
        for name, text in scripts.items():
            (tools / name).write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
            (tools / name).chmod(0o755)

    def nodes(self):
        return [layout.node_name(number) for number in range(1, self.node_count + 1)]

    def wait_ready(self, seconds=120):
        names = ("cluster.log", "kube-apiserver.log", "n1.log", "n1/kubelet.log", "n1/containerd.log")
        logs = [self.state / "logs" / name for name in names]

        def ready():
            if children_gone(self.init):
                raise TooLate("the cluster's first process ended\n" + tail(logs[0]))
            if not (self.state / "api-ready").exists():
                return False
            done = self.run("kubectl", "get", "nodes", "--no-headers", check=False)
            return done.stdout.count(" Ready ") == self.node_count
        wait_for(f"{self.node_count} nodes to be Ready", seconds, ready, logs)
        # Pods need it, and its controller may be later than the node.
        wait_for("the ServiceAccount default", 30, lambda: self.run("kubectl", "get", "serviceaccount", "default", check=False).returncode == 0)

    def run(self, tool, *arguments, input=None, timeout=60, check=True):
        """One of the tools, to its end."""
        done = subprocess.run([str(self.state / "bin" / tool), *map(str, arguments)], input=input, capture_output=True,
                              text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise RuntimeError(f"{tool} {shlex.join(map(str, arguments))}: status {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done

    def kubectl(self, *arguments, **options):
        return self.run("kubectl", *arguments, **options).stdout

    def node(self, name, *command, **options):
        """A command in a node's namespaces. Not for daemons: it is outside the node's control group."""
        return self.run("node", name, *command, **options).stdout

    def root_of(self, node):
        """Where a node's files are, as the node has them."""
        pid = (self.state / node / "init.pid").read_text(encoding="ascii").strip()
        return pathlib.Path(f"/proc/{self.init}/root/proc/{pid}/root")

    def start_on_node(self, name, *command):
        """A command as `node` runs it, that goes on meanwhile. It must end by itself."""
        return subprocess.Popen([str(self.state / "bin/node"), name, *command], stdin=subprocess.DEVNULL)

    def enter(self):
        """Moves this process (which must have one thread) into the cluster's network: the API and pods are near."""
        with open(f"/proc/{self.init}/ns/net", "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def kill_daemon(self, name, node=None, hold=False, signal="KILL"):
        """A signal for a daemon. Killed it comes back at once; with `hold` it does not until `release`."""
        home = self.state / node if node else self.state
        if hold:
            (home / f"{name}.hold").touch()
        pid = (home / f"{name}.pid").read_text(encoding="ascii")
        self.run("net", "nsenter", "--target", str(self.init), "--pid", "--mount", "kill", f"-{signal}", pid)

    def release(self, name, node=None):
        ((self.state / node if node else self.state) / f"{name}.hold").unlink()

    def new_signing_key(self):
        """The API server refuses all ServiceAccount tokens from its next start on, until whoever has one asks for another."""
        pki.Pki(self.state / "pki", None).signing_key()

    def reboot(self, node, while_off=None):
        """Processes killed, /run empty, disk kept. `while_off` is called with the node's disk meanwhile."""
        off = self.state / node / "off"
        if while_off:
            off.touch()
        (self.state / node / "reboot").touch()
        if while_off:
            wait_for(f"{node} to be off", 30, lambda: not (self.state / node / "init.pid").exists())
            while_off(self.state / node / "disk")
            off.unlink()
        wait_for(f"{node} to start again", 60, lambda: not (self.state / node / "reboot").exists(), [self.state / "logs/cluster.log"])

    def keep_agent_logs(self):
        """A second name for each log of an agent: the kubelet removes its own with the pod."""
        kept = self.state / "logs" / "agents"
        kept.mkdir(exist_ok=True)
        for node in self.nodes():
            for log in (self.state / node / "disk/var/log/pods").glob("*istio-cni-node-*/install-cni/*.log"):
                with contextlib.suppress(FileExistsError):
                    os.link(log, kept / f"{node}-{log.parent.parent.name.split('_')[1]}-{log.name}")

    def down(self, keep_logs=None):
        """Ends everything. `keep_logs`: a directory that the logs are copied to."""
        if self.init:
            try:
                os.kill(self.init, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if getattr(self, "parent", None):
            self.parent.wait(timeout=30)
        if keep_logs:
            shutil.copytree(self.state / "logs", keep_logs, dirs_exist_ok=True)
        remove(self.state)


def existing(name):
    """A lab that runs already."""
    lab = Lab(name)
    try:
        lab.init = int((lab.state / "pid").read_text(encoding="ascii"))
        options = json.loads((lab.state / "options.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    lab.node_count, lab.runtime = options["nodes"], options["runtime"]
    return None if children_gone(lab.init) else lab


def children(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def children_gone(pid):
    """True if there is no such process, or it is a zombie."""
    try:
        return ") Z " in pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return True


def sweep():
    """Removes what labs left whose first process is dead."""
    for state in LABS.iterdir():
        if not state.is_dir() or state.name == "failed":
            continue
        try:
            with open(state / "lock", "a", encoding="ascii") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(state)
        except BlockingIOError:
            continue


def remove(state):
    group = f"waylay-e2e-{state.name}"
    if not cgroups.remove(group):
        raise RuntimeError(f"the control groups {group} are still busy: {cgroups.processes(group)}")
    shutil.rmtree(state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["up", "shell", "down"])
    parser.add_argument("--runtime", choices=["2.2", "1.6"], default="2.2", help="containerd's version")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--multus", action="store_true", help="Multus in front of the primary network")
    parser.add_argument("--image", type=pathlib.Path, help="our image, an OCI layout")
    options = parser.parse_args()
    lab = existing(BY_HAND)
    if options.action == "up":
        if lab:
            sys.exit("lab: it is up already; see make cluster-shell, make cluster-down")
        lab = Lab(BY_HAND, options.nodes, options.runtime, [(options.image, "dev")] if options.image else [],
                  multus=options.multus)
        started = time.monotonic()
        try:
            lab.up(attached=False)
        except BaseException:
            lab.down(keep_logs=LABS / "failed" / BY_HAND)
            print(f"lab: the logs are in {LABS}/failed/{BY_HAND}", file=sys.stderr)
            raise
        print(f"{options.nodes} nodes are Ready after {time.monotonic() - started:.1f} s. {USE.format(state=lab.state)}")
    elif not lab:
        sys.exit("lab: there is none; make cluster-up starts one")
    elif options.action == "shell":
        print(USE.format(state=lab.state))
        environment = dict(os.environ, PATH=f"{lab.state}/bin:{os.environ['PATH']}", PS1="lab# ")
        os.execvpe("bash", ["bash", "--norc", "-i"], environment)
    else:
        lab.down()
        print("lab: gone")


USE = """State and logs: {state}
  kubectl ...        (in make cluster-shell, or {state}/bin/kubectl)
  node n1 COMMAND    in the namespaces of a node: ctr -n k8s.io, ls /etc/cni/net.d, nft, bash
  net COMMAND        in the cluster's network: curl to pods"""

if __name__ == "__main__":
    main()
