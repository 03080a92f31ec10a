# SPDX-License-Identifier: Apache-2.0
"""What holds for everything that the chart renders, whatever the values."""
import os
import re
import subprocess

import yaml

from helm import REPOSITORY

SELECTOR = {"k8s-app": "istio-cni-node"}
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")
# A setting that is wrong for certain: the agent says all errors and ends, without having begun anything.
PLANTED = "--health-port=99999"


def agent():
    target = os.environ.get("CARGO_TARGET_DIR") or REPOSITORY / "target"
    return f"{target}/x86_64-unknown-linux-musl/release/install-cni"


def documented():
    """The variables of docs/SETTINGS.md, and the flags."""
    rows = [line for line in (REPOSITORY / "docs" / "SETTINGS.md").read_text(encoding="utf-8").splitlines()
            if line.startswith("| ")]
    cells = " ".join(" ".join(row.split("|")[1:3]) for row in rows)
    return set(re.findall(r"`([A-Z][A-Z0-9_]+)`", cells)), set(re.findall(r"`(--[a-z0-9_-]+)`", cells))


def base(name):
    """A document of the plain manifests."""
    return yaml.safe_load((REPOSITORY / "daemonset" / "base" / f"{name}.yaml").read_text(encoding="utf-8"))


def box_of(daemonset):
    (container,) = daemonset["spec"]["template"]["spec"]["containers"]
    return container


def environment(objects):
    """What the agent's process sees, as Kubernetes makes it: the ConfigMap, then the container's own."""
    env = dict(objects["ConfigMap/istio-cni-config"]["data"])
    for item in box_of(objects["DaemonSet/istio-cni-node"])["env"]:
        env[item["name"]] = item.get("value", "x")
    return env


def sound(objects):
    """Names, references and types hold together."""
    for name, thing in objects.items():
        metadata = thing["metadata"]
        assert NAME.fullmatch(metadata["name"]), name
        assert ("namespace" in metadata) == (thing["kind"] not in CLUSTER_WIDE), name
        for key, value in metadata["labels"].items():
            assert isinstance(value, str) and LABEL.fullmatch(value), f"{name}: label {key}={value!r}"
        if thing["kind"].endswith("Binding"):
            bound(name, thing, objects)
    if "DaemonSet/istio-cni-node" in objects:
        pod_is_sound(objects)


def bound(name, binding, objects):
    role = binding["roleRef"]
    own = f"{role['kind']}/{role['name']}" in objects
    assert own or name == "RoleBinding/istio-cni-psp", f"{name}: no such role"
    account = {"kind": "ServiceAccount", "name": "istio-cni", "namespace": "istio-cni"}
    assert binding["subjects"] == [account], name


def pod_is_sound(objects):
    daemonset = objects["DaemonSet/istio-cni-node"]
    template, container = daemonset["spec"]["template"], box_of(daemonset)
    assert daemonset["spec"]["selector"] == {"matchLabels": SELECTOR}
    assert SELECTOR.items() <= template["metadata"]["labels"].items()
    assert f"ServiceAccount/{template['spec']['serviceAccountName']}" in objects
    assert container["envFrom"] == [{"configMapRef": {"name": "istio-cni-config"}}]
    names = [item["name"] for item in container["env"]]
    assert len(set(names)) == len(names), f"a variable twice: {names}"
    for texts in (objects["ConfigMap/istio-cni-config"]["data"], template["metadata"]["annotations"],
                  template["metadata"]["labels"], {i["name"]: i.get("value", "") for i in container["env"]}):
        assert all(isinstance(text, str) for text in texts.values()), texts
    mounts = [mount["name"] for mount in container["volumeMounts"]]
    assert mounts == [volume["name"] for volume in template["spec"]["volumes"]]
    for other in ("NetworkPolicy/istio-cni", "PodMonitor/istio-cni-node"):
        if other in objects:
            spec = objects[other]["spec"]
            assert spec.get("podSelector", spec.get("selector")) == {"matchLabels": SELECTOR}, other


def little_privilege(objects):
    """What the agent's pod never has, under whatever values."""
    pod = objects["DaemonSet/istio-cni-node"]["spec"]["template"]
    for absent in ("hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace", "initContainers"):
        assert absent not in pod["spec"], absent
    security = box_of(objects["DaemonSet/istio-cni-node"])["securityContext"]
    assert security["privileged"] is False and security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True and security["capabilities"]["drop"] == ["ALL"]
    assert set(security["capabilities"]["add"]) <= {"NET_ADMIN", "DAC_OVERRIDE"}
    assert not any("apparmor" in key for key in pod["metadata"]["annotations"])
    verbs = {(group, resource, verb) for thing in objects.values() if thing["kind"] in ("Role", "ClusterRole")
             for rule in thing["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
             for verb in rule["verbs"]}
    read = {("", what, verb) for what in ("pods", "nodes", "namespaces") for verb in ("get", "list", "watch")}
    own = {("", "events", "create"), ("", "events", "patch"), ("apps", "daemonsets", "get")}
    assert verbs - {("security.openshift.io", "securitycontextconstraints", "use")} == read | own, verbs


def accepted_by_the_agent(objects):
    """The agent itself reads the settings and finds only the one mistake that was put there."""
    variables, flags = documented()
    env = environment(objects)
    unknown = env.keys() - variables
    assert not unknown, f"not in docs/SETTINGS.md: {unknown}"
    arguments = box_of(objects["DaemonSet/istio-cni-node"])["args"]
    assert {argument.split("=")[0] for argument in arguments} <= flags, arguments
    done = subprocess.run([agent(), *arguments, PLANTED], env=env, capture_output=True, text=True, check=False, timeout=60)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 64 and len(said) == 1 and "--health-port" in said[0], f"{done.returncode}: {said}"
