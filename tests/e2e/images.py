# SPDX-License-Identifier: Apache-2.0
"""The images of a lab, made from files of this machine: no registry is needed.

The pods' image is large because of Envoy, and is made once for each set of files.
"""
import hashlib
import io
import json
import pathlib
import subprocess
import tarfile

import build
import layout

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
POD = "local.test/proxyv2:1"
AGENT = "localhost/waylay"
PATH = "PATH=/usr/local/bin:/usr/bin:/bin"


def pods():
    """One image for the containers of all test pods: our program as pilot-agent and as application, Envoy, a shell."""
    program = build.ensure("pod") / "pod"
    envoy = next((ROOT / "target/venv").glob("lib/python3*/site-packages/envoy/_bin/envoy"), None)
    if envoy is None:
        raise RuntimeError("Envoy is missing: run make setup")
    files = {"usr/local/bin/pilot-agent": program, "usr/local/bin/pod": program, "usr/local/bin/envoy": envoy,
             "etc/istio/envoy.yaml": ROOT / "tests/demo/envoy.yaml", "bin/busybox": pathlib.Path("/bin/busybox")}
    for line in output("ldd", str(envoy)).splitlines():
        library = next((word for word in line.split() if word.startswith("/")), None)
        if library:
            files[library.lstrip("/")] = pathlib.Path(library)
    applets = output("/bin/busybox", "--list").split()
    links = {f"bin/{name}": "busybox" for name in applets if name != "busybox"}
    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    for name, path in sorted(files.items()):
        about = path.stat()
        digest.update(f"{name} {about.st_size} {about.st_mtime_ns}\n".encode())
    target = build.CACHE / f"image-{digest.hexdigest()[:12]}.tar"
    if not target.exists():
        for old in build.CACHE.glob("image-*.tar"):
            old.unlink()
        write(target, POD, files, links, {"Env": [PATH]})
    return target


def pause(directory):
    program = directory / "pause"
    subprocess.run(["gcc", "-static", "-Os", "-s", "-o", program, pathlib.Path(__file__).with_name("pause.c")], check=True)
    write(directory / "pause.tar", layout.PAUSE, {"pause": program}, {}, {"Entrypoint": ["/pause"]})
    return directory / "pause.tar"


def multus(directory):
    programs = build.ensure("multus")
    files = {f"usr/src/multus-cni/bin/{path.name}": path for path in programs.iterdir()} | {"bin/cp": pathlib.Path("/bin/busybox")}
    write(directory / "multus.tar", "local.test/multus:1", files, {}, {"Env": [PATH]})
    return directory / "multus.tar"


def agent(directory, source, tag):
    """Our image, an OCI layout as image.py writes it, under another tag."""
    index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    index["manifests"][0]["annotations"] = {"io.containerd.image.name": f"{AGENT}:{tag}", "org.opencontainers.image.ref.name": tag}
    target = directory / f"waylay-{tag}.tar"
    with tarfile.open(target, "w") as archive:
        add(archive, "oci-layout", (source / "oci-layout").read_bytes())
        add(archive, "index.json", json.dumps(index).encode())
        for blob in sorted((source / "blobs/sha256").iterdir()):
            add(archive, f"blobs/sha256/{blob.name}", blob.read_bytes())
    return target


def crashing_agent(directory, source, tag):
    """The same with a program beside it: `pod crash install-cni` kills the agent once it is ready."""
    document = json.loads((source / "index.json").read_text(encoding="utf-8"))
    while "manifests" in document:
        chosen = next(item for item in document["manifests"] if item.get("platform", {}).get("architecture", "amd64") == "amd64")
        document = json.loads(blob_file(source, chosen).read_text(encoding="utf-8"))
    unpacked = directory / f"unpacked-{tag}"
    with tarfile.open(blob_file(source, document["layers"][0])) as layer:
        layer.extractall(unpacked, filter="data")
    files = {str(path.relative_to(unpacked)): path for path in unpacked.rglob("*") if path.is_file()}
    files["usr/local/bin/pod"] = build.ensure("pod") / "pod"
    target = directory / f"waylay-{tag}.tar"
    write(target, f"{AGENT}:{tag}", files, {}, {"Env": [PATH]})
    return target


def blob_file(source, descriptor):
    return source / "blobs/sha256" / descriptor["digest"].removeprefix("sha256:")


def write(target, name, files, links, config):
    """An OCI archive with one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for directory in ("tmp", "proc", "sys", "dev", "etc/istio/proxy"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if directory == "tmp" else 0o755
            archive.addfile(entry)
        for path, source in files.items():
            add(archive, path, source.read_bytes(), 0o755)
        for path, to in links.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, to
            archive.addfile(entry)
    blobs = {}

    def blob(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    machine = {"os": "linux", "architecture": "amd64"}
    packed = blob(layer.getvalue(), "layer.v1.tar")
    described = blob(json.dumps(machine | {"config": config, "rootfs": {"type": "layers", "diff_ids": [packed["digest"]]}}).encode(),
                     "config.v1+json")
    document = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": described, "layers": [packed]}
    manifest = blob(json.dumps(document).encode(), "manifest.v1+json")
    manifest |= {"platform": machine, "annotations": {"io.containerd.image.name": name}}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]}
    unfinished = target.with_suffix(".new")
    with tarfile.open(unfinished, "w") as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add(archive, "index.json", json.dumps(index).encode())
        for digest, data in blobs.items():
            add(archive, f"blobs/sha256/{digest}", data)
    unfinished.rename(target)


def add(archive, path, data, mode=0o644):
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
