# SPDX-License-Identifier: Apache-2.0
"""Real Helm, and what it renders: objects by kind and name, and the difference between two renderings."""
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "daemonset" / "chart"
ABSENT = "(absent)"
CHECKSUM = "DaemonSet/istio-cni-node.spec.template.metadata.annotations.checksum/config"


class Refused(Exception):
    """Helm did not render; the text is what it said."""


def find_helm():
    """HELM, or the lab's, which its build script makes when it is missing. There is no going on without it."""
    if os.environ.get("HELM"):
        return os.environ["HELM"]
    build = REPOSITORY / "tests" / "e2e" / "build.py"
    if not build.exists():
        sys.exit(f"chart: no Helm: set HELM to it ({build} is not there either)")
    answer = subprocess.run([sys.executable, build, "helm"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return str(pathlib.Path(answer.split()[-1]) / "helm")


HELM = find_helm()


def helm(*arguments, kubeconfig="/nonexistent"):
    """Runs Helm away from the user's settings and from any cluster but a given one."""
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": kubeconfig}
        done = subprocess.run([HELM, *arguments], capture_output=True, text=True, env=environment, cwd=CHART, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr + done.stdout)
    return done.stdout


def render(values=None, *arguments, version="1.36.0"):
    """The objects of `values`, by `Kind/name`."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values or {}, file)
        file.flush()
        text = helm("template", "istio-cni", ".", "--namespace", "istio-cni", "--kube-version", version,
                    "--values", file.name, *arguments)
    return by_name(text)


def install(kubeconfig, *arguments):
    """The objects that an installation in that cluster would make, and the notes."""
    said = helm("install", "istio-cni", ".", "--namespace", "istio-cni", "--dry-run=server", "--disable-openapi-validation",
                *arguments, kubeconfig=kubeconfig)
    manifest, notes = said.split("MANIFEST:\n")[1].split("\nNOTES:\n")
    return by_name(manifest), notes


def by_name(text):
    objects = {}
    for document in yaml.safe_load_all(text):
        if document:
            name = f"{document['kind']}/{document['metadata']['name']}"
            assert name not in objects, f"{name} twice"
            objects[name] = document
    return objects


def flat(value, path=""):
    """`{"a.b[name].c": leaf}`. A list of named things is a map by name, every other list is a leaf."""
    if isinstance(value, dict) and value:
        pairs = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        pairs = [(f"{path}[{item['name']}]", item) for item in value]
        assert len({key for key, _ in pairs}) == len(pairs), f"{path}: a name twice"
    else:
        return {path: value}
    return {key: leaf for name, item in pairs for key, leaf in flat(item, name).items()}


def difference(before, after):
    """What changed: `{path: new value}`, with the kind and name alone for an object that came or went."""
    changed = {}
    for name in before.keys() | after.keys():
        if name not in after:
            changed[name] = ABSENT
        elif name not in before:
            changed[name] = "(new)"
        else:
            old, new = flat(before[name], name), flat(after[name], name)
            changed.update({key: new.get(key, ABSENT) for key in old.keys() | new.keys()
                            if old.get(key, ABSENT) != new.get(key, ABSENT)})
    # Pods are replaced exactly when the settings change.
    settings = any(key.startswith("ConfigMap/istio-cni-config.data.") for key in changed)
    if "DaemonSet/istio-cni-node" in before and "DaemonSet/istio-cni-node" in after:
        assert settings == (changed.pop(CHECKSUM, None) is not None), "checksum of the settings"
    return changed


def nested(path, value):
    """`{"a": {"b": value}}` of `a.b`; a key with dots of its own comes as a tuple."""
    for key in reversed(path if isinstance(path, tuple) else path.split(".")):
        value = {key: value}
    return value
