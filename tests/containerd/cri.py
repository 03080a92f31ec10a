# SPDX-License-Identifier: Apache-2.0
"""cri.py SOCKET DIRECTORY: calls of a container runtime, one JSON object a line in, one a line out.

In: {"id": 1, "method": "RunPodSandbox", "seconds": 60, "request": {...}}
Out: {"id": 1, "response": {...}} or {"id": 1, "error": "..."}, in the order in which they end.
"""

import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import grpc
from google.protobuf import json_format

socket, generated = sys.argv[1:]
here = Path(__file__).parent
subprocess.run(["protoc", f"--python_out={generated}", f"-I{here}", "cri.proto"], check=True)
sys.path.insert(0, generated)
import cri_pb2  # noqa: E402, it was not there before

lock = threading.Lock()


def answer(id_, **what):
    with lock:
        print(json.dumps({"id": id_, **what}), flush=True)


def done(id_, future):
    if future.exception() is None:
        response = json_format.MessageToDict(future.result(), preserving_proto_field_name=True)
        answer(id_, response=response)
    else:
        answer(id_, error=f"{future.code().name}: {future.details()}")


with grpc.insecure_channel(f"unix://{socket}") as channel:
    for line in sys.stdin:
        call = json.loads(line)
        method = call["method"]
        request = json_format.ParseDict(call["request"], getattr(cri_pb2, f"{method}Request")())
        invoke = channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(cri_pb2, f"{method}Response").FromString,
        )
        invoke.future(request, timeout=call["seconds"]).add_done_callback(partial(done, call["id"]))
