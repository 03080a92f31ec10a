# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes node small enough for a demo: private namespaces, processes in them, and the part of a container runtime
that runs CNI plugins.

Everything lives in a mount, network and process namespace that dies with its first process: after Ctrl-C, an error or a
kill of any of the demo's processes nothing is left on the machine, so there is nothing to find and remove later.
"""

import ctypes
import fcntl
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

CNI_BIN = ["/run/demo/bin", "/usr/lib/cni"]  # ours first
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


class DemoError(Exception):
    """The demo could not be set up; the text is for the user."""


def run(*command, **kwargs):
    """Runs a command to its end and returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    if done.returncode != 0:
        raise DemoError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def only_demo(lock_path):
    """Two demos would write the same files. The lock ends with its holder, so it cannot be stale."""
    lock = open(lock_path, "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DemoError("another demo is running from this directory") from None
    return lock


def in_private_namespaces(inner):
    """Calls `inner` as first process of new namespaces and returns its exit status."""
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0:
        raise DemoError(f"make private namespaces: {os.strerror(ctypes.get_errno())} (needs root)")
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()  # Ctrl-C reaches the outer process only, which passes it on once
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also when started with it ignored, as with "&"
        status = 2
        try:
            status = inner()
        except KeyboardInterrupt:
            status = 130
        except DemoError as error:
            print(f"demo: {error}", file=sys.stderr)
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: os.kill(child, signal.SIGINT))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else 128 - status


def mount_node():
    """Gives the node its own /proc and an empty /run, as after a boot. Returns our process id as seen from outside."""
    pid = os.readlink("/proc/self")
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    run("ip", "link", "set", "lo", "up")
    # No duplicate address detection: the kernel would keep each pod's IPv6 address back for a second or two.
    for scope in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")
    return pid


def inside(netns, *command, uid=0, gid=0, caps="-all"):
    """The command line that runs `command` in `netns` with an id and at most the capabilities given."""
    ids = [] if uid == 0 else [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    return [
        "nsenter", f"--net=/run/netns/{netns}",
        "setpriv", *ids, "--no-new-privs", f"--bounding-set={caps}", f"--inh-caps={caps}", "--", *command,
    ]


def start(command, log):
    """Starts a process that lives as long as the demo."""
    with open(log, "w") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def wait_for(what, process, log, probe, seconds=10):
    """Waits until `probe` says yes."""
    deadline = time.monotonic() + seconds
    while not probe():
        if process.poll() is not None:
            raise DemoError(f"{what} ended with status {process.returncode}: see {log}")
        if time.monotonic() > deadline:
            raise DemoError(f"{what} not ready after {seconds} s: see {log}")
        time.sleep(0.02)


class Sandbox:
    """A pod's network namespace, wired up and torn down as containerd does it."""

    def __init__(self, manifest, conflist):
        self.meta = manifest["metadata"]
        self.name = self.meta["name"]
        self.conflist = conflist
        self.container = secrets.token_hex(32)
        self.addresses = {}
        self.result = None
        self.add_ms = None

    def add(self):
        """Makes the namespace and runs the chain, each plugin getting the result of the one before."""
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        for plugin in self.conflist["plugins"]:
            began = time.monotonic()
            self.result = json.loads(self._cni("ADD", plugin))
            self.add_ms = (time.monotonic() - began) * 1000
        for ip in self.result["ips"]:
            address = ip["address"].split("/")[0]
            self.addresses[6 if ":" in address else 4] = address

    def delete(self):
        """Runs the chain backwards."""
        for plugin in reversed(self.conflist["plugins"]):
            self._cni("DEL", plugin)
        run("ip", "netns", "del", self.name)

    def _cni(self, verb, plugin):
        config = dict(plugin, name=self.conflist["name"], cniVersion=self.conflist["cniVersion"])
        if self.result is not None:
            config["prevResult"] = self.result
        if plugin.get("capabilities", {}).get("io.kubernetes.cri.pod-annotations"):
            config["runtimeConfig"] = {"io.kubernetes.cri.pod-annotations": self.meta.get("annotations", {})}
        arguments = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.meta["namespace"],
            "K8S_POD_NAME": self.name,
            "K8S_POD_INFRA_CONTAINER_ID": self.container,
            "K8S_POD_UID": self.meta["uid"],
        }
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": f"/var/run/netns/{self.name}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
            "CNI_PATH": ":".join(CNI_BIN),
        }
        program = next(path for folder in CNI_BIN if (path := Path(folder, plugin["type"])).exists())
        done = subprocess.run([program], input=json.dumps(config), env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise DemoError(f"{plugin['type']} {verb} of pod {self.name}: {(done.stdout or done.stderr).strip()}")
        return done.stdout
