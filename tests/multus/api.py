# SPDX-License-Identifier: Apache-2.0
"""api.py PORT NETWORKS: as much of a Kubernetes API as Multus asks for. Every pod exists, with the UID uid-NAME, and asks for
NETWORKS, in which {pod} is its name; every NetworkAttachmentDefinition exists and has no spec; what is written is answered and forgotten."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

port, networks = sys.argv[1:]


def thing(path):
    """Of /api/v1/namespaces/NAMESPACE/pods/NAME or /apis/GROUP/VERSION/namespaces/NAMESPACE/KIND/NAME."""
    words = path.split("?")[0].strip("/").split("/")
    at = words.index("namespaces")
    namespace, kind = words[at + 1], words[at + 2]
    name = words[at + 3] if len(words) > at + 3 else "new"
    version = "/".join(words[1:at])
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}"}
    if kind == "pods":
        annotations = {"k8s.v1.cni.cncf.io/networks": networks.replace("{pod}", name)} if networks else {}
        return {"apiVersion": version, "kind": "Pod", "metadata": {**metadata, "annotations": annotations}}
    kinds = {"network-attachment-definitions": "NetworkAttachmentDefinition", "events": "Event"}
    return {"apiVersion": version, "kind": kinds[kind], "metadata": metadata}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps(thing(self.path)).encode()
        self.send_response(201 if self.command == "POST" else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
print("ready", flush=True)
server.serve_forever()
