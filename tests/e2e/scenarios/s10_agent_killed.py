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
    started = {}
    for number in range(KILLS):
        node = nodes[number % len(nodes)]
        pid = wait_for(f"an agent to run on {node}", 120, lambda: agent_pid(world, node, started.get(node)))
        time.sleep(0.5)
        world.lab.node(node, "kill", "-KILL", pid)
        started[node] = pid
    world.wait_installed(360)
    say(f"{KILLS} times SIGKILL: {load.finish(seconds=360)}")
    world.delete("load")


def agent_pid(world, node, not_this):
    """Of the agent on a node; None while there is none but the one that was killed."""
    pod = next(pod for pod in world.agents() if pod["spec"]["nodeName"] == node)
    status = pod["status"]["containerStatuses"][0]
    pid = world.pid(node, status.get("containerID", ""))
    return pid if pid != not_this and "running" in status["state"] else None
