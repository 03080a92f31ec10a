# SPDX-License-Identifier: Apache-2.0
"""As much of a Kubernetes API as Helm asks before it installs: versions, kinds, and one namespace. On loopback."""
import contextlib
import http.server
import json
import tempfile
import threading

KINDS = {
    "v1": ["Namespace", "ServiceAccount", "ConfigMap", "Secret", "ResourceQuota"],
    "apps/v1": ["DaemonSet"],
    "rbac.authorization.k8s.io/v1": ["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"],
}
NAMESPACE = "/api/v1/namespaces/istio-cni"


def answers(version, namespace_labels):
    """What is answered, by path."""
    known = {"/version": {"major": "1", "minor": "30", "gitVersion": version},
             "/api": {"kind": "APIVersions", "versions": ["v1"]}}
    groups = []
    for api, kinds in KINDS.items():
        resources = [{"name": kind.lower() + "s", "kind": kind, "verbs": ["get"],
                      "namespaced": not kind.startswith(("Cluster", "Namespace"))} for kind in kinds]
        path = "/api/v1" if api == "v1" else f"/apis/{api}"
        known[path] = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}
        if api != "v1":
            here = {"groupVersion": api, "version": "v1"}
            groups.append({"name": api.split("/")[0], "versions": [here], "preferredVersion": here})
    known["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
    if namespace_labels is not None:
        known[NAMESPACE] = {"apiVersion": "v1", "kind": "Namespace",
                            "metadata": {"name": "istio-cni", "labels": namespace_labels}}
    return known


@contextlib.contextmanager
def cluster(version="v1.36.0", namespace_labels=None):
    """Path of a kubeconfig for it."""
    known = answers(version, namespace_labels)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            missing = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
            body = json.dumps(known.get(path, missing)).encode()
            self.send_response(200 if path in known else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [],
              "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
              "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}]}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        try:
            yield file.name
        finally:
            server.shutdown()
            server.server_close()
