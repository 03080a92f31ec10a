#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A CNI plugin that leaves rules in the shapes of the replaced component. `backend` in its entry: iptables-legacy, iptables-nft or nft."""
import json
import os
import subprocess
import sys

IPTABLES = """*nat
:ISTIO_INBOUND - [0:0]
:ISTIO_REDIRECT - [0:0]
:ISTIO_IN_REDIRECT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -p tcp -j ISTIO_INBOUND
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT -s {source} -o lo -j RETURN
-A ISTIO_OUTPUT ! -d {loopback} -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
-A ISTIO_OUTPUT -d {loopback} -j RETURN
-A ISTIO_OUTPUT -j ISTIO_REDIRECT
COMMIT
"""
NFT = """table inet istio-proxy-nat {
    chain istio-inbound {
        tcp dport 15008 counter return
        tcp dport { 15020, 15021, 15090 } counter return
        meta l4proto tcp counter jump istio-in-redirect
    }
    chain istio-redirect { meta l4proto tcp counter redirect to :15001; }
    chain istio-in-redirect { meta l4proto tcp counter redirect to :15006; }
    chain istio-output {
        oifname "lo" ip saddr 127.0.0.6 counter return
        oifname "lo" ip6 saddr ::6 counter return
        oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 counter jump istio-in-redirect
        oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 counter jump istio-in-redirect
        oifname "lo" meta skuid != 1337 counter return
        meta skuid 1337 counter return
        ip daddr 127.0.0.1 counter return
        ip6 daddr ::1 counter return
        counter jump istio-redirect
    }
    chain prerouting { type nat hook prerouting priority -100; meta l4proto tcp counter jump istio-inbound; }
    chain output { type nat hook output priority -100; counter jump istio-output; }
}
"""


def main():
    config = json.load(sys.stdin)
    command = os.environ["CNI_COMMAND"]
    if command == "VERSION":
        print(json.dumps({"cniVersion": "1.0.0", "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0"]}))
    if command != "ADD":
        return
    arguments = dict(pair.split("=", 1) for pair in os.environ["CNI_ARGS"].split(";") if "=" in pair)
    if arguments.get("K8S_POD_NAMESPACE") in config["namespaces"]:
        inside("ip", "-6", "addr", "replace", "::6/128", "dev", "lo")
        if config["backend"] == "nft":
            inside("nft", "-f", "-", text=NFT)
        else:
            kind = config["backend"].removeprefix("iptables-")
            inside(f"iptables-{kind}-restore", text=IPTABLES.format(source="127.0.0.6/32", loopback="127.0.0.1/32"))
            inside(f"ip6tables-{kind}-restore", text=IPTABLES.format(source="::6/128", loopback="::1/128"))
    print(json.dumps(config["prevResult"]))


def inside(*command, text=None):
    subprocess.run(["nsenter", "--net=" + os.environ["CNI_NETNS"], *command], input=text, text=True, check=True)


if __name__ == "__main__":
    main()
