#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""image.py LAYOUT [AGAIN]   the image as `make image` wrote it: what a node would pull, and nothing else in it

Reads the OCI layout from its index to the files: both platforms, the command, static programs for the right machine, no
other file (so no shell), the licences. AGAIN is a second layout of the same input, which must have the same bytes.
"""
import gzip
import hashlib
import io
import json
import pathlib
import struct
import sys
import tarfile

LIMIT = 8_000_000  # bytes, uncompressed, each architecture
MACHINES = {"amd64": 62, "arm64": 183}  # e_machine: EM_X86_64, EM_AARCH64
PROGRAMS = {"opt/cni/bin/istio-cni", "usr/local/bin/install-cni"}
FILES = PROGRAMS | {"licenses/LICENSE", "licenses/NOTICE"}
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED = 1


def check(holds, text):
    if not holds:
        sys.exit(f"image: {text}")


def blob(layout, described):
    algorithm, digest = described["digest"].split(":")
    data = (layout / "blobs" / algorithm / digest).read_bytes()
    check(hashlib.sha256(data).hexdigest() == digest, f"blob {digest} has other content")
    check(len(data) == described["size"], f"blob {digest} has another size")
    return data


def check_static(name, data, machine):
    """A 64-bit little-endian program for `machine` that asks for no loader and no library."""
    check(data[:6] == b"\x7fELF\x02\x01", f"{name} is no 64-bit ELF")
    kind, found = struct.unpack_from("<HH", data, 16)
    check((kind in (2, 3), found) == (True, machine), f"{name} is of type {kind} for machine {found}, not {machine}")
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads = []
    for header in range(offset, offset + size * count, size):
        segment, _, at, _, _, length = struct.unpack_from("<IIQQQQ", data, header)
        loads.append(segment)
        check(segment != PT_INTERP, f"{name} needs a loader")
        for entry in range(at, at + length, 16) if segment == PT_DYNAMIC else ():
            check(struct.unpack_from("<Q", data, entry)[0] != DT_NEEDED, f"{name} needs a library")
    check(PT_LOAD in loads, f"{name} loads nothing")


def check_image(layout, described):
    platform = described["platform"]
    architecture = platform["architecture"]
    check(platform["os"] == "linux", f"{platform}")
    manifest = json.loads(blob(layout, described))
    config = json.loads(blob(layout, manifest["config"]))
    check((config["architecture"], config["os"]) == (architecture, "linux"), f"{architecture}: the config says otherwise")
    run = config["config"]
    check(run.get("Cmd") == ["install-cni"] and "Entrypoint" not in run, f"{architecture}: command {run}")
    check("PATH=/usr/local/bin:/opt/cni/bin" in run["Env"], f"{architecture}: environment {run['Env']}")
    check(len(manifest["layers"]) == 1, f"{architecture}: {len(manifest['layers'])} layers")
    unpacked = gzip.decompress(blob(layout, manifest["layers"][0]))
    check(config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(unpacked).hexdigest()], f"{architecture}: diff id")
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        members = tar.getmembers()
        files = {m.name: tar.extractfile(m).read() for m in members if m.isreg()}
        executable = {m.name for m in members if m.isreg() and m.mode & 0o111}
    check(set(files) == FILES, f"{architecture}: files {sorted(files)}")
    check(all(m.isreg() or m.isdir() for m in members), f"{architecture}: more than files and directories")
    check(executable == PROGRAMS, f"{architecture}: executable {sorted(executable)}")
    for name in PROGRAMS:
        check_static(f"{architecture}: {name}", files[name], MACHINES[architecture])
    notice = files["licenses/NOTICE"].decode()
    for linked in ("\ntokio 1.", "\nserde_json 1.", "\nmusl libc "):
        check(linked in notice, f"{architecture}: NOTICE lacks{linked}")
    size = sum(map(len, files.values()))
    check(size <= LIMIT, f"{architecture}: {size:,} bytes, limit {LIMIT:,}")
    return architecture, size


def tree(layout):
    return {path.relative_to(layout): path.read_bytes() for path in layout.rglob("*") if path.is_file()}


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: image.py LAYOUT [AGAIN]")
    layout = pathlib.Path(sys.argv[1])
    (top,) = json.loads((layout / "index.json").read_text())["manifests"]
    index = json.loads(blob(layout, top))
    sizes = dict(check_image(layout, described) for described in index["manifests"])
    check(sizes.keys() == MACHINES.keys(), f"platforms {sorted(sizes)}")
    for again in map(pathlib.Path, sys.argv[2:]):
        check(tree(layout) == tree(again), f"{again} is of the same input and has other bytes")
    for architecture, size in sorted(sizes.items()):
        print(f"image {architecture}: 2 static programs, 2 licence files, no other; {size:,} of {LIMIT:,} bytes")


if __name__ == "__main__":
    main()
