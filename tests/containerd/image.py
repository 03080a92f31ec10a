# SPDX-License-Identifier: Apache-2.0
"""image.py FILE NAME:TAG: an image of Debian's static busybox that sleeps, as an OCI archive: no registry is needed."""

import hashlib
import io
import json
import sys
import tarfile

path, name = sys.argv[1:]
blobs = {}


def archive(*members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for member, content, mode in members:
            info = tarfile.TarInfo(member)
            info.size, info.mode = len(content), mode
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def blob(content, kind):
    digest = hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}


def document(kind, **keys):
    return blob(json.dumps(keys).encode(), kind)


with open("/bin/busybox", "rb") as busybox:
    layer = blob(archive(("busybox", busybox.read(), 0o755)), "layer.v1.tar")
machine = {"os": "linux", "architecture": "amd64"}
config = document(
    "config.v1+json",
    **machine,
    config={"Entrypoint": ["/busybox", "sleep", "2147483647"]},
    rootfs={"type": "layers", "diff_ids": [layer["digest"]]},
)
manifest = document("manifest.v1+json", schemaVersion=2, config=config, layers=[layer])
manifest |= {"annotations": {"io.containerd.image.name": name}, "platform": machine}
index = {"schemaVersion": 2, "manifests": [manifest]}
with open(path, "wb") as file:
    members = [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644), ("index.json", json.dumps(index).encode(), 0o644)]
    file.write(archive(*members, *((f"blobs/sha256/{digest}", content, 0o644) for digest, content in blobs.items())))
