# SPDX-License-Identifier: Apache-2.0
"""Each value of the chart changed alone, and all that this changes in what is rendered; platform presets the same."""
import json

from helm import ABSENT

SET = "ConfigMap/istio-cni-config.data."
DS = "DaemonSet/istio-cni-node."
TEMPLATE = DS + "spec.template."
POD = TEMPLATE + "spec."
BOX = POD + "containers[install-cni]."
IMAGE = BOX + "image"
NEW = "(new)"


def volume(name):
    return f"{POD}volumes[{name}].hostPath.path"


def labels(key, value):
    """A label of every object."""
    names = ["ClusterRole/istio-cni", "ClusterRole/istio-cni-events", "ClusterRoleBinding/istio-cni",
             "ClusterRoleBinding/istio-cni-events", "ConfigMap/istio-cni-config", "DaemonSet/istio-cni-node",
             "Role/istio-cni-node", "RoleBinding/istio-cni-node", "ServiceAccount/istio-cni"]
    return {f"{name}.metadata.labels.{key}": value for name in names}


CLUSTER_WIDE = ["ClusterRole/istio-cni", "ClusterRole/istio-cni-events", "ClusterRoleBinding/istio-cni",
                "ClusterRoleBinding/istio-cni-events"]
NAMESPACED = ["ConfigMap/istio-cni-config", "DaemonSet/istio-cni-node", "Role/istio-cni-node",
              "RoleBinding/istio-cni-node", "ServiceAccount/istio-cni"]
AFFINITY = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}
NODES = {"requiredDuringSchedulingIgnoredDuringExecution": AFFINITY}
PODS = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]}
EXPRESSIONS = [{"key": "a", "operator": "NotIn", "values": ["b", "c"]}]
DENSE = {"separators": (",", ":"), "sort_keys": True}
NOTHING = {}

# (value, given, what changes). A value may come several times.
CASES = [
    ("mode", "observe", {SET + "MODE": "observe"}),
    ("ipv6Policy", "drop", {SET + "IPV6_POLICY": "drop"}),
    ("ipv6Policy", "capture", {SET + "IPV6_POLICY": "capture"}),
    ("agentDeadlineSeconds", 200, {SET + "AGENT_DEADLINE_SECONDS": "200"}),
    ("excludeNamespaces", ["a", "b"], {SET + "EXCLUDE_NAMESPACES": "a,b"}),
    ("excludeNamespaces", [], {SET + "EXCLUDE_NAMESPACES": ""}),
    ("stopDecisionSeconds", 25, {SET + "STOP_DECISION_SECONDS": "25"}),
    *((f"exclude{what}Selector.{key}", value, {SET + f"EXCLUDE_{what.upper()}_SELECTOR": json.dumps({key: value}, **DENSE)})
      for what in ("Namespace", "Pod") for key, value in (("matchLabels", {"a": "true"}), ("matchExpressions", EXPRESSIONS))),
    # It would select everything.
    ("excludePodSelector.matchLabels", {}, NOTHING),
    ("runtimeClassBypass.policy", "refuse", {SET + "RUNTIME_CLASS_POLICY": "refuse"}),
    ("runtimeClassBypass.classes", ["my*"], {SET + "RUNTIME_CLASSES": "my*"}),
    ("podManifestDir", "/etc/pods", {
        SET + "POD_MANIFEST_DIR": "/etc/pods",
        BOX + "volumeMounts[pod-manifests].name": "pod-manifests",
        BOX + "volumeMounts[pod-manifests].mountPath": "/etc/pods",
        BOX + "volumeMounts[pod-manifests].readOnly": True,
        POD + "volumes[pod-manifests].name": "pod-manifests",
        volume("pod-manifests"): "/etc/pods",
        POD + "volumes[pod-manifests].hostPath.type": "DirectoryOrCreate"}),
    ("logging.level", "debug", {BOX + "args": ["--log_output_level=debug"]}),
    ("global.logging.level", "all:warn", {BOX + "args": ["--log_output_level=all:warn"]}),
    ("global.logging.level", "", {BOX + "args": []}),
    ("global.logAsJson", True, {BOX + "args": ["--log_output_level=info", "--log_as_json"]}),
    ("env.BIND_ADDRESS", "::1", {BOX + "env[BIND_ADDRESS].name": "BIND_ADDRESS", BOX + "env[BIND_ADDRESS].value": "::1"}),
    ("env.KUBECONFIG_MODE", 1000000, {
        BOX + "env[KUBECONFIG_MODE].name": "KUBECONFIG_MODE", BOX + "env[KUBECONFIG_MODE].value": "1000000"}),
    ("env.CNI_CONF_GROUP_READ", True, {
        BOX + "env[CNI_CONF_GROUP_READ].name": "CNI_CONF_GROUP_READ", BOX + "env[CNI_CONF_GROUP_READ].value": "true"}),
    # A user's variable takes the place of one of ours.
    ("env.POD_NAMESPACE", "x", {
        BOX + "env[POD_NAMESPACE].value": "x", BOX + "env[POD_NAMESPACE].valueFrom.fieldRef.fieldPath": ABSENT}),

    ("cniBinDir", "/x/bin", {volume("cni-bin-dir"): "/x/bin"}),
    ("cniConfDir", "/x/net.d", {volume("cni-net-dir"): "/x/net.d"}),
    ("cniConfFileName", "10-x.conflist", {SET + "CNI_CONF_NAME": "10-x.conflist"}),
    # Not chained: there is nothing that an own file could be a copy of.
    ("chained", False, {SET + "CHAINED_CNI_PLUGIN": "false", SET + "ISTIO_OWNED_CNI_CONFIG": "false"}),
    ("istioOwnedCNIConfig", False, {SET + "ISTIO_OWNED_CNI_CONFIG": "false"}),
    ("istioOwnedCNIConfigFileName", "01-x.conflist", {SET + "ISTIO_OWNED_CNI_CONFIG_FILENAME": "01-x.conflist"}),
    ("provider", "multus", {"NetworkAttachmentDefinition/istio-cni": NEW}),
    ("foreignOwner", True, {BOX + "securityContext.capabilities.add": ["NET_ADMIN", "DAC_OVERRIDE"]}),
    ("seLinuxOptions.type", "x_t", {BOX + "securityContext.seLinuxOptions.type": "x_t"}),
    *((f"seLinuxOptions.{key}", "x", {
        BOX + f"securityContext.seLinuxOptions.{key}": "x",
        BOX + "securityContext.seLinuxOptions.type": "spc_t"}) for key in ("user", "role", "level")),
    ("seccompProfile.type", "Unconfined", {BOX + "securityContext.seccompProfile.type": "Unconfined"}),
    ("seccompProfile.localhostProfile", "x", {BOX + "securityContext.seccompProfile.localhostProfile": "x"}),

    ("hub", "x.io/y", {IMAGE: "x.io/y/waylay:0.1.0"}),
    ("global.hub", "x.io/y", {IMAGE: "x.io/y/waylay:0.1.0"}),
    ("tag", "1", {IMAGE: "localhost/waylay:1"}),
    ("global.tag", "1", {IMAGE: "localhost/waylay:1"}),
    ("variant", "v", {IMAGE: "localhost/waylay:0.1.0-v"}),
    ("global.variant", "v", {IMAGE: "localhost/waylay:0.1.0-v"}),
    ("image", "agent", {IMAGE: "localhost/agent:0.1.0"}),
    ("image", "x.io/agent@sha256:0", {IMAGE: "x.io/agent@sha256:0"}),
    ("pullPolicy", "Always", {BOX + "imagePullPolicy": "Always"}),
    ("global.imagePullPolicy", "Never", {BOX + "imagePullPolicy": "Never"}),
    ("global.imagePullSecrets", ["a"], {"ServiceAccount/istio-cni.imagePullSecrets[a].name": "a"}),
    # Our limit may be below what is requested here.
    ("resources.requests.memory", "1Gi", {
        BOX + "resources.requests.memory": "1Gi", BOX + "resources.limits.memory": ABSENT}),
    ("resources.limits.memory", "1Gi", {BOX + "resources.limits.memory": "1Gi"}),
    # Used only where there is nothing else.
    ("global.defaultResources.requests.cpu", "1", NOTHING),
    ("global.defaultResources.limits.cpu", "1", NOTHING),

    ("updateStrategy.type", "OnDelete", {
        DS + "spec.updateStrategy.type": "OnDelete", DS + "spec.updateStrategy.rollingUpdate.maxSurge": ABSENT,
        DS + "spec.updateStrategy.rollingUpdate.maxUnavailable": ABSENT}),
    ("updateStrategy.rollingUpdate.maxSurge", "10%", {DS + "spec.updateStrategy.rollingUpdate.maxSurge": "10%"}),
    ("updateStrategy.rollingUpdate.maxSurge", 0, {
        DS + "spec.updateStrategy.rollingUpdate.maxSurge": ABSENT,
        DS + "spec.updateStrategy.rollingUpdate.maxUnavailable": 1}),
    ("updateStrategy.rollingUpdate.maxUnavailable", 3, {
        DS + "spec.updateStrategy.rollingUpdate.maxSurge": ABSENT,
        DS + "spec.updateStrategy.rollingUpdate.maxUnavailable": 3}),
    ("updateStrategy.rollingUpdate.maxUnavailable", 0, NOTHING),
    ("rollingMaxUnavailable", "25%", {
        DS + "spec.updateStrategy.rollingUpdate.maxSurge": ABSENT,
        DS + "spec.updateStrategy.rollingUpdate.maxUnavailable": "25%"}),
    ("terminationGracePeriodSeconds", 5, {POD + "terminationGracePeriodSeconds": 5, SET + "STOP_DECISION_SECONDS": "4"}),
    ("terminationGracePeriodSeconds", 3, {POD + "terminationGracePeriodSeconds": 3, SET + "STOP_DECISION_SECONDS": "2"}),
    ("terminationGracePeriodSeconds", 0, {POD + "terminationGracePeriodSeconds": 0, SET + "STOP_DECISION_SECONDS": "0"}),
    ("affinity.nodeAffinity", NODES, {
        POD + "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms":
            AFFINITY["nodeSelectorTerms"]}),
    *((f"affinity.{key}", PODS, {
        POD + f"affinity.{key}.requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "a"}]})
      for key in ("podAffinity", "podAntiAffinity")),
    ("tolerations", [{"key": "a", "operator": "Exists"}], {POD + "tolerations": [{"key": "a", "operator": "Exists"}]}),
    ("tolerations", [], {POD + "tolerations": ABSENT}),
    ("daemonSetLabels.a", "b", {DS + "metadata.labels.a": "b"}),
    ("podLabels.a", "b", {TEMPLATE + "metadata.labels.a": "b"}),
    ("podAnnotations.a", "b", {TEMPLATE + "metadata.annotations.a": "b"}),
    (("podAnnotations", "prometheus.io/scrape"), "false", {TEMPLATE + "metadata.annotations.prometheus.io/scrape": "false"}),
    # The selector cannot be changed, so this label cannot be either.
    ("podLabels.k8s-app", "x", NOTHING),
    ("daemonSetLabels.k8s-app", "x", NOTHING),
    ("resourceQuotas.enabled", True, {"ResourceQuota/istio-cni-resource-quota": NEW}),
    ("resourceQuotas.pods", 7, NOTHING),
    ("psp_cluster_role", "psp", {"RoleBinding/istio-cni-psp": NEW}),
    ("podMonitor.enabled", True, {"PodMonitor/istio-cni-node": NEW}),
    ("podMonitor.interval", "5s", NOTHING),
    ("revision", "r", labels("istio.io/rev", "r")),
    ("revision", "1", labels("istio.io/rev", "1")),
    ("ownerName", "true", labels("install.operator.istio.io/owning-resource", "true")),
    ("ownerName", "o", labels("install.operator.istio.io/owning-resource", "o")),
    ("global.networkPolicy.enabled", True, {"NetworkPolicy/istio-cni": NEW}),
    ("global.resourceScope", "cluster", {name: ABSENT for name in NAMESPACED}),
    ("global.resourceScope", "namespace", {name: ABSENT for name in CLUSTER_WIDE}),

    # Taken from the existing chart's values files, and without an effect.
    ("compatibilityVersion", "1.28", NOTHING), ("cniNetnsDir", "/x", NOTHING), ("logLevel", "debug", NOTHING),
    ("useAppArmorAnnotation", False, NOTHING), ("privileged", True, NOTHING), ("global.nativeNftables", True, NOTHING),
    ("ambient.enabled", False, NOTHING), ("profile", "demo", NOTHING), ("global.profile", "stable", NOTHING),
    ("repair.enabled", False, NOTHING), ("repair.hub", "x", NOTHING), ("repair.tag", "x", NOTHING),
    ("repair.labelPods", True, NOTHING), ("repair.deletePods", True, NOTHING), ("repair.repairPods", False, NOTHING),
    ("repair.initContainerName", "x", NOTHING), ("repair.brokenPodLabelKey", "x", NOTHING),
    ("repair.brokenPodLabelValue", "x", NOTHING), ("platform", "eks", NOTHING), ("global.platform", "eks", NOTHING),
    # Unknown, or nothing.
    ("somethingNew.x", 1, NOTHING), ("pilot.cni.enabled", True, NOTHING), ("global.proxy.image", "x", NOTHING),
    ("chained", None, NOTHING), ("tolerations", None, NOTHING), ("global.logging", None, NOTHING),
]

SPC = {BOX + "securityContext.seLinuxOptions.type": "spc_t"}
STANDALONE = {SET + "CHAINED_CNI_PLUGIN": "false", SET + "ISTIO_OWNED_CNI_CONFIG": "false",
              SET + "CNI_CONF_NAME": "istio-cni.conf"}
K3S = "/var/lib/rancher/k3s/agent/etc/cni/net.d"
SCC = {"apiGroups": ["security.openshift.io"], "resources": ["securitycontextconstraints"],
       "resourceNames": ["privileged"], "verbs": ["use"]}
READ = {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get", "list", "watch"]}

PLATFORMS = {
    "openshift": STANDALONE | SPC | {
        volume("cni-bin-dir"): "/var/lib/cni/bin", volume("cni-net-dir"): "/etc/cni/multus/net.d",
        "NetworkAttachmentDefinition/istio-cni": NEW, "ClusterRole/istio-cni.rules": [READ, SCC]},
    "starlingx": STANDALONE | {volume("cni-bin-dir"): "/var/opt/cni/bin"},
    "gke": {volume("cni-bin-dir"): "/home/kubernetes/bin", "ResourceQuota/istio-cni-resource-quota": NEW},
    "k3s": {volume("cni-bin-dir"): "/var/lib/rancher/k3s/data/cni", volume("cni-net-dir"): K3S},
    "k3d": {volume("cni-bin-dir"): "/bin", volume("cni-net-dir"): K3S},
    "microk8s": {volume("cni-bin-dir"): "/var/snap/microk8s/current/opt/cni/bin",
                 volume("cni-net-dir"): "/var/snap/microk8s/current/args/cni-network"},
    "rke2": SPC,
    "kubespray": {BOX + "securityContext.capabilities.add": ["NET_ADMIN", "DAC_OVERRIDE"]},
    "minikube": NOTHING, "eks": NOTHING, "aks": NOTHING, "oke": NOTHING, "talos": NOTHING,
}
