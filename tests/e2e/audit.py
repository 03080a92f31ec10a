# SPDX-License-Identifier: Apache-2.0
"""What the agents asked of the API server, from its audit log."""
import dataclasses
import datetime
import json


@dataclasses.dataclass
class Request:
    moment: datetime.datetime
    verb: str
    resource: str
    code: int  # 0 while there is no answer


def requests(world):
    """{name of an agent's pod: its requests in their order}"""
    user = f"system:serviceaccount:{world.namespace}:istio-cni"
    seen, by_id = {}, {}
    for line in (world.lab.state / "logs" / "audit.log").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["user"].get("username") != user:
            continue
        if entry["stage"] == "RequestReceived":
            pod = entry["user"].get("extra", {}).get("authentication.kubernetes.io/pod-name", ["?"])[0]
            moment = datetime.datetime.fromisoformat(entry["requestReceivedTimestamp"].rstrip("Z"))
            request = Request(moment, entry["verb"], entry.get("objectRef", {}).get("resource", entry["requestURI"]), 0)
            by_id[entry["auditID"]] = request
            seen.setdefault(pod, []).append(request)
        elif entry["auditID"] in by_id:
            by_id[entry["auditID"]].code = entry.get("responseStatus", {}).get("code", 0)
    return seen


def count(asked, verb, resource="pods"):
    return sum(request.verb == verb and request.resource == resource for request in asked)
