#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""notice.py OUT TARGET...   the licences of everything that is linked into the two programs

What is linked differs from target to target, so that each is looked at. A crate without a licence expression is an error;
one without licence files is listed with its expression.
"""
import json
import pathlib
import re
import subprocess
import sys

PROGRAMS = ("cni-plugin", "node-agent")
FILES = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense)([-._].*)?$", re.IGNORECASE)
HEAD = """\
Waylay is licensed under the Apache License, Version 2.0: see the file LICENSE beside this one.
It contains the software below, statically linked. Each is used under the terms that are named with it; the numbers
refer to the texts that follow.

Rust's standard library        MIT OR Apache-2.0, https://github.com/rust-lang/rust, Copyright The Rust Project Developers
musl libc                      MIT, https://musl.libc.org, Copyright 2005-2020 Rich Felker, et al.
"""


def cargo(*arguments):
    return subprocess.run(("cargo", *arguments), check=True, stdout=subprocess.PIPE, text=True).stdout


def linked(target):
    """(name, version) of each crate that is linked; a procedural macro runs in the compiler and is not."""
    programs = [word for program in PROGRAMS for word in ("-p", program)]
    listed = cargo("tree", "--locked", *programs, "--target", target, "-e", "normal,no-proc-macro", "--prefix", "none",
                   "--format", "{p}")
    for line in filter(None, listed.splitlines()):
        name, version = line.split()[:2]
        yield name, version.removeprefix("v")


def texts(package):
    directory = pathlib.Path(package["manifest_path"]).parent
    for path in sorted(directory.iterdir()):
        if path.is_file() and FILES.match(path.name):
            yield "\n".join(line.rstrip() for line in path.read_text("utf-8", "replace").strip().splitlines())


def notice(packages):
    numbers, lines = {}, [HEAD]
    for package in sorted(packages, key=lambda p: (p["name"], p["version"])):
        name, terms = f"{package['name']} {package['version']}", package["license"]
        if not terms:
            sys.exit(f"notice.py: {name} names no licence")
        found = [numbers.setdefault(text, len(numbers) + 1) for text in texts(package)]
        lines.append(f"{name:<30} {terms}" + (f"  [{', '.join(map(str, found))}]" if found else ""))
    for text, number in numbers.items():
        lines.append(f"\n{'=' * 40} [{number}]\n\n{text}")
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) < 3:
        sys.exit("usage: notice.py OUT TARGET...")
    wanted = {crate for target in sys.argv[2:] for crate in linked(target)}
    packages = json.loads(cargo("metadata", "--locked", "--format-version=1"))["packages"]
    # Our own crates are under our own licence.
    foreign = [p for p in packages if p["source"] and (p["name"], p["version"]) in wanted]
    if not foreign:
        sys.exit("notice.py: nothing is linked, which cannot be")
    pathlib.Path(sys.argv[1]).write_text(notice(foreign), "utf-8")


if __name__ == "__main__":
    main()
