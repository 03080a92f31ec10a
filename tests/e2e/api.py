# SPDX-License-Identifier: Apache-2.0
"""The few requests to the Kubernetes API for which starting kubectl takes too long. Inside the cluster's network."""
import http.client
import json
import ssl
import urllib.parse

import layout

PODS = "/api/v1/namespaces/{namespace}/pods"


class ApiError(Exception):
    def __init__(self, status, text):
        super().__init__(f"{status}: {text[:500]}")
        self.status = status


class Api:
    """One connection, made anew when it breaks."""

    def __init__(self, pki):
        self.context = ssl.create_default_context(cafile=pki / "ca.crt")
        self.context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self.connection = None

    def request(self, method, path, body=None, kind="application/json", timeout=20):
        for attempt in (1, 2):
            if self.connection is None:
                self.connection = http.client.HTTPSConnection(layout.API[0], 6443, context=self.context, timeout=timeout)
            try:
                self.connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
                answer = self.connection.getresponse()
                text = answer.read().decode()
                break
            except (OSError, http.client.HTTPException):
                self.connection.close()
                self.connection = None
                if attempt == 2:
                    raise
        if answer.status >= 300:
            raise ApiError(answer.status, text)
        return json.loads(text)

    def create_pod(self, pod):
        namespace = pod["metadata"]["namespace"]
        return self.request("POST", PODS.format(namespace=namespace), pod)

    def pods(self, namespace, selector=""):
        query = urllib.parse.urlencode({"labelSelector": selector})
        return self.request("GET", f"{PODS.format(namespace=namespace)}?{query}")["items"]

    def pod(self, namespace, name):
        return self.request("GET", f"{PODS.format(namespace=namespace)}/{name}")

    def delete_pod(self, namespace, name, grace=0):
        try:
            self.request("DELETE", f"{PODS.format(namespace=namespace)}/{name}?gracePeriodSeconds={grace}")
        except ApiError as error:
            if error.status != 404:
                raise

    def events(self, namespace, pod):
        query = urllib.parse.urlencode({"fieldSelector": f"involvedObject.name={pod}"})
        return self.request("GET", f"/api/v1/namespaces/{namespace}/events?{query}")["items"]


def condition(pod, kind):
    """The status of a pod's condition, "" if there is none."""
    return next((item["status"] for item in pod["status"].get("conditions", []) if item["type"] == kind), "")


def addresses(pod):
    """{4: ..., 6: ...}"""
    found = [item["ip"] for item in pod["status"].get("podIPs", [])]
    return {6 if ":" in address else 4: address for address in found}
