#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`node.py STATE NUMBER`: first process of a node, in its own mount, network, UTS and cgroup namespaces.

Makes the node's file system and network, then keeps containerd, the kubelet and kube-proxy running. What a node keeps
over a reboot is in STATE/NAME/disk; /run is in memory.
"""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import cgroups
import layout
from supervise import Supervisor

HERE = pathlib.Path(__file__).resolve().parent


class Node:
    def __init__(self, state, number):
        self.state, self.number, self.name = state, number, layout.node_name(number)
        self.home = state / self.name
        self.options = json.loads((state / "options.json").read_text(encoding="utf-8"))
        path = ":".join([*self.options["path"], os.environ["PATH"]])
        self.environment = dict(os.environ, PATH=path)
        self.supervisor = Supervisor(self.home, state / "logs" / self.name)

    def run(self):
        (self.state / "logs" / self.name).mkdir(exist_ok=True)
        command("hostname", self.name)
        self.file_system()
        self.control_groups()
        command("mount", "--make-rshared", "/")  # for mounts with propagation HostToContainer
        self.network()
        self.chain()
        self.containerd()
        wait = self.supervisor.wait
        wait("containerd to answer", 60, lambda: self.ctr("version") == 0)
        self.images()
        wait("the API server to be ready", 60, (self.state / "api-ready").exists)
        self.kubelet()
        self.proxy()
        while True:
            self.supervisor.tick()
            time.sleep(0.1)

    def file_system(self):
        """The default paths of Kubernetes are private to the node; the programs are the machine's."""
        disk = self.home / "disk"
        for name in ("opt", "var/lib", "var/log", "var/tmp", "etc", ".etc"):
            (disk / name).mkdir(parents=True, exist_ok=True)
        if not (disk / "var/run").is_symlink():
            (disk / "var/run").symlink_to("../run")
        command("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/etc,upperdir={disk}/etc,workdir={disk}/.etc", "/etc")
        for source, target in ((disk / "opt", "/opt"), (disk / "var", "/var")):
            command("mount", "--bind", str(source), target)
        command("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        if not (self.home / "installed").exists():
            for foreign in ("/etc/cni", "/etc/containerd"):
                shutil.rmtree(foreign, ignore_errors=True)
        for name in ("/run/lock", "/etc/cni/net.d", BARE, "/opt/cni/bin", "/var/lib/kubelet"):
            os.makedirs(name, exist_ok=True)

    def control_groups(self):
        """The node's own group as the root of every hierarchy."""
        names = [path.name for path in cgroups.hierarchies()]
        command("mount", "-t", "sysfs", "sysfs", "/sys")
        command("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
        for name in names:
            os.mkdir(f"/sys/fs/cgroup/{name}")
            kind = "none,name=systemd" if name == "systemd" else name
            command("mount", "-t", "cgroup", "-o", kind, "cgroup", f"/sys/fs/cgroup/{name}")

    def network(self):
        command("ip", "link", "set", "lo", "up")
        self.supervisor.wait("eth0", 20, lambda: os.path.exists("/sys/class/net/eth0"))
        first, second = layout.node_addresses(self.number)
        command("ip", "addr", "add", f"{first}/24", "dev", "eth0")
        command("ip", "addr", "add", f"{second}/64", "dev", "eth0", "nodad")
        command("ip", "link", "set", "eth0", "up")
        command("ip", "route", "add", "default", "via", layout.API[0])
        command("ip", "-6", "route", "add", "default", "via", layout.API[1])
        for other in range(1, self.options["nodes"] + 1):
            if other != self.number:
                for subnet, gateway in zip(layout.pod_subnets(other), layout.node_addresses(other)):
                    command("ip", "route", "add", subnet, "via", gateway)
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            pathlib.Path("/proc/sys/net", key).write_text("1", encoding="ascii")

    def chain(self):
        """The primary network, once: what others change in it is theirs."""
        if (self.home / "installed").exists():
            return
        for plugin in pathlib.Path(self.options["plugins"]).iterdir():
            if plugin.name != "cnitool":
                shutil.copy(plugin, "/opt/cni/bin/")
        for directory in ("/etc/cni/net.d", BARE):
            write_primary(pathlib.Path(directory), self.number, self.options["cni_version"])

    def containerd(self):
        pathlib.Path("/etc/containerd/config.toml").write_text(CONTAINERD[self.options["runtime"]], encoding="ascii")
        self.supervisor.daemon("containerd", ["containerd", "-c", "/etc/containerd/config.toml"], self.environment)

    def ctr(self, *arguments):
        return subprocess.run(["ctr", *arguments], env=self.environment, capture_output=True, timeout=60).returncode

    def images(self):
        if (self.home / "installed").exists():
            return
        for image in self.options["images"]:
            subprocess.run(["ctr", "-n", "k8s.io", "images", "import", image], env=self.environment, check=True, timeout=120,
                           stdout=subprocess.DEVNULL)
        (self.home / "installed").touch()

    def kubelet(self):
        pki = self.state / "pki"
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True},
                               "x509": {"clientCAFile": f"{pki}/ca.crt"}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{pki}/kubelet-{self.name}-serving.crt",
            "tlsPrivateKeyFile": f"{pki}/kubelet-{self.name}-serving.key",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs", "failCgroupV1": False, "failSwapOn": False,
            "oomScoreAdj": 0, "maxOpenFiles": 20000,  # without CAP_SYS_RESOURCE
            "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",  # nobody is there; without it each pod gets a warning
            "volumePluginDir": "/var/lib/kubelet/volumeplugins",
            # The disk is the machine's and may be nearly full.
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi", "nodefs.inodesFree": "1"},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "2s", "serializeImagePulls": False, "maxPods": 400,
            "staticPodPath": "/etc/kubernetes/manifests",
        }
        os.makedirs("/etc/kubernetes/manifests", exist_ok=True)
        pathlib.Path("/var/lib/kubelet/config.yaml").write_text(json.dumps(config), encoding="ascii")
        sysctls = self.home / "sysctls"
        sysctls.mkdir(exist_ok=True)
        self.supervisor.daemon("kubelet", [
            "unshare", "--mount", "--propagation", "unchanged", HERE / "kubelet.sh", sysctls,
            self.options["kubernetes"], "kubelet", "--config=/var/lib/kubelet/config.yaml",
            f"--kubeconfig={pki}/kubelet-{self.name}.conf", f"--hostname-override={self.name}",
            f"--node-ip={','.join(layout.node_addresses(self.number))}", "--v=2"], self.environment)

    def proxy(self):
        # nf_conntrack_max can only be read outside the machine's first network namespace.
        limits = [f"--conntrack-{name}=0" for name in ("max-per-core", "tcp-timeout-established", "tcp-timeout-close-wait")]
        self.supervisor.daemon("kube-proxy", [
            self.options["kubernetes"], "kube-proxy", f"--kubeconfig={self.state}/pki/kube-proxy.conf",
            f"--hostname-override={self.name}", "--proxy-mode=nftables", f"--cluster-cidr={layout.POD_NETWORKS}", *limits])


# The primary network alone, for the sandboxes of a runtime handler `bare`: what pods cost where nobody has added to it.
BARE = "/etc/containerd/bare"
CONTAINERD = {
    "2.2": f"""version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{layout.PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bare]
  runtime_type = "io.containerd.runc.v2"
  cni_conf_dir = "{BARE}"
""",
    "1.6": f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{layout.PAUSE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
""",
}


def write_primary(directory, number, cni_version):
    """The configuration of the node's primary network, as a network's DaemonSet writes it: by rename."""
    ranges = [[{"subnet": subnet}] for subnet in layout.pod_subnets(number)]
    chain = {
        "cniVersion": cni_version, "name": "lab", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "isDefaultGateway": True, "hairpinMode": True,
             "ipam": {"type": "host-local", "ranges": ranges}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]}
    new = directory / "10-lab.conflist.new"
    new.write_text(json.dumps(chain, indent=2) + "\n", encoding="ascii")
    new.rename(directory / "10-lab.conflist")


def command(*words):
    subprocess.run(words, check=True)


if __name__ == "__main__":
    Node(pathlib.Path(sys.argv[1]), int(sys.argv[2])).run()
