# SPDX-License-Identifier: Apache-2.0
"""The cluster's certificates: one authority, a key pair for each component, kubeconfigs. Nothing is ever renewed."""
import json
import subprocess

SERVICE_NAMES = ["kubernetes" + suffix for suffix in ("", ".default", ".default.svc", ".default.svc.cluster.local")]


def make(directory, server, addresses, nodes):
    """`server`: the API server's URL; `addresses`: all of its addresses; `nodes`: {name: [address...]}."""
    directory.mkdir(parents=True)
    pki = Pki(directory, server)
    pki.authority()
    pki.certificate("apiserver", "/CN=kube-apiserver", "serverAuth",
                    [f"DNS:{name}" for name in SERVICE_NAMES] + [f"IP:{address}" for address in addresses])
    pki.certificate("apiserver-kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client", "clientAuth")
    pki.certificate("front-proxy-client", "/CN=front-proxy-client", "clientAuth")
    pki.client("admin", "/O=system:masters/CN=admin")
    for component in ("kube-controller-manager", "kube-scheduler", "kube-proxy"):
        pki.client(component, f"/CN=system:{component}")
    for name, own in nodes.items():
        subject = f"/O=system:nodes/CN=system:node:{name}"
        pki.client(f"kubelet-{name}", subject)
        pki.certificate(f"kubelet-{name}-serving", subject, "serverAuth",
                        [f"DNS:{name}"] + [f"IP:{address}" for address in own])


class Pki:
    def __init__(self, directory, server):
        self.directory, self.server = directory, server

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, timeout=30)

    def authority(self):
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                     "-subj", "/CN=lab-ca", "-keyout", "ca.key", "-out", "ca.crt")
        self.signing_key()

    def signing_key(self):
        """Of ServiceAccount tokens."""
        self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
        self.openssl("ec", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def certificate(self, name, subject, usage, alternatives=()):
        names = ["-addext", "subjectAltName=" + ",".join(alternatives)] if alternatives else []
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                     "-CA", "ca.crt", "-CAkey", "ca.key", "-subj", subject, "-addext", f"extendedKeyUsage={usage}",
                     "-addext", "basicConstraints=critical,CA:false", *names,
                     "-keyout", f"{name}.key", "-out", f"{name}.crt")

    def client(self, name, subject):
        """A client certificate and the kubeconfig that uses it."""
        self.certificate(name, subject, "clientAuth")
        here = self.directory
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": self.server, "certificate-authority": f"{here}/ca.crt"}}],
            "users": [{"name": "u", "user": {"client-certificate": f"{here}/{name}.crt", "client-key": f"{here}/{name}.key"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "u"}}],
        }
        (here / f"{name}.conf").write_text(json.dumps(config, indent=1), encoding="ascii")
