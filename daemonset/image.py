#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""image.py OUT ROOT VERSION   one OCI layout for all architectures, without any tool

ROOT has a directory for each architecture in Go's spelling (amd64, arm64), with the files of the image. What else the
image says is read from the Containerfile. The same input gives the same bytes: names sorted, owner root, no times.
OUT must not exist or be a layout, which is replaced. Prints the sizes; an image over LIMIT is an error.
"""
import gzip
import hashlib
import io
import json
import pathlib
import shlex
import shutil
import sys
import tarfile

LIMIT = 8_000_000  # bytes, uncompressed, each architecture
NAME = "waylay"
OCI = "application/vnd.oci.image."
CONTAINERFILE = pathlib.Path(__file__).with_name("Containerfile")


def settings(text):
    """The part of a Containerfile that a two-file image needs; an instruction that is not known is an error."""
    config = {"Env": [], "Labels": {}}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        match word:
            case "" | "ARG" | "#":
                pass
            case "FROM" if rest == "scratch":
                pass
            case "COPY" if rest == "${TARGETARCH}/ /":
                pass
            case "ENV":
                config["Env"].append(rest)
            case "LABEL":
                key, _, value = shlex.split(rest)[0].partition("=")
                config["Labels"][key] = value
            case "WORKDIR":
                config["WorkingDir"] = rest
            case "USER":
                config["User"] = rest
            case "CMD":
                config["Cmd"] = json.loads(rest)
            case _:
                sys.exit(f"image.py: Containerfile: not understood: {line}")
    return config


def layer(root):
    """The files below `root` as a tar, and the sum of their sizes."""
    buffer, size = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(root)))
            if not (entry.isdir() or entry.isreg()):
                sys.exit(f"image.py: {path}: neither a file nor a directory")
            executable = entry.isdir() or entry.mode & 0o100
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = "root"
            entry.mode = 0o755 if executable else 0o644
            # A second name of a file would become a hard link.
            entry.type = tarfile.DIRTYPE if entry.isdir() else tarfile.REGTYPE
            if entry.isdir():
                tar.addfile(entry)
                continue
            entry.size = path.stat().st_size
            size += entry.size
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return buffer.getvalue(), size


class Layout:
    """An OCI layout being written."""

    def __init__(self, out):
        if out.exists():
            if not (out / "oci-layout").is_file():
                sys.exit(f"image.py: {out}: exists and is no OCI layout")
            shutil.rmtree(out)
        self.out, self.blobs = out, out / "blobs" / "sha256"
        self.blobs.mkdir(parents=True)
        (out / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def blob(self, data, kind):
        data = data if isinstance(data, bytes) else json.dumps(data, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": OCI + kind, "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, architecture, config, tar):
        packed = self.blob(gzip.compress(tar, 9, mtime=0), "layer.v1.tar+gzip")
        described = self.blob(
            {
                "architecture": architecture,
                "os": "linux",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(tar).hexdigest()]},
            },
            "config.v1+json",
        )
        kind = "manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": OCI + kind, "config": described, "layers": [packed]}
        return self.blob(manifest, kind) | {"platform": {"architecture": architecture, "os": "linux"}}, packed["size"]

    def finish(self, images, version):
        kind = "index.v1+json"
        index = self.blob({"schemaVersion": 2, "mediaType": OCI + kind, "manifests": images}, kind)
        index["annotations"] = {
            "io.containerd.image.name": f"localhost/{NAME}:{version}",
            "org.opencontainers.image.ref.name": version,
        }
        top = {"schemaVersion": 2, "mediaType": OCI + kind, "manifests": [index]}
        (self.out / "index.json").write_text(json.dumps(top, sort_keys=True))
        return index["digest"]


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: image.py OUT ROOT VERSION")
    out, root, version = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    config = settings(CONTAINERFILE.read_text())
    config["Labels"]["org.opencontainers.image.version"] = version
    architectures = sorted(path for path in root.iterdir() if path.is_dir())
    if not architectures:
        sys.exit(f"image.py: {root}: no architecture")
    layout, images, large = Layout(out), [], []
    for path in architectures:
        tar, size = layer(path)
        image, packed = layout.image(path.name, config, tar)
        images.append(image)
        print(f"image {path.name}: {size:,} bytes, {packed:,} packed (limit {LIMIT:,})")
        if size > LIMIT:
            large.append(path.name)
    print(f"image {out}: localhost/{NAME}:{version}, {layout.finish(images, version)}")
    if large:
        sys.exit(f"image.py: over the limit: {', '.join(large)}")


if __name__ == "__main__":
    main()
