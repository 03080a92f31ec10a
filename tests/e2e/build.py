#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Builds the lab's programs from Go modules, once: `build.py [NAME...]` prints where each is.

What is in `modules/NAME` decides what is built; the result is kept outside the tree, in a directory whose name holds a
hash of it, and is never changed afterwards. Two runs at the same time build once. Cold, everything takes about 13
minutes on two cores. Sources and the compiler's cache, gigabytes, go when a module is done, unless GOMODCACHE and GOCACHE
say where they are to stay.
"""
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODULES = ROOT / "tests/e2e/modules"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "waylay" / "lab"
# Of other versions of a module only those used within this time stay: the disk is finite.
KEEP_DAYS = 14

CONTAINERD = "github.com/containerd/containerd/v2"
MULTUS = "gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd"
PLUGINS = "github.com/containernetworking/plugins/plugins"

# name: (Go packages, linker flags, further arguments, is cgo needed). {version} is that of the module's first `require`
# that is named in VERSION_OF. In the order in which somebody who waits wants them.
RECIPES = {
    "pod": (["."], "", [], False),
    "containerd": (
        [f"{CONTAINERD}/cmd/{x}" for x in ("containerd", "containerd-shim-runc-v2", "ctr")],
        f"-X {CONTAINERD}/version.Version={{version}}", [], False),
    # Without seccomp runc refuses every sandbox of containerd. Static, so that it runs on any node image.
    "runc": (
        ["github.com/opencontainers/runc"],
        "-linkmode external -extldflags -static", ["-tags", "seccomp netgo osusergo"], True),
    "cni": (
        ["github.com/containernetworking/cni/cnitool"]
        + [f"{PLUGINS}/{x}" for x in ("ipam/host-local", "main/bridge", "main/loopback", "meta/portmap")],
        "", [], False),
    "helm": (["helm.sh/helm/v3/cmd/helm"], "", [], False),
    "multus": ([f"{MULTUS}/{x}" for x in ("multus", "multus-shim", "multus-daemon")], "", [], False),
    "kubernetes": (
        ["."],
        " ".join(f"-X k8s.io/{package}/version.gitVersion=v{{version}}" for package in ("component-base", "client-go/pkg"))
        + " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor={minor}", [], False),
}
VERSION_OF = {"containerd": CONTAINERD, "kubernetes": "k8s.io/kubernetes"}


def key(name):
    """The hash of everything that the result depends on, but for Go's version."""
    digest = hashlib.sha256(repr(RECIPES[name]).encode())
    for path in sorted((MODULES / name).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def directory(name):
    """Where the programs of `name` are, or will be."""
    return CACHE / f"{name}-{key(name)}"


def ensure(name):
    """The directory with the programs of `name`, built now if it is missing."""
    target = directory(name)
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            forget_others(name, target)
            compile_module(name, target)
        os.utime(target)
    return target


def forget_others(name, target):
    """Removes what killed runs left, and versions that nobody has used for long. The lock is held."""
    for path in CACHE.glob(f"{name}-*"):
        unfinished = path.suffix == ".tmp"
        if path != target and (unfinished or time.time() - path.stat().st_mtime > KEEP_DAYS * 86400):
            shutil.rmtree(path, ignore_errors=True)


def compile_module(name, target):
    packages, linker, arguments, cgo = RECIPES[name]
    version = module_version(name)
    linker = "-s -w " + linker.format(version=version, minor=version.split(".")[1] if version else "")
    started = time.monotonic()
    print(f"lab: building {name} {version} (once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=f"{name}-", suffix=".tmp", dir=CACHE) as scratch:
        output = pathlib.Path(scratch) / "bin"
        output.mkdir()
        caches = {"GOCACHE": f"{scratch}/cache", "GOMODCACHE": f"{scratch}/modules"}
        environment = dict(caches | os.environ, CGO_ENABLED=str(int(cgo)), GOTMPDIR=scratch, GOWORK="off",
                           GOFLAGS=f"{os.environ.get('GOFLAGS', '')} -modcacherw",
                           PATH=f"{os.environ['PATH']}:/usr/local/go/bin:{ROOT}/target/go/bin")
        command = ["nice", "go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", linker,
                   *arguments, "-o", f"{output}/", *packages]
        subprocess.run(command, cwd=MODULES / name, env=environment, check=True)
        if packages == ["."]:
            (output / f"lab-{name}").rename(output / name)
        output.rename(target)
    print(f"lab: {name} built in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def module_version(name):
    """`1.36.3`, from the line of go.mod that requires it."""
    for line in (MODULES / name / "go.mod").read_text(encoding="utf-8").splitlines():
        words = line.removeprefix("require").split()
        if len(words) >= 2 and words[0] == VERSION_OF.get(name):
            return words[1].removeprefix("v")
    return ""


def main(names):
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        sys.exit(f"build.py: no such module: {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    for name in names or RECIPES:
        print(name, ensure(name), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"build.py: {error.cmd[1]} failed with status {error.returncode}")
