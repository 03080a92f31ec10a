#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`cluster.py STATE`: PID 1 of a lab. The control plane runs in its network namespace, each node in one of its own.

Everything dies with this process, since it is PID 1 of its namespace. lab.py starts it. A file STATE/NODE/reboot makes the node reboot: all of
its processes are killed, /run is emptied, its disk stays.
"""
import json
import os
import pathlib
import ssl
import subprocess
import sys
import time
import urllib.request

import cgroups
import layout
from supervise import Supervisor

HERE = pathlib.Path(__file__).resolve().parent


class Cluster:
    def __init__(self, state):
        self.state = state
        self.options = json.loads((state / "options.json").read_text(encoding="utf-8"))
        self.pki = state / "pki"
        self.supervisor = Supervisor(state, state / "logs")
        self.program = self.options["kubernetes"]
        self.nodes = {}

    def run(self):
        subprocess.run(["hostname", "lab"], check=True)
        self.network()
        self.etcd()
        self.apiserver()
        for number in range(1, self.options["nodes"] + 1):
            self.boot(number)
        self.supervisor.wait("the API server to be ready", 60, self.api_ready)
        (self.state / "api-ready").touch()
        self.controllers()
        while True:
            self.supervisor.tick()
            for number in list(self.nodes):
                if (self.state / layout.node_name(number) / "reboot").exists():
                    self.reboot(number)
            time.sleep(0.05)

    def network(self):
        ip("link", "set", "lo", "up")
        ip("link", "add", "lab0", "type", "bridge")
        ip("addr", "add", f"{layout.API[0]}/24", "dev", "lab0")
        ip("addr", "add", f"{layout.API[1]}/64", "dev", "lab0", "nodad")
        ip("link", "set", "lab0", "up")

    def component(self, name, **flags):
        command = [self.program, name, *(f"--{key.replace('_', '-')}={value}" for key, value in flags.items())]
        self.supervisor.daemon(name, command)

    def etcd(self):
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self.component("etcd", data_dir=self.state / "etcd", listen_client_urls=client, advertise_client_urls=client,
                       listen_peer_urls=peer, initial_advertise_peer_urls=peer, initial_cluster=f"default={peer}",
                       unsafe_no_fsync="true", log_level="warn")

    def apiserver(self):
        pki = self.pki
        extra = {}
        if self.options.get("audit"):
            policy = self.state / "audit-policy.json"
            policy.write_text(json.dumps({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}))
            extra = {"audit_policy_file": policy, "audit_log_path": self.state / "logs" / "audit.log", "audit_log_mode": "blocking"}
        self.component(
            "kube-apiserver", etcd_servers="http://127.0.0.1:2379", advertise_address=layout.API[0], bind_address="::",
            secure_port=6443, service_cluster_ip_range=layout.SERVICES, allow_privileged="true", profiling="false",
            authorization_mode="Node,RBAC", enable_admission_plugins="NodeRestriction",
            client_ca_file=pki / "ca.crt", tls_cert_file=pki / "apiserver.crt", tls_private_key_file=pki / "apiserver.key",
            kubelet_client_certificate=pki / "apiserver-kubelet-client.crt",
            kubelet_client_key=pki / "apiserver-kubelet-client.key",
            kubelet_certificate_authority=pki / "ca.crt", kubelet_preferred_address_types="InternalIP",
            # Without these the other components log errors for ever.
            requestheader_client_ca_file=pki / "ca.crt", requestheader_allowed_names="front-proxy-client",
            requestheader_username_headers="X-Remote-User", requestheader_group_headers="X-Remote-Group",
            requestheader_extra_headers_prefix="X-Remote-Extra-",
            proxy_client_cert_file=pki / "front-proxy-client.crt", proxy_client_key_file=pki / "front-proxy-client.key",
            service_account_key_file=pki / "sa.pub", service_account_signing_key_file=pki / "sa.key",
            service_account_issuer="https://kubernetes.default.svc.cluster.local", **extra)

    def controllers(self):
        # The default limits of requests make the first workloads wait for seconds.
        common = {"leader_elect": "false", "kube_api_qps": 500, "kube_api_burst": 1000, "bind_address": "127.0.0.1",
                  "profiling": "false"}
        for name in ("kube-controller-manager", "kube-scheduler"):
            config = self.pki / f"{name}.conf"
            common_of = dict(common, kubeconfig=config, authentication_kubeconfig=config, authorization_kubeconfig=config)
            if name == "kube-controller-manager":
                common_of.update(
                    service_account_private_key_file=self.pki / "sa.key", root_ca_file=self.pki / "ca.crt",
                    use_service_account_credentials="true", allocate_node_cidrs="false",
                    cluster_signing_cert_file=self.pki / "ca.crt", cluster_signing_key_file=self.pki / "ca.key",
                    # Its default is below /usr, where it would make a directory.
                    flex_volume_plugin_dir=self.state / "flex")
            self.component(name, **common_of)

    def api_ready(self):
        context = ssl.create_default_context(cafile=self.pki / "ca.crt")
        try:
            with urllib.request.urlopen(f"https://{layout.API[0]}:6443/readyz", context=context, timeout=2) as answer:
                return answer.read() == b"ok"
        except OSError:
            return False

    def boot(self, number):
        """A node's first process in new namespaces, and its cable."""
        name = layout.node_name(number)
        group = f"{self.options['cgroup']}/{name}"
        cgroups.create(group)
        with open(self.state / "logs" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-B", HERE / "enter.py", group, "unshare", "--mount", "--net", "--uts", "--cgroup", "--propagation", "private",
                 sys.executable, "-B", HERE / "node.py", self.state, str(number)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.nodes[number] = process
        own = os.readlink("/proc/self/ns/net")
        self.supervisor.wait(f"the network namespace of {name}", 20,
                             lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own)
        (self.state / name / "init.pid").write_text(str(process.pid), encoding="ascii")
        link = f"veth-{name}"
        # As a machine keeps its own: the other nodes would send to the old one for seconds after a reboot.
        mac = f"02:00:00:00:00:{number:02x}"
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", str(process.pid))
        ip("link", "set", link, "master", "lab0", "up")
        for subnet, address in zip(layout.pod_subnets(number), layout.node_addresses(number)):
            ip("route", "replace", subnet, "via", address, "dev", "lab0")

    def reboot(self, number):
        name = layout.node_name(number)
        group = f"{self.options['cgroup']}/{name}"

        def dead():
            cgroups.kill(group)
            return not cgroups.processes(group)

        self.supervisor.wait(f"the processes of {name} to end", 20, dead)
        cgroups.remove(group)
        for pid_file in (self.state / name).glob("*.pid"):
            pid_file.unlink()
        # `off` keeps the power off: the node comes back when the file goes.
        self.supervisor.wait(f"{name} to be switched on", 600, lambda: not (self.state / name / "off").exists())
        self.boot(number)
        (self.state / name / "reboot").unlink()


def ip(*arguments):
    family = ["-6"] if any(":" in word for word in arguments[2:3]) else []
    subprocess.run(["ip", *family, *arguments], check=True)


if __name__ == "__main__":
    Cluster(pathlib.Path(sys.argv[1])).run()
