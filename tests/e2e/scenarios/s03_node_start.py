# SPDX-License-Identifier: Apache-2.0
"""A node starts again: its processes are gone, /run is empty, its disk is as it was. The agent and 20 pods come in any order."""
import random
import time

import pods
from supervise import wait_for
from world import expect

TITLE = "node start: agent and 20 pods in random order"
# Chained, some are, and they are to be told of, and no others.
UNREDIRECTED = True
NODE, NAMESPACE, PODS, TIMES = "n1", "boot", 20, 5


def run(world, say):
    for mode in ("own file", "chained"):
        world.install(values=[f"istioOwnedCNIConfig={str(mode == 'own file').lower()}"])
        started = world.start(*(pods.idle(f"boot-{number}", NAMESPACE, NODE) for number in range(PODS)), seconds=180)
        expect(all(world.redirected(pod) for pod in started[:3]), "not redirected before the node starts again")
        counts = []
        for number in range(TIMES):
            counts.append(one_start(world, mode, anew=number % 2 == 1))
        world.delete(NAMESPACE)
        say(f"{mode}: {TIMES} starts of {PODS} pods: unredirected {[bypassing for bypassing, _ in counts]}, "
            f"all running after {max(seconds for _, seconds in counts):.0f} s at most")
    world.uninstall()


def one_start(world, mode, anew):
    """(pods that bypass, seconds until all ran). `anew`: the primary network writes its list only some time after the start."""
    before, told = {pod["metadata"]["name"]: restarts(pod) for pod in world.api.pods(NAMESPACE)}, world.alarms()
    primary = world.lab.state / NODE / "disk/etc/cni/net.d/10-lab.conflist"
    kept = world.primary[NODE]
    world.lab.reboot(NODE, while_off=(lambda disk: primary.unlink()) if anew else None)
    began = time.monotonic()
    if anew:
        wait_for("the node", 60, lambda: world.lab.run("node", NODE, "true", check=False).returncode == 0)
        time.sleep(random.uniform(0, 5))
        world.lab.node(NODE, "sh", "-c", "cat >/etc/cni/net.d/new && mv /etc/cni/net.d/new /etc/cni/net.d/10-lab.conflist", input=kept)

    def all_again():
        now = world.api.pods(NAMESPACE)
        return all(restarts(pod) > before[pod["metadata"]["name"]] and running(pod) for pod in now) and now
    now = wait_for(f"all pods of {NODE} to run again ({mode})", 240, all_again, [world.lab.state / "logs" / NODE / "kubelet.log"])
    took = time.monotonic() - began
    world.wait_installed(120)
    bypassing = sorted(pod["metadata"]["name"] for pod in now if not world.redirected(pod))
    if mode == "own file":
        expect(not bypassing, f"in own-file mode these run without redirection: {bypassing}")
    wait_for(f"events about {bypassing}", 30, lambda: {name for _, name, _ in world.alarms() - told} >= set(bypassing))
    alarmed = sorted(name for _, name, _ in world.alarms() - told)
    expect(alarmed == bypassing, f"told of {alarmed}, not of {bypassing}")
    return len(bypassing), took


def restarts(pod):
    return sum(status["restartCount"] for status in pod["status"].get("containerStatuses", []))


def running(pod):
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and all("running" in status["state"] for status in statuses)
