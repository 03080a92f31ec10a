# SPDX-License-Identifier: Apache-2.0
"""The agent is killed again and again while pods keep coming."""
import time

from load import Load
from supervise import wait_for

TITLE = "agent killed 10 times under 1 pod a second"
KILLS = 10


def run(world, say):
    world.install()
    load = Load(world, 1, on_the_way=80)
    load.count = 2000
    load.start()
    nodes = world.lab.nodes()
    killed = {}
    for number in range(KILLS):
        node = nodes[number % len(nodes)]
        pid = wait_for(f"another agent to run on {node}", 120, lambda: not_the_same(world.agent_pid(node), killed.get(node)))
        time.sleep(0.5)
        world.lab.node(node, "kill", "-KILL", pid)
        killed[node] = pid
    world.wait_installed(360)
    say(f"{KILLS} times SIGKILL: {load.finish(seconds=360)}")
    world.delete("load")


def not_the_same(pid, other):
    return pid if pid != other else None
