# SPDX-License-Identifier: Apache-2.0
"""docs/CHART.md against the chart: it has each value, default, variable and platform, and no others."""
import json
import re

import yaml

from cases import EXPRESSIONS
from checks import environment
from helm import CHART, REPOSITORY, nested, render

NONE = object()


def table(heading):
    """The rows below `## heading`, by their first cell."""
    text = (REPOSITORY / "docs" / "CHART.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    names = [row[0].strip("`") for row in rows]
    assert len(set(names)) == len(names), f"{heading}: twice: {names}"
    return dict(zip(names, rows))


def values():
    return table("Values of the existing chart") | table("Values of our own")


def default_of(name):
    found = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["_internal_defaults_do_not_set"]
    for key in name.split("."):
        found = found.get(key, NONE) if isinstance(found, dict) else NONE
    return found


def known():
    """As the schema has them, nested."""
    def leaves(part, path):
        for key, inner in part["properties"].items():
            yield from leaves(inner, f"{path}{key}.") if inner.get("properties") else [path + key]
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return set(leaves(schema["definitions"]["values"], ""))


def the_documentation_has_each_value_and_no_other():
    missing, unknown = known() - values().keys(), values().keys() - known()
    assert not missing and not unknown, f"missing: {missing}; unknown: {unknown}"


def the_documentation_has_the_defaults():
    for name, (_, text, *_) in values().items():
        if text.startswith("`") and text.endswith("`") and text.count("`") == 2:
            assert json.loads(text.strip("`")) == default_of(name), f"{name}: {text}"
        elif not text:
            assert default_of(name) is NONE, f"{name}: {default_of(name)} is not there"


def the_documentation_has_the_variable_of_each_value_of_ours():
    example = {"agentDeadlineSeconds": 7, "runtimeClassBypass.classes": ["x"], "mode": "observe", "ipv6Policy": "drop",
               "runtimeClassBypass.policy": "refuse", "stopDecisionSeconds": 7}
    before = environment(render())
    for name, (_, _, variable, _) in table("Values of our own").items():
        given = True if not variable else example.get(name, "/x")
        given = {"matchLabels": {"a": "b"}, "matchExpressions": EXPRESSIONS}.get(name.split(".")[-1], given)
        after = environment(render(nested(name, given)))
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert changed == set(re.findall(r"`(\w+)`", variable)), f"{name}: {changed}"


def the_documentation_has_each_platform_and_no_other():
    files = {path.stem.removeprefix("platform-") for path in (CHART / "files").iterdir()}
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["definitions"]["values"]["properties"]
    for choices in (schema["platform"]["enum"], schema["global"]["properties"]["platform"]["enum"]):
        assert set(choices) - {"", None} == files
    assert table("Platforms").keys() == files


def the_documentation_has_each_role():
    text = (REPOSITORY / "docs" / "CHART.md").read_text(encoding="utf-8").split("\n## Rights\n")[1]
    for thing in render().values():
        if thing["kind"] in ("Role", "ClusterRole"):
            assert f"| {thing['kind']} `{thing['metadata']['name']}` |" in text, thing["metadata"]["name"]
            for rule in thing["rules"]:
                for resource in rule["resources"]:
                    what = "the DaemonSet" if resource == "daemonsets" else resource
                    assert f"| {', '.join(rule['verbs'])} {what}" in text, f"{rule['verbs']} {what}"


DOCUMENTATION = (
    the_documentation_has_each_value_and_no_other, the_documentation_has_the_defaults,
    the_documentation_has_the_variable_of_each_value_of_ours, the_documentation_has_each_platform_and_no_other,
    the_documentation_has_each_role)
