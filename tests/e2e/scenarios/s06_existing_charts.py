# SPDX-License-Identifier: Apache-2.0
"""The image under the DaemonSets of the existing chart: everything of scenario 1 holds."""
import s01_traffic

TITLE = "the existing chart's DaemonSet in the shapes of 1.12, 1.23 and 1.32"


def run(world, say):
    for shape in ("existing-1.12", "existing-1.23", "existing-1.32"):
        if world.installed:
            world.uninstall()
        world.install(shape)
        say(f"{shape}: the agents are Ready")
        s01_traffic.check_traffic(world, lambda text, shape=shape: say(f"{shape}: {text}"))
