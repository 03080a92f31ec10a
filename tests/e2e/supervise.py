# SPDX-License-Identifier: Apache-2.0
"""Keeps daemons running, as an init system would, and waits for things with a deadline.

Of each daemon NAME: `NAME.log` in the log directory, `NAME.pid` in the state directory (as seen in the cluster's PID
namespace). While a file `NAME.hold` is there, a daemon that ended is not started again: killing it stops it.
"""
import os
import pathlib
import subprocess
import sys
import time


class TooLate(Exception):
    """Something did not happen in time; says what, and shows the logs that may tell why."""


def wait_for(what, seconds, happened, logs=()):
    """The first true answer of `happened`. Asks every 50 ms, and gives up loudly."""
    deadline = time.monotonic() + seconds
    while True:
        answer = happened()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TooLate(f"waited {seconds} s in vain for {what}" + "".join(f"\n{tail(log)}" for log in logs))
        time.sleep(0.05)


def tail(path, lines=12):
    """The last lines of a log, with its name."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        text = [str(error)]
    return "\n".join([f"--- last lines of {path}", *(f"    {line[:400]}" for line in text[-lines:])])


class Supervisor:
    """Daemons and the loop that keeps them. Also reaps orphans: it may be PID 1."""

    def __init__(self, state, logs):
        self.state, self.logs = pathlib.Path(state), pathlib.Path(logs)
        self.commands, self.running = {}, {}

    def daemon(self, name, command, environment=None):
        self.commands[name] = (command, environment)
        self.start(name)

    def start(self, name):
        command, environment = self.commands[name]
        with open(self.logs / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        self.running[process.pid] = (name, process)
        written = self.state / f"{name}.pid.new"
        written.write_text(str(process.pid), encoding="ascii")
        written.rename(self.state / f"{name}.pid")

    def pid(self, name):
        """The pid of a daemon that runs, or None."""
        return next((pid for pid, (other, _) in self.running.items() if other == name), None)

    def tick(self):
        """Reaps what ended and starts what is missing."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self.running:
                name, process = self.running.pop(pid)
                process.returncode = os.waitstatus_to_exitcode(status)
                print(f"{time.strftime('%T')} {name} (pid {pid}) ended: {process.returncode}", file=sys.stderr, flush=True)
        for name in self.commands:
            if self.pid(name) is None and not (self.state / f"{name}.hold").exists():
                self.start(name)

    def wait(self, what, seconds, happened):
        """`wait_for`, while daemons are kept running."""
        def step():
            self.tick()
            return happened()
        return wait_for(what, seconds, step)
