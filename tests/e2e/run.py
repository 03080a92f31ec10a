#!/usr/bin/env -S python3 -B
# SPDX-License-Identifier: Apache-2.0
"""`run.py smoke|all|NUMBER... [--runtime 1.6] --image LAYOUT`: runs scenarios on real clusters, prints what each proved.

Scenarios share a cluster until one fails or wants another kind (`LAB`): the next one gets a new cluster. The logs of one where a
scenario failed are kept.
"""
import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "scenarios")]

import lab as labs  # noqa: E402
from world import Failed, World, expect  # noqa: E402

SMOKE = [1, 2, 5]
# All; first the one that needs a quiet machine. Those at the end leave a cluster behind that others could not start from.
ORDER = [11, 1, 2, 10, 4, 13, 9, 8, 6, 7, 3, 15, 5, 12, 14]


def scenarios():
    """{number: module}"""
    found = {}
    for path in sorted((HERE / "scenarios").glob("s[0-9][0-9]_*.py")):
        found[int(path.name[1:3])] = importlib.import_module(path.stem)
    return found


class Runner:
    def __init__(self, options):
        self.options = options
        self.world = None
        self.results = []

    def cluster(self, number, **wanted):
        """The cluster for a scenario, started if there is none like it."""
        if self.world and self.world.lab.wanted != wanted:
            self.forget(self.world.lab, failed=False)
        if self.world is None:
            started = time.monotonic()
            name = f"{os.getpid()}-{number}"
            lab = labs.Lab(name, runtime=self.options.runtime, agent_images=[(self.options.image, tag) for tag in ("dev", "next")],
                           crash_image=self.options.image, audit=True, **wanted)
            lab.wanted = wanted
            try:
                lab.up()
                self.world = World(lab, smoke="smoke" in self.options.scenarios)
            except BaseException:
                self.forget(lab, failed=True)
                raise
            print(f"   two nodes, containerd {self.options.runtime}, Ready after {time.monotonic() - started:.1f} s", flush=True)
        return self.world

    def forget(self, lab, failed):
        kept = labs.LABS / "failed" / lab.name if failed else None
        try:
            if kept:
                collect(lab)
        finally:
            lab.down(keep_logs=kept)
        if kept:
            print(f"   logs are in {kept}", flush=True)
        self.world = None

    def run(self, number, module):
        print(f"{number:2} {module.TITLE}", flush=True)
        started = time.monotonic()
        try:
            world = self.cluster(number, **getattr(module, "LAB", {}))
            module.run(world, lambda text: print(f"   {text}", flush=True))
            # Those of the last moment are found by the next scenario.
            if getattr(module, "UNREDIRECTED", False):
                world.expected_alarms = world.alarms()
            expect(world.alarms() == world.expected_alarms, f"pods are said to run unredirected: {world.alarms() - world.expected_alarms}")
        except Failed as failure:
            print(f"   FAILED: {failure}", flush=True)
            failed = True
        except Exception:
            print("   FAILED:\n" + traceback.format_exc(), flush=True)
            failed = True
        else:
            print(f"   passed in {time.monotonic() - started:.1f} s", flush=True)
            failed = False
        self.results.append(failed)
        if self.world and failed:
            self.forget(self.world.lab, failed=True)


def collect(lab):
    """What a person would ask the cluster first, next to its logs."""
    questions = {
        "pods.txt": ["get", "pods", "-A", "-o", "wide"], "events.txt": ["get", "events", "-A", "--sort-by=.lastTimestamp"],
        "pods.yaml": ["get", "pods", "-A", "-o", "yaml"],
    }
    lab.keep_agent_logs()
    for file, arguments in questions.items():
        try:
            done = lab.run("kubectl", *arguments, "--request-timeout=10s", check=False, timeout=20)
        except (OSError, subprocess.SubprocessError) as error:
            (lab.state / "logs" / file).write_text(str(error), encoding="utf-8")
        else:
            (lab.state / "logs" / file).write_text(done.stdout + done.stderr, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="+", help="smoke, all, or numbers")
    parser.add_argument("--runtime", choices=["2.2", "1.6"], default="2.2")
    parser.add_argument("--image", type=pathlib.Path, required=True, help="our image, an OCI layout")
    options = parser.parse_args()
    known = scenarios()
    numbers = []
    for word in options.scenarios:
        numbers += {"smoke": SMOKE, "all": [number for number in ORDER if number in known]}.get(word) or [int(word)]
    missing = [number for number in numbers if number not in known]
    if missing:
        sys.exit(f"run.py: no such scenario: {missing}")
    runner = Runner(options)
    started = time.monotonic()
    try:
        for number in numbers:
            runner.run(number, known[number])
    finally:
        if runner.world:
            runner.forget(runner.world.lab, failed=False)
    failed = sum(runner.results)
    print(f"{len(runner.results) - failed} passed, {failed} failed ({time.monotonic() - started:.0f} s, containerd {options.runtime})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
