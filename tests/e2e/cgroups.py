# SPDX-License-Identifier: Apache-2.0
"""The control groups of a lab's nodes. A node sees its own as the root of each hierarchy.

Directories of control groups are the only thing that does not vanish when a lab's processes die.
"""
import os
import pathlib
import signal
import time

ROOT = pathlib.Path("/sys/fs/cgroup")


def hierarchies():
    """The version 1 hierarchies of this machine, by name."""
    found = sorted(path for path in ROOT.iterdir() if (path / "cgroup.clone_children").exists()) if ROOT.is_dir() else []
    if not found:
        raise RuntimeError(f"no cgroup v1 hierarchies in {ROOT}: nodes can only be made with these")
    return found


def create(name):
    """`lab/node` in every hierarchy."""
    for hierarchy in hierarchies():
        path = hierarchy
        for part in name.split("/"):
            parent, path = path, path / part
            path.mkdir(exist_ok=True)
            for key in ("cpuset.cpus", "cpuset.mems"):  # without them nobody can be moved in
                if (path / key).exists() and not (path / key).read_text().strip():
                    (path / key).write_text((parent / key).read_text())


def enter(name):
    """Moves the calling process."""
    for hierarchy in hierarchies():
        (hierarchy / name / "cgroup.procs").write_text(str(os.getpid()))


def processes(name):
    """Of one hierarchy, which has them all; as pids of the reader's namespace."""
    found = []
    for path in (hierarchies()[0] / name).rglob("cgroup.procs"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except OSError:
            continue
    return [pid for pid in found if pid]


def kill(name):
    """Ends every process in it."""
    for pid in processes(name):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def remove(name, seconds=10):
    """True once it is gone from every hierarchy. A group stays busy for some milliseconds after its last process."""
    deadline = time.monotonic() + seconds
    while True:
        left = [path for path in (hierarchy / name for hierarchy in hierarchies()) if path.exists()]
        for path in left:
            for directory, _, _ in os.walk(path, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError:
                    continue
        if not left or time.monotonic() > deadline:
            return not left
        time.sleep(0.02)
