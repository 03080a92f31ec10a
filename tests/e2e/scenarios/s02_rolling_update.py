# SPDX-License-Identifier: Apache-2.0
"""Rolling updates of the agent while pods keep coming: a good release, and one that crashes once it serves."""
import time

from load import Load
from world import CRASH

TITLE = "rolling updates under 2 pods a second"
RATE = 2


def run(world, say):
    world.install()
    load = Load(world, RATE)
    load.start()
    time.sleep(2)
    began = time.monotonic()
    world.update("next")
    world.wait_installed()
    took = time.monotonic() - began
    time.sleep(2)
    say(f"rolled over in {took:.1f} s: {load.finish()}")
    expect_image(world, "next")

    load = Load(world, RATE)
    load.count = 1000  # names that were not there before
    load.start()
    time.sleep(2)
    world.update("crash", CRASH)
    crashes = wait_for_crashes(world, 2)
    world.lab.kubectl("rollout", "undo", "daemonset/istio-cni-node", "-n", world.namespace)
    world.wait_installed(120)
    time.sleep(2)
    say(f"rolled to a release that crashed {crashes} times, and back: {load.finish()}")
    world.delete("load")


def expect_image(world, tag):
    images = {pod["spec"]["containers"][0]["image"] for pod in world.agents()}
    if images != {f"localhost/waylay:{tag}"}:
        raise AssertionError(f"the agents run {images}")


def wait_for_crashes(world, wanted, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        crashes = sum(status["restartCount"] for pod in world.agents() for status in pod["status"].get("containerStatuses", [])
                      if status["image"].endswith(":crash"))
        if crashes >= wanted:
            return crashes
        time.sleep(0.5)
    raise AssertionError(f"the release that is to crash did not crash {wanted} times within {seconds} s")
