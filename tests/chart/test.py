#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Renders the chart with real Helm and compares: `test.py [WORD]` runs the tests whose names contain it.

HELM names the program; without it the cluster lab builds one. CARGO_TARGET_DIR is where `make build` put the agent, which
is asked what it thinks of the rendered settings. Fails when either is missing.
"""
import concurrent.futures
import functools
import json
import re
import sys
import traceback

import yaml

from api import cluster
from cases import CASES, IMAGE, PLATFORMS, PODS, volume
from checks import accepted_by_the_agent, base, box_of, environment, little_privilege, sound
from documentation import DOCUMENTATION
from foreign import (ERA_1_12, ERA_1_12_CHANGES, NO_SURGE, OPENSHIFT, REFUSED, SAIL, STARLINGX, STARLINGX_CHANGES, TODAY,
                     TODAY_CHANGES)
from helm import CHART, REPOSITORY, Refused, difference, flat, helm, install, nested, render


# Everything that is not rendered by default.
OPTIONAL = {"resourceQuotas": {"enabled": True, "pods": 1000000}, "podMonitor": {"enabled": True, "interval": "5s"},
            "global": {"networkPolicy": {"enabled": True}}, "revision": "r", "psp_cluster_role": "psp", "provider": "multus"}


@functools.cache
def default():
    return render()


def changes(values, expected, *arguments, **options):
    """What `values` change against the defaults is `expected`, and the result is sound."""
    objects = render(values, *arguments, **options)
    found = difference(default(), objects)
    assert found == expected, f"changed:  {found}\nexpected: {expected}"
    sound(objects)
    if expected.get("DaemonSet/istio-cni-node") is None and "ClusterRole/istio-cni" in objects:
        little_privilege(objects)
        accepted_by_the_agent(objects)


def refuses(values, parts, **options):
    try:
        render(values, **options)
    except Refused as refused:
        for part in parts:
            assert part in str(refused), f"{part!r} is not in:\n{refused}"
    else:
        raise AssertionError("it was rendered")


def schema():
    return json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["definitions"]["values"]


def leaves(part, path=()):
    """The known values: `(path, how the schema describes it)`; lists and maps with free keys are values themselves."""
    for key, inner in part["properties"].items():
        if inner.get("properties"):
            yield from leaves(inner, path + (key,))
        else:
            yield path + (key,), inner


def every_known_value_is_changed_by_a_case():
    changed = {key for path, value, _ in CASES if isinstance(path, str) for key in flat(nested(path, value))}
    for path, _ in leaves(schema()):
        name = ".".join(path)
        assert any(key == name or key.startswith(name + ".") for key in changed), f"no case changes {name}"


def defaults_are_known_to_the_schema():
    known = {".".join(path) for path, _ in leaves(schema())}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert list(defaults) == ["_internal_defaults_do_not_set"]
    for name in flat(defaults["_internal_defaults_do_not_set"]):
        assert any(name == key or name.startswith(key + ".") or key.startswith(name + ".") for key in known), name


def a_wrong_type_of_any_value_is_named_and_all_at_once():
    wrong = {}
    for path, description in leaves(schema()):
        kind = description.get("type", ["enum"])
        inner = wrong
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = "wrong" if "string" not in kind else ["wrong"]
    for values, prefix in ((wrong, ""), ({"cni": wrong}, "/cni")):
        refuses(values, [f"at '{prefix}/{'/'.join(path)}'" for path, _ in leaves(schema())])


def the_default_is_the_golden_one():
    golden = CHART.parents[1] / "tests" / "chart" / "default.yaml"
    found = render(OPTIONAL) | default()
    if "--bless" in sys.argv:
        text = ("# SPDX-License-Identifier: Apache-2.0\n# What the chart renders by default, and the objects that it renders "
                "when asked to; `tests/chart/test.py --bless` writes it.\n")
        golden.write_text(text + yaml.safe_dump(found, width=120), encoding="utf-8")
    wanted = yaml.safe_load(golden.read_text(encoding="utf-8"))
    assert found == wanted, difference(wanted, found) or "the order of a list"


def the_default_is_least_privilege_and_what_the_agent_accepts():
    changes({}, {})


def the_default_agrees_with_the_plain_manifests():
    chart, plain = default()["DaemonSet/istio-cni-node"], base("daemonset")
    ours, theirs = box_of(chart), box_of(plain)
    pods = chart["spec"]["template"]["spec"], plain["spec"]["template"]["spec"]
    for key in ("command", "args", "ports", "readinessProbe", "resources"):
        assert ours[key] == theirs[key], key
    seccomp = pods[1]["securityContext"]
    assert ours["securityContext"] == theirs["securityContext"] | seccomp
    for key in ("nodeSelector", "priorityClassName", "serviceAccountName", "terminationGracePeriodSeconds"):
        assert pods[0][key] == pods[1][key], key
    assert chart["spec"]["updateStrategy"] == plain["spec"]["updateStrategy"]
    assert theirs["volumeMounts"] == ours["volumeMounts"]
    assert pods[1]["volumes"] == pods[0]["volumes"]
    assert environment(default())["EXCLUDE_NAMESPACES"] == base("configmap")["data"]["EXCLUDE_NAMESPACES"]
    quota = render({"resourceQuotas": {"enabled": True}})["ResourceQuota/istio-cni-resource-quota"]
    assert quota["spec"] == base("resourcequota")["spec"]
    policy = render({"global": {"networkPolicy": {"enabled": True}}})["NetworkPolicy/istio-cni"]
    assert policy["spec"] == base("networkpolicy")["spec"]


def optional_objects_have_what_was_asked_for():
    objects = render(OPTIONAL)
    sound(objects)
    assert objects["ResourceQuota/istio-cni-resource-quota"]["spec"]["hard"] == {"pods": "1000000"}
    endpoints = objects["PodMonitor/istio-cni-node"]["spec"]["podMetricsEndpoints"]
    assert endpoints == [{"port": "metrics", "path": "/metrics", "interval": "5s"}]
    assert "NetworkPolicy/istio-cni-r" in objects
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "psp"}
    assert objects["RoleBinding/istio-cni-psp"]["roleRef"] == role
    network = objects["NetworkAttachmentDefinition/istio-cni"]
    assert network["metadata"]["namespace"] == "default" and "spec" not in network
    scoped = render(OPTIONAL | {"global": {"resourceScope": "cluster", "networkPolicy": {"enabled": True}}})
    assert {thing["kind"] for thing in scoped.values()} == {"ClusterRole", "ClusterRoleBinding"}, scoped.keys()


def resources_fall_back_when_there_are_none():
    values = {"resources": {"requests": {"cpu": None, "memory": None}}}
    assert box_of(render(values)["DaemonSet/istio-cni-node"])["resources"]["requests"] == {"cpu": "10m", "memory": "16Mi"}


def what_is_given_below_cni_wins_and_both_beat_the_platform():
    values = {"platform": "k3s", "cniBinDir": "/root", "cniConfDir": "/root", "cni": {"cniConfDir": "/cni"}}
    changes(values, {volume("cni-bin-dir"): "/root", volume("cni-net-dir"): "/cni"})
    changes({"platform": "k3s", "global": {"platform": "k3d"}}, PLATFORMS["k3s"])


def a_cluster_that_serves_sccs_gets_the_right_to_use_one():
    expected = {key: value for key, value in PLATFORMS["openshift"].items() if key == "ClusterRole/istio-cni.rules"}
    changes({}, expected, "--api-versions", "security.openshift.io/v1")


def gke_is_known_by_its_version():
    with cluster("v1.30.5-gke.1014001") as gke:
        assert difference(default(), install(gke)[0]) == {volume("cni-bin-dir"): "/home/kubernetes/bin"}
        assert difference(default(), install(gke, "--set", "cniBinDir=/x")[0]) == {volume("cni-bin-dir"): "/x"}


def a_namespace_that_would_refuse_the_pods_is_named():
    key = "pod-security.kubernetes.io/enforce"
    for level in ("baseline", "restricted"):
        with cluster(namespace_labels={key: level}) as strict:
            try:
                install(strict)
            except Refused as refused:
                command = f"kubectl label --overwrite namespace istio-cni {key}=privileged"
                assert f'namespace istio-cni: Pod Security level "{level}"' in str(refused), refused
                assert command in str(refused), refused
            else:
                raise AssertionError(f"installed into a namespace with level {level}")
    for fine in ({key: "privileged"}, {"a": "b"}, {}, None):
        with cluster(namespace_labels=fine) as lenient:
            assert install(lenient)[0] == default()


def a_surge_is_asked_for_only_where_the_cluster_knows_it():
    plain = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    surge = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    for version, expected in (("1.20.0", plain), ("1.21.14", plain), ("1.22.0", surge), ("1.22.0-eks-1", surge), ("1.36.0", surge)):
        objects = render({}, version=version)
        assert objects["DaemonSet/istio-cni-node"]["spec"]["updateStrategy"] == expected, version
        sound(objects)
        little_privilege(objects)
    for strategy in NO_SURGE:
        refuses({"updateStrategy": strategy}, ["updateStrategy.rollingUpdate: this needs maxSurge", "v1.21.0"], version="1.21.0")
    refuses({}, ["1.19.0", ">=1.20.0-0"], version="1.19.0")


def values_files_of_the_existing_chart_work():
    changes(TODAY, TODAY_CHANGES)
    changes({"cni": TODAY, "global": TODAY["global"]}, TODAY_CHANGES)
    changes({"_internal_defaults_do_not_set": {}} | TODAY, TODAY_CHANGES)
    changes(ERA_1_12, ERA_1_12_CHANGES)
    rules = {"ClusterRole/istio-cni.rules": PLATFORMS["openshift"]["ClusterRole/istio-cni.rules"]}
    changes(SAIL, OPENSHIFT | rules | {volume("cni-net-dir"): "/x", IMAGE: "images.test/x/waylay@sha256:1"})
    changes(STARLINGX, STARLINGX_CHANGES)
    for profile in ({"profile": "openshift"}, {"global": {"profile": "openshift"}}):
        changes(profile, PLATFORMS["openshift"])


def both_places_together_are_merged():
    values = {"affinity": {"podAffinity": PODS}, "cni": {"affinity": {"podAntiAffinity": PODS}}}
    affinity = render(values)["DaemonSet/istio-cni-node"]["spec"]["template"]["spec"]["affinity"]
    assert affinity == {"podAffinity": PODS, "podAntiAffinity": PODS}


def lint_has_nothing_to_say():
    said = helm("lint", ".", "--strict")
    assert "1 chart(s) linted, 0 chart(s) failed" in said and "[WARNING]" not in said and "[ERROR]" not in said, said


def the_notes_name_what_has_no_effect():
    with cluster() as known:
        plain = install(known)[1]
        told = install(known, "--set", "repair.deletePods=true,cni.privileged=true,mode=observe")[1]
    assert "Without effect" not in plain and "observes" not in plain, plain
    assert "DaemonSet istio-cni-node in istio-cni, image localhost/waylay:0.1.0" in plain, plain
    assert "kubectl rollout status -n istio-cni daemonset/istio-cni-node" in plain, plain
    assert "If no pod of it appears" in plain and "kubectl label namespace istio-cni pod-security" in plain, plain
    assert "Without effect: privileged (never needed), repair (no repair of pods yet)" in told, told
    assert "It observes" in told and "--set mode=redirect" in told, told


def versions_are_those_of_the_workspace():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    (version,) = re.findall(r'^version = "(.*)"', (REPOSITORY / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert chart["version"] == chart["appVersion"] == version


def tests():
    """All of them: `(name, function)`."""
    for function in (
            every_known_value_is_changed_by_a_case, defaults_are_known_to_the_schema,
            a_wrong_type_of_any_value_is_named_and_all_at_once, the_default_is_the_golden_one,
            the_default_is_least_privilege_and_what_the_agent_accepts, the_default_agrees_with_the_plain_manifests,
            optional_objects_have_what_was_asked_for, resources_fall_back_when_there_are_none,
            what_is_given_below_cni_wins_and_both_beat_the_platform, a_cluster_that_serves_sccs_gets_the_right_to_use_one,
            gke_is_known_by_its_version, a_namespace_that_would_refuse_the_pods_is_named,
            a_surge_is_asked_for_only_where_the_cluster_knows_it,
            values_files_of_the_existing_chart_work, both_places_together_are_merged, lint_has_nothing_to_say,
            the_notes_name_what_has_no_effect, versions_are_those_of_the_workspace, *DOCUMENTATION):
        yield function.__name__, function
    for path, value, expected in CASES:
        name = path if isinstance(path, str) else ".".join(path)
        values = nested(path, value)
        yield f"{name}={json.dumps(value)}", functools.partial(changes, values, expected)
        if not name.startswith(("global", "pilot")):
            yield f"cni.{name}={json.dumps(value)}", functools.partial(changes, {"cni": values}, expected)
    for platform, expected in PLATFORMS.items():
        yield f"platform {platform}", functools.partial(changes, {"platform": platform}, expected)
        yield f"global.platform {platform}", functools.partial(changes, {"global": {"platform": platform}}, expected)
    for values, parts in REFUSED:
        yield f"refused: {json.dumps(values)}", functools.partial(refuses, values, parts)


def outcome(test):
    try:
        test[1]()
    except (AssertionError, Refused) as error:
        return str(error) or "".join(traceback.format_exception(error)[-2:])
    except Exception as error:  # A template that renders something else entirely fails one test, not all of them.
        return "".join(traceback.format_exception(error)[-2:])
    return None


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("-")]
    wanted = [test for test in tests() if all(word in test[0] for word in words)]
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for (name, _), error in zip(wanted, pool.map(outcome, wanted)):
            if error is not None:
                failed += 1
                print(f"FAILED {name}\n{error}", flush=True)
    print(f"{len(wanted) - failed} passed, {failed} failed")
    return 1 if failed or len(wanted) == failed else 0


if __name__ == "__main__":
    sys.exit(main())
