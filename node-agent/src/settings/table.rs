// SPDX-License-Identifier: Apache-2.0
//! The settings that have an effect: names, default and meaning of each. Those without one are in [`super::ignored`].
//!
//! `docs/SETTINGS.md` has the same table, and a test compares the two.

use super::ignored::IGNORED;

/// One setting and everything by which it can be given.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Without `--`; empty when there is only the variable.
    pub(crate) flag: &'static str,
    /// The first of these that is set counts.
    pub(crate) variables: &'static [&'static str],
    /// What text means.
    pub(crate) kind: Kind,
    /// As it would be written in the variable.
    pub(crate) default: &'static str,
    /// For the help text and the documentation.
    pub(crate) meaning: &'static str,
    /// Whether it does anything.
    pub(crate) effect: Effect,
}

/// What the text of a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `true` or `false` as Go's `strconv.ParseBool` has them; a flag without a value is true.
    Bool,
    /// A whole number.
    Number,
    /// Anything.
    Text,
}

/// Whether a setting does anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It does what it says.
    Used,
    /// It is accepted, and this is why it does nothing. Its value is not looked at.
    Ignored(&'static str),
}

impl Setting {
    /// What stands for it in logs and in `/config`: the flag, else the variable.
    pub(crate) fn name(&self) -> &'static str {
        if self.flag.is_empty() { self.variables.first().copied().unwrap_or_default() } else { self.flag }
    }
}

const fn used(
    flag: &'static str,
    variables: &'static [&'static str],
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { flag, variables, kind, default, meaning, effect: Effect::Used }
}

/// Every setting, those with an effect first.
pub(crate) fn all() -> impl Iterator<Item = &'static Setting> {
    USED.into_iter().chain(IGNORED)
}

macro_rules! settings {
    ($($name:ident: $flag:literal, [$($variable:literal),*], $kind:ident, $default:literal, $meaning:literal;)*) => {
        $(pub(crate) static $name: Setting = used($flag, &[$($variable),*], Kind::$kind, $default, $meaning);)*
        static USED: [&Setting; [$($flag),*].len()] = [$(&$name),*];
    };
}

settings! {
    RUN_DIR: "cni-agent-run-dir", ["CNI_AGENT_RUN_DIR"], Text, "/var/run/istio-cni",
        "directory of the sockets; its path is the same on the node";
    POD_MANIFEST_DIR: "pod-manifest-dir", ["POD_MANIFEST_DIR"], Text, "",
        "directory of Pod manifests (YAML or JSON), watched, in place of the Kubernetes API";
    NODE_NAME: "node-name", ["NODE_NAME", "KUBERNETES_NODE_NAME"], Text, "",
        "name of the node whose pods are watched in the Kubernetes API; required unless there is a directory of manifests";
    REPAIR_NODE_NAME: "repair-node-name", ["REPAIR_NODE_NAME"], Text, "",
        "the same, where nothing else names the node";
    MONITORING_PORT: "monitoring-port", ["MONITORING_PORT"], Number, "15014",
        "port of `/metrics`; 0 or less for none";
    HEALTH_PORT: "health-port", ["HEALTH_PORT"], Number, "8000",
        "port of `/readyz`, `/healthz` and `/config`; 0 or less for none";
    BIND_ADDRESS: "bind-address", ["BIND_ADDRESS"], Text, "",
        "address that both ports are bound to; empty: all addresses of both families";
    IPV6_POLICY: "ipv6-policy", ["IPV6_POLICY"], Text, "auto",
        "what is done with IPv6 that a pod's proxy does not serve: `auto` (leave it alone, as Istio does), `capture` or `drop`";
    MODE: "mode", ["MODE"], Text, "redirect",
        "`redirect`, or `observe`: decide, log and count, and change nothing in any pod";
    RUNTIME_CLASSES: "runtime-classes", ["RUNTIME_CLASSES"], Text, "gvisor,runsc,kata*",
        "comma-separated runtime classes whose pods do not heed the rules of their network namespace; a trailing `*` for any ending";
    RUNTIME_CLASS_POLICY: "runtime-class-policy", ["RUNTIME_CLASS_POLICY"], Text, "report",
        "what is done with a mesh pod of such a class: `report` (it starts; log, metric and event tell) or `refuse`";
    EXCLUDE_POD_SELECTOR: "", ["EXCLUDE_POD_SELECTOR"], Text, "",
        "label selector (YAML or JSON, as in Kubernetes) of pods that are left alone";
    EXCLUDE_NAMESPACE_SELECTOR: "", ["EXCLUDE_NAMESPACE_SELECTOR"], Text, "",
        "the same for the labels of their namespaces, which are watched then";
    DAEMONSET_NAME: "daemonset-name", ["DAEMONSET_NAME"], Text, "istio-cni-node",
        "the agent's own DaemonSet in `POD_NAMESPACE`: when it is gone or being deleted at the agent's end, the node is cleaned up";
    STOP_SECONDS: "stop-decision-seconds", ["STOP_DECISION_SECONDS"], Number, "20",
        "how long the agent may ask at its end whether the stop is an uninstall, 0 (never) to 25; an agent that is killed before it knows removes nothing";
    AMBIENT_ENABLED: "ambient-enabled", ["AMBIENT_ENABLED"], Bool, "false",
        "not served yet: while true, sidecars are redirected as ever, and the agent stays not ready with `ambient_not_supported`";
    LOG_OUTPUT_LEVEL: "log_output_level", [], Text, "",
        "comma-separated `scope:level`; the agent's scope is `cni-agent`, the plugin's `cni-plugin`; `all` or a bare level count for both";
    LOG_AS_JSON: "log_as_json", [], Bool, "false",
        "log JSON lines";
    ENABLE_INSTALL: "cni-enable-install", ["CNI_ENABLE_INSTALL"], Bool, "true",
        "install the plugin and its configuration on the node";
    BIN_SOURCE: "cni-bin-source", ["CNI_BIN_SOURCE"], Text, "/opt/cni/bin/istio-cni",
        "the plugin's file in the image";
    BIN_DIRS: "mounted-cni-bin-dir", ["MOUNTED_CNI_BIN_DIR"], Text, "/host/opt/cni/bin",
        "comma-separated directories, as mounted, that the plugin is copied to";
    NET_DIR: "mounted-cni-net-dir", ["MOUNTED_CNI_NET_DIR"], Text, "/host/etc/cni/net.d",
        "directory of CNI configurations, as mounted";
    CONF_NAME: "cni-conf-name", ["CNI_CONF_NAME"], Text, "",
        "configuration file to chain to, or to write when not chained; empty: the one that the runtime loads, or `YYY-istio-cni.conf`";
    CHAINED: "chained-cni-plugin", ["CHAINED_CNI_PLUGIN"], Bool, "true",
        "add an entry to the primary network's configuration; false: a file of its own, for Multus";
    OWN_FILE: "istio-owned-cni-config", ["ISTIO_OWNED_CNI_CONFIG"], Bool, "false",
        "chained only: leave the primary's file alone and keep a copy of it with our entry in a file that sorts before it";
    OWN_FILE_NAME: "istio-owned-cni-config-filename",
        ["ISTIO_OWNED_CNI_CONFIG_FILENAME", "ISTIO_OWNED_CNI_CONF_FILENAME"], Text, "",
        "name of that copy; empty: `02-istio-cni.conflist`";
    CONF_GROUP_READ: "cni-conf-group-read", ["CNI_CONF_GROUP_READ"], Bool, "false",
        "configuration files of our own get mode 0640 instead of 0600";
    EXCLUDE_NAMESPACES: "", ["EXCLUDE_NAMESPACES", "EXCLUDED_NAMESPACES"], Text, "",
        "comma-separated namespaces whose pods the plugin lets pass";
    NETWORK_CONFIG: "cni-network-config", ["CNI_NETWORK_CONFIG"], Text, "",
        "template of the 1.12 era, of which only `kubernetes.exclude_namespaces` counts, unless namespaces are given above";
    POD_NAMESPACE: "", ["POD_NAMESPACE"], Text, "",
        "the agent's own namespace, whose `istio-cni-node-*` pods the plugin lets pass";
    POD_NAME: "", ["POD_NAME"], Text, "",
        "the agent's own pod, which gets the events about the node";
    AGENT_DEADLINE: "agent-deadline-seconds", ["AGENT_DEADLINE_SECONDS"], Number, "60",
        "how long the plugin waits for the agent at each ADD, 1 to 200";
}
