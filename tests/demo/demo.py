# SPDX-License-Identifier: Apache-2.0
"""`make demo`: four pods on a node of their own, real CNI plugins, real Envoy, real HTTP over IPv4 and IPv6.

Prints which listener took each request and which original destination the proxy saw. Exit status: 0 everything as
expected, 1 a row failed, 2 the demo could not be set up, 130 interrupted.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

import node
from node import DemoError, Sandbox, inside, run, start, wait_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "target/demo"
BUILT = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "x86_64-unknown-linux-musl"
PODS = ["app", "client", "plain", "excluded"]
SIDECARS = ["app", "client"]
APP, PROXY = 1000, 1337  # uid and gid
PASSTHROUGH = {4: "127.0.0.6", 6: "::6"}  # where the inbound listener calls the application from

# from, as which uid, to, port, the listeners that must take the request on its way
CASES = [
    ("client", APP, "app", 8080, ["client:15001", "app:15006"]),
    ("plain", APP, "app", 8080, ["app:15006"]),
    ("excluded", APP, "app", 8080, ["app:15006"]),
    ("app", APP, "client", 8080, ["app:15001", "client:15006"]),
    ("client", APP, "plain", 8080, ["client:15001"]),
    ("client", APP, "excluded", 8080, ["client:15001"]),
    ("plain", APP, "excluded", 8080, []),  # neither end is captured
    ("excluded", APP, "plain", 8080, []),
    ("plain", APP, "app", 9090, []),  # excludeInboundPorts
    ("client", APP, "plain", 9090, []),  # excludeOutboundPorts
    ("client", PROXY, "plain", 8080, []),  # what the proxy itself sends is not captured again
    ("app", APP, "app", 8080, []),  # the application calling its own pod
    ("app", PROXY, "app", 8080, ["app:15006"]),  # the proxy calling its own pod
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plugin", type=Path, default=BUILT / "plugin/istio-cni", help="the CNI plugin to run")
    parser.add_argument("--agent", type=Path, default=BUILT / "release/install-cni", help="the node agent to run")
    parser.add_argument("--keep", action="store_true", help="keep the node until Ctrl-C, to look around in it")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    try:
        lock = node.only_demo(OUT / "lock")
        for needed in (options.plugin, options.agent):
            if not needed.exists():
                raise DemoError(f"{needed} is missing: run make build")
        status = node.in_private_namespaces(lambda: demo(options))
        lock.close()
        return status
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


def demo(options):
    """What runs inside the node's namespaces."""
    began = time.monotonic()
    pid = node.mount_node()
    stage(options)
    start_agent()
    pods = start_pods()
    print_pods(pods)
    rows = [call(pods, case, family) for case in CASES for family in (4, 6)]
    print_rows(rows)
    keep_evidence(pods)
    failed = sum(not row["ok"] for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} requests went the expected way", end="")
    print(f", {failed} FAILED" if failed else "", end="")
    print(f" ({time.monotonic() - began:.1f} s)")
    print_where_to_look()
    if options.keep:
        print_way_in(pid)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
    for pod in pods.values():
        pod.delete()
    return 1 if failed else 0


def stage(options):
    """Copies what other users need to where they may reach it: the checkout can be below a closed home directory, and the
    agent may not look into one either."""
    Path("/run/demo/bin").mkdir(parents=True)
    shutil.copy(options.plugin, "/run/demo/bin/istio-cni")
    shutil.copy(options.agent, "/run/demo/bin/install-cni")
    shutil.copy(HERE / "app.py", "/run/demo/app.py")
    shutil.copytree(HERE / "pods", "/run/demo/pods")
    envoy = next((ROOT / "target/venv").glob("lib/python3*/site-packages/envoy/_bin/envoy"))
    Path("/run/demo/bin/envoy").touch()
    run("mount", "--bind", str(envoy), "/run/demo/bin/envoy")
    for name in SIDECARS:
        Path(f"/run/demo/envoy-{name}.yaml").write_text((HERE / "envoy.yaml").read_text().replace("$POD", name))


def start_agent():
    """The agent in a network namespace of its own, with one capability."""
    run("ip", "netns", "add", "agent")
    run("ip", "-n", "agent", "link", "set", "lo", "up")
    Path("/run/istio-cni").mkdir()
    log = OUT / "agent.log"
    command = ["/run/demo/bin/install-cni", "--pod-manifest-dir", "/run/demo/pods", "--cni-enable-install=false"]
    agent = start(inside("agent", *command, caps="-all,+net_admin"), log)
    wait_for("the agent", agent, log, lambda: http_ok("agent", "http://127.0.0.1:8000/readyz"))


def start_pods():
    """The sandboxes by the CNI chain, then the containers: sidecars first, as Kubernetes starts them."""
    conflist = json.loads((HERE / "network.conflist").read_text())
    pods = {name: Sandbox(yaml.safe_load((HERE / f"pods/{name}.yaml").read_text()), conflist) for name in PODS}
    for pod in pods.values():
        pod.add()
    waits = []
    for name in SIDECARS:
        command = ["/run/demo/bin/envoy", "-c", f"/run/demo/envoy-{name}.yaml", "--concurrency", "1",
                   "--disable-hot-restart", "--file-flush-interval-msec", "20", "--log-level", "warning"]
        log = OUT / f"envoy-{name}.log"
        envoy = start(inside(name, *command, uid=PROXY, gid=PROXY), log)
        waits.append((f"Envoy of {name}", envoy, log, name, "http://127.0.0.1:15000/ready"))
    for name in PODS:
        log = OUT / f"app-{name}.log"
        app = start(inside(name, "/usr/bin/python3", "/run/demo/app.py", name, "8080", "9090", uid=APP, gid=APP), log)
        waits.append((f"the application of {name}", app, log, name, "http://127.0.0.1:9090/"))
    for what, process, log, netns, url in waits:
        wait_for(what, process, log, lambda: http_ok(netns, url))
    return pods


def in_netns(netns, *command):
    return run("nsenter", f"--net=/run/netns/{netns}", *command)


def http_ok(netns, url):
    return subprocess.run(inside(netns, "curl", "-sf", "--noproxy", "*", "-m", "1", "-o", "/dev/null", url)).returncode == 0


def call(pods, case, family):
    """One request, and what became of it."""
    source, uid, target, port, expected = case
    address = pods[target].addresses[family]
    authority = f"[{address}]:{port}" if family == 6 else f"{address}:{port}"
    curl = ["curl", "-sS", "-i", "-g", "--noproxy", "*", "-m", "5", f"http://{authority}/"]
    done = subprocess.run(inside(source, *curl, uid=uid, gid=uid), capture_output=True, text=True)
    row = {
        "from": f"{source} (uid {uid})" if uid == PROXY else source, "to": f"{target}:{port}", "family": f"IPv{family}",
        "taken": [], "destinations": [], "expected": expected, "ok": False, "why": done.stderr.strip(),
    }
    if done.returncode != 0:
        return row
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    # The proxy nearest the application answers first, so its header comes first.
    hops = [line.split()[1:] for line in head.splitlines() if line.startswith("x-hop:")][::-1]
    row["taken"] = [f"{pod}:{listener}" for pod, listener, _ in hops]
    row["destinations"] = [destination for _, _, destination in hops]
    row["why"] = mismatch(row, head, body, authority, pods, case, family)
    row["ok"] = row["why"] == ""
    return row


def mismatch(row, head, body, authority, pods, case, family):
    """What is not as expected, or nothing."""
    source, _, target, _, expected = case
    if row["taken"] != expected:
        return "not the expected listeners"
    if any(destination != authority for destination in row["destinations"]):
        return f"the destination was {authority}"
    if " 200 " not in head.splitlines()[0]:
        return head.splitlines()[0]
    captured = any(hop.startswith(f"{target}:") and hop.endswith(":15006") for hop in expected)
    peer = PASSTHROUGH[family] if captured else pods[source].addresses[family]
    answer = json.loads(body)
    if answer != {"pod": target, "peer": peer}:
        return f"{answer['pod']} answered and was called from {answer['peer']}, not {peer}"
    return ""


def print_pods(pods):
    lines = [("Pod", "Addresses", "ADD by istio-cni", "Rules in its namespace")]
    for pod in pods.values():
        addresses = ", ".join(pod.addresses[family] for family in (4, 6))
        listing = json.loads(in_netns(pod.name, "nft", "-j", "list", "ruleset"))
        rules = sum("rule" in item for item in listing["nftables"])
        lines.append((f"{pod.meta['namespace']}/{pod.name}", addresses, f"{pod.add_ms:.1f} ms", str(rules or "none")))
    table(lines)


def print_rows(rows):
    lines = [("From", "To", "", "Taken by", "Expected", "Original destination seen", "")]
    for row in rows:
        seen = list(dict.fromkeys(row["destinations"]))
        lines.append((
            row["from"], row["to"], row["family"], ", ".join(row["taken"]) or "no proxy",
            ", ".join(row["expected"]) or "no proxy", ", ".join(seen) or "-",
            "ok" if row["ok"] else f"FAILED: {row['why']}",
        ))
    table(lines)


def table(lines):
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())


def keep_evidence(pods):
    """Writes down what is gone when the node is."""
    for name in pods:
        listing = in_netns(name, "nft", "list", "ruleset")
        (OUT / f"rules-{name}.nft").write_text(listing or "# no rules\n")
    metrics = in_netns("agent", "curl", "-sSf", "--noproxy", "*", "http://127.0.0.1:15014/metrics")
    (OUT / "metrics.txt").write_text(metrics)


def print_where_to_look():
    out = OUT.relative_to(ROOT)
    print(f"""
Where to look deeper:
  {out}/agent.log        one line per pod: the decision and its reason
  {out}/rules-app.nft    the rules of each pod, as `nft list ruleset` prints them in its namespace
  {out}/envoy-app.log    what each proxy saw
  {out}/metrics.txt      what Prometheus would have scraped
  docs/ARCHITECTURE.md         how it works;  tests/demo/ is the demo itself
  make demo KEEP=1             keeps the node until Ctrl-C, to look around in it""", flush=True)


def print_way_in(pid):
    enter = f"nsenter -t {pid} -m -p -n"
    print(f"""
The node is up until Ctrl-C. From another terminal, as root:
  {enter} ip netns exec app nft list ruleset
  {enter} ip netns exec client curl -i http://10.88.0.2:8080/
  {enter} ip netns exec agent curl http://127.0.0.1:15014/metrics
  {enter} bash""", flush=True)


if __name__ == "__main__":
    sys.exit(main())
