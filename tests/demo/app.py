# SPDX-License-Identifier: Apache-2.0
"""The application of a demo pod: says who it is and which address it was called from. `app.py NAME PORT...`"""

import http.server
import json
import socket
import socketserver
import sys
import threading


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # An IPv4 caller of a dual-stack socket shows as ::ffff:a.b.c.d.
        peer = self.client_address[0].removeprefix("::ffff:")
        body = json.dumps({"pod": sys.argv[1], "peer": peer}).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


servers = [Server(("::", int(port)), Answer) for port in sys.argv[2:]]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
