// SPDX-License-Identifier: Apache-2.0
//! Settings of the component that this one replaces which are accepted and do nothing, each with its reason, so that any
//! of its charts can start this agent. A variable that is in no table is ignored, too, and not spoken of.

use super::table::{Effect, Kind, Setting};

const REPAIR: &str = "no repair of pods yet";
const AMBIENT: &str = "no ambient mode yet";
const KUBECONFIG: &str = "no credential is written to the node";
const LOGS: &str = "logs go to stdout";
const DEBUG: &str = "there is no such debug server; see `install-cni status`";
const INSTALLED: &str = "the plugin is kept up to date always";
const RUNTIME: &str = "of the Go runtime";
const IPTABLES: &str = "rules are written to nf_tables by netlink always";
const API: &str = "the API server is spoken to over TLS always";
const SELF: &str = "nothing depends on it";
const OBSOLETE: &str = "of a form of configuration that was given up";

const fn ignored(
    flag: &'static str,
    variables: &'static [&'static str],
    kind: Kind,
    why: &'static str,
) -> Setting {
    Setting { flag, variables, kind, default: "", meaning: "", effect: Effect::Ignored(why) }
}

macro_rules! ignored {
    ($($flag:literal, [$($variable:literal),*], $kind:ident, $why:ident;)*) => {
        /// All of them.
        pub(super) static IGNORED: &[Setting] =
            &[$(ignored($flag, &[$($variable),*], Kind::$kind, $why)),*];
    };
}

ignored! {
    "repair-enabled", ["REPAIR_ENABLED"], Bool, REPAIR;
    "", ["REPAIR_REPAIR_PODS"], Bool, REPAIR;
    "repair-delete-pods", ["REPAIR_DELETE_PODS"], Bool, REPAIR;
    "repair-label-pods", ["REPAIR_LABEL_PODS"], Bool, REPAIR;
    "repair-broken-pod-label-key", ["REPAIR_BROKEN_POD_LABEL_KEY"], Text, REPAIR;
    "repair-broken-pod-label-value", ["REPAIR_BROKEN_POD_LABEL_VALUE"], Text, REPAIR;
    "repair-run-as-daemon", ["REPAIR_RUN_AS_DAEMON"], Bool, REPAIR;
    "repair-sidecar-annotation", ["REPAIR_SIDECAR_ANNOTATION"], Text, REPAIR;
    "repair-init-container-name", ["REPAIR_INIT_CONTAINER_NAME"], Text, REPAIR;
    "repair-init-container-termination-message", ["REPAIR_INIT_CONTAINER_TERMINATION_MESSAGE"], Text, REPAIR;
    "repair-init-container-exit-code", ["REPAIR_INIT_CONTAINER_EXIT_CODE"], Number, REPAIR;
    "repair-label-selectors", ["REPAIR_LABEL_SELECTORS"], Text, REPAIR;
    "repair-field-selectors", ["REPAIR_FIELD_SELECTORS"], Text, REPAIR;
    "", ["ISTIO_OUTBOUND_OWNER_GROUPS"], Text, REPAIR;
    "", ["ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"], Text, REPAIR;
    "", ["ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"], Text, REPAIR;
    "", ["DRY_RUN_FILE_PATH"], Text, REPAIR;
    "", ["AMBIENT_ENABLEMENT_SELECTOR"], Text, AMBIENT;
    "", ["AMBIENT_DNS_CAPTURE"], Bool, AMBIENT;
    "", ["AMBIENT_IPV6"], Bool, AMBIENT;
    "", ["AMBIENT_RECONCILE_POD_RULES_ON_STARTUP"], Bool, AMBIENT;
    "", ["AMBIENT_DISABLE_SAFE_UPGRADE"], Bool, AMBIENT;
    "", ["AMBIENT_USE_SCOPED_XTABLES_LOCKING"], Bool, AMBIENT;
    "", ["AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE"], Bool, AMBIENT;
    "enable-ambient-detection-retry", ["ENABLE_AMBIENT_DETECTION_RETRY"], Bool, AMBIENT;
    "ztunnel-uds-address", ["ZTUNNEL_UDS_ADDRESS"], Text, AMBIENT;
    "ebpf-enabled", ["EBPF_ENABLED"], Bool, AMBIENT;
    "", ["ALLOW_SWITCH_TO_HOST_NS"], Bool, AMBIENT;
    "", ["HOST_PROBE_SNAT_IP"], Text, AMBIENT;
    "", ["HOST_PROBE_SNAT_IPV6"], Text, AMBIENT;
    "", ["SYSTEM_NAMESPACE"], Text, AMBIENT;
    "", ["REVISION"], Text, AMBIENT;
    "", ["CURRENT_AGENT_VERSION"], Text, SELF;
    "", ["KUBERNETES_SERVICE_PROTOCOL"], Text, API;
    "kube-ca-file", ["KUBE_CA_FILE"], Text, KUBECONFIG;
    "skip-tls-verify", ["SKIP_TLS_VERIFY"], Bool, KUBECONFIG;
    "kubeconfig-mode", ["KUBECONFIG_MODE"], Number, KUBECONFIG;
    "kubecfg-file-name", ["KUBECFG_FILE_NAME"], Text, KUBECONFIG;
    "", ["NATIVE_NFTABLES"], Bool, IPTABLES;
    "", ["FORCE_IPTABLES_BINARY"], Text, IPTABLES;
    "cni-net-dir", ["CNI_NET_DIR"], Text, OBSOLETE;
    "cni-network-config-file", ["CNI_NETWORK_CONFIG_FILE"], Text, OBSOLETE;
    "log-level", ["LOG_LEVEL"], Text, OBSOLETE;
    "skip-cni-binaries", ["SKIP_CNI_BINARIES"], Text, INSTALLED;
    "update-cni-binaries", ["UPDATE_CNI_BINARIES"], Bool, INSTALLED;
    "cni-enable-reinstall", ["CNI_ENABLE_REINSTALL"], Bool, INSTALLED;
    "log-uds-address", ["LOG_UDS_ADDRESS"], Text, LOGS;
    "log_target", [], Text, LOGS;
    "log_stacktrace_level", [], Text, LOGS;
    "log_caller", [], Text, LOGS;
    "log_rotate", [], Text, LOGS;
    "log_rotate_max_age", [], Number, LOGS;
    "log_rotate_max_backups", [], Number, LOGS;
    "log_rotate_max_size", [], Number, LOGS;
    "ctrlz_port", [], Number, DEBUG;
    "ctrlz_address", [], Text, DEBUG;
    "", ["GOMEMLIMIT"], Text, RUNTIME;
    "", ["GOMAXPROCS"], Text, RUNTIME;
    "", ["GODEBUG"], Text, RUNTIME;
    "", ["GOGC"], Text, RUNTIME;
}
