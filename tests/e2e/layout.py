# SPDX-License-Identifier: Apache-2.0
"""Names and addresses in a lab. The same in every lab: each has its own network namespaces."""

API = ("172.30.0.1", "fd00:30::1")
SERVICES = "10.96.0.0/16,fd00:96::/112"
SERVICE_API = ("10.96.0.1", "fd00:96::1")
POD_NETWORKS = "10.244.0.0/16,fd00:244::/48"
PAUSE = "local.test/pause:1"


def node_name(number):
    return f"n{number}"


def node_addresses(number):
    return (f"172.30.0.1{number}", f"fd00:30::1{number}")


def pod_subnets(number):
    return (f"10.244.{number}.0/24", f"fd00:244:0:{number}::/64")
