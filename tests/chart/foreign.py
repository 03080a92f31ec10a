# SPDX-License-Identifier: Apache-2.0
"""Values as users of the existing chart have them, and what must come out; and values that must be refused."""
from cases import BOX, DS, IMAGE, NEW, SET, SPC, STANDALONE, volume

# Every value of the existing chart written out with its default, but for the image, which is the user's to change.
TODAY = {
    "hub": "", "tag": "", "variant": "", "pullPolicy": "", "logging": {"level": ""},
    "cniBinDir": "/opt/cni/bin", "cniConfDir": "/etc/cni/net.d", "cniConfFileName": "", "cniNetnsDir": "/var/run/netns",
    "istioOwnedCNIConfig": False, "istioOwnedCNIConfigFileName": "", "excludeNamespaces": ["kube-system"],
    "affinity": {}, "daemonSetLabels": {}, "podLabels": {}, "podAnnotations": {}, "chained": True, "provider": "default",
    "ambient": {"enabled": False, "configDir": "", "dnsCapture": True, "ipv6": True, "reconcileIptablesOnStartup": True,
                "shareHostNetworkNamespace": False, "enableAmbientDetectionRetry": False,
                "enablementSelectors": [{"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]},
    "repair": {"enabled": True, "hub": "", "tag": "", "labelPods": False, "deletePods": False, "repairPods": True,
               "initContainerName": "istio-validation", "brokenPodLabelKey": "cni.istio.io/uninitialized",
               "brokenPodLabelValue": "true"},
    "seccompProfile": {}, "seLinuxOptions": {}, "useAppArmorAnnotation": True,
    "resources": {"requests": {"cpu": "100m", "memory": "100Mi"}},
    "resourceQuotas": {"enabled": False, "pods": 5000}, "terminationGracePeriodSeconds": 30,
    "tolerations": [{"effect": "NoSchedule", "operator": "Exists"}, {"key": "CriticalAddonsOnly", "operator": "Exists"},
                    {"effect": "NoExecute", "operator": "Exists"}],
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
    "revision": "", "ownerName": "", "env": {},
    "global": {"variant": "", "imagePullPolicy": "", "imagePullSecrets": [], "logging": {"level": "info"},
               "logAsJson": False, "nativeNftables": False, "networkPolicy": {"enabled": False}, "resourceScope": "all",
               "defaultResources": {"requests": {"cpu": "100m", "memory": "100Mi"}}},
}
TODAY_CHANGES = {
    SET + "ISTIO_OWNED_CNI_CONFIG": "false",
    BOX + "resources.requests.cpu": "100m", BOX + "resources.requests.memory": "100Mi",
    BOX + "resources.limits.memory": "(absent)",
    DS + "spec.updateStrategy.rollingUpdate.maxSurge": "(absent)",
    DS + "spec.updateStrategy.rollingUpdate.maxUnavailable": 1,
}
# As the charts of the 1.12 era and of 1.20 have them.
ERA_1_12 = {
    "cni": {"hub": "", "tag": "", "variant": "", "pullPolicy": "", "logLevel": "debug", "cniBinDir": "",
            "cniConfDir": "/etc/cni/net.d", "cniConfFileName": "", "cniNetnsDir": None,
            "excludeNamespaces": ["istio-system", "kube-system"], "affinity": {}, "podAnnotations": {},
            "psp_cluster_role": "psp", "chained": True, "privileged": True, "provider": "default",
            "ambient": {"enabled": False, "redirectMode": "iptables", "configDir": ""},
            "repair": {"enabled": True, "hub": "", "tag": "", "labelPods": True, "deletePods": True},
            "taint": {"enabled": False}, "rollingMaxUnavailable": 1},
    "global": {"logging": {"level": "default:info,cni:info"}, "imagePullSecrets": [], "logAsJson": False},
}
ERA_1_12_CHANGES = {
    SET + "EXCLUDE_NAMESPACES": "istio-system,kube-system", "RoleBinding/istio-cni-psp": NEW,
    BOX + "args": ["--log_output_level=default:info,cni:info"],
    DS + "spec.updateStrategy.rollingUpdate.maxSurge": "(absent)",
    DS + "spec.updateStrategy.rollingUpdate.maxUnavailable": 1,
}
# What the Sail Operator passes on: everything below `cni`, and a pinned image.
SAIL = {"profile": "openshift", "global": {"platform": "openshift"},
        "cni": {"image": "images.test/x/waylay@sha256:1", "resource_quotas": {"enabled": True}, "cniConfDir": "/x"}}
OPENSHIFT = STANDALONE | SPC | {
    volume("cni-bin-dir"): "/var/lib/cni/bin", "NetworkAttachmentDefinition/istio-cni": NEW}
STARLINGX = {
    "cni": {"chained": False, "cniBinDir": "/var/opt/cni/bin", "cniConfDir": "/etc/cni/net.d",
            "cniConfFileName": "istio-cni.conf", "image": "registry.local:9001/x/waylay:1",
            "excludeNamespaces": ["kube-system", "istio-operator", "istio-system"],
            "resources": {"requests": {"cpu": 0, "memory": 0}}},
    "global": {"imagePullSecrets": ["default-registry-key"]},
}
STARLINGX_CHANGES = STANDALONE | {
    volume("cni-bin-dir"): "/var/opt/cni/bin", SET + "EXCLUDE_NAMESPACES": "kube-system,istio-operator,istio-system",
    IMAGE: "registry.local:9001/x/waylay:1", BOX + "resources.requests.cpu": 0, BOX + "resources.requests.memory": 0,
    BOX + "resources.limits.memory": "(absent)",
    "ServiceAccount/istio-cni.imagePullSecrets[default-registry-key].name": "default-registry-key",
}

# (values, parts of what is said)
ISTIO_IMAGE = "take image, hub, tag and variant out"
REFUSED = [
    ({"mode": "off"}, ["/mode", "'observe'"]),
    ({"ipv6Policy": "yes"}, ["/ipv6Policy", "'capture'"]),
    ({"agentDeadlineSeconds": 0}, ["/agentDeadlineSeconds", "minimum"]),
    ({"agentDeadlineSeconds": 201}, ["/agentDeadlineSeconds", "maximum"]),
    ({"stopDecisionSeconds": 26}, ["/stopDecisionSeconds", "maximum"]),
    ({"excludePodSelector": "a=b"}, ["/excludePodSelector", "got string, want null or object"]),
    ({"excludeNamespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}},
     ["/excludeNamespaceSelector/matchExpressions/0/operator", "'NotIn'"]),
    ({"excludeNamespaces": ["Bad_Name"]}, ["/excludeNamespaces/0"]),
    ({"runtimeClassBypass": {"policy": "ignore"}}, ["/runtimeClassBypass/policy", "'refuse'"]),
    ({"runtimeClassBypass": {"classes": ["a,b"]}}, ["/runtimeClassBypass/classes/0"]),
    ({"podManifestDir": "pods"}, ["/podManifestDir", "pattern"]),
    ({"env": {"1A": "x"}}, ["/env", "'1A'"]),
    ({"env": {"A": ["x"]}}, ["/env/A"]),
    ({"cniBinDir": "opt/cni"}, ["/cniBinDir", "pattern"]),
    ({"cniConfDir": ""}, ["/cniConfDir", "pattern"]),
    ({"cni": {"cniConfDir": "etc"}}, ["/cni/cniConfDir", "pattern"]),
    ({"cniConfFileName": "a/b.conf"}, ["/cniConfFileName", "pattern"]),
    ({"cniConfFileName": "a.json"}, ["/cniConfFileName", "pattern"]),
    ({"istioOwnedCNIConfigFileName": "a.conf"}, ["/istioOwnedCNIConfigFileName", "pattern"]),
    ({"provider": "calico"}, ["/provider", "'multus'"]),
    ({"platform": "gk"}, ["/platform", "'gke'"]),
    ({"global": {"platform": "gk"}}, ["/global/platform", "'gke'"]),
    ({"profile": "x"}, ["/profile", "'openshift'"]),
    ({"image": ""}, ["/image", "pattern"]),
    ({"pullPolicy": "never"}, ["/pullPolicy", "'Never'"]),
    ({"tag": 1.2}, ["/tag", "got number, want null or string"]),
    ({"seccompProfile": {"type": "x"}}, ["/seccompProfile/type", "'RuntimeDefault'"]),
    ({"resourceQuotas": {"pods": -1}}, ["/resourceQuotas/pods", "minimum"]),
    ({"terminationGracePeriodSeconds": -1}, ["/terminationGracePeriodSeconds", "minimum"]),
    ({"tolerations": [{"operator": "exists"}]}, ["/tolerations/0/operator", "'Exists'"]),
    ({"podAnnotations": {"a": 1}}, ["/podAnnotations/a", "got number"]),
    ({"resources": {"requests": {"cpu": []}}}, ["/resources/requests/cpu"]),
    ({"updateStrategy": {"rollingUpdate": {"maxSurge": "few"}}}, ["/updateStrategy/rollingUpdate/maxSurge", "pattern"]),
    ({"global": {"resourceScope": "pod"}}, ["/global/resourceScope", "'cluster'"]),
    # What the schema cannot say.
    ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}},
     ["updateStrategy.rollingUpdate", "cannot both be above 0"]),
    ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}, "rollingMaxUnavailable": "5%"},
     ["updateStrategy.rollingUpdate", "cannot both be above 0"]),
    ({"ambient": {"enabled": True}}, ["ambient.enabled", "not served yet"]),
    ({"cni": {"ambient": {"enabled": True}}}, ["ambient.enabled", "not served yet"]),
    ({"profile": "ambient"}, ["ambient.enabled", "not served yet"]),
    ({"global": {"profile": "openshift-ambient"}}, ["ambient.enabled", "not served yet"]),
    ({"defaults": {}}, ["defaults: give the values themselves"]),
    ({"image": "docker.io/istio/install-cni:1.29.0"}, ["image: docker.io/istio/install-cni:1.29.0", ISTIO_IMAGE]),
    ({"image": "istio/install-cni"}, ["image: istio/install-cni", ISTIO_IMAGE]),
    ({"global": {"hub": "gcr.io/istio-release"}}, ["image: gcr.io/istio-release/waylay", ISTIO_IMAGE]),
    ({"hub": "registry.istio.io/release"}, ["image: registry.istio.io/release", ISTIO_IMAGE]),
]
NO_SURGE = [{"rollingUpdate": {"maxSurge": 1}}, {"rollingUpdate": {"maxUnavailable": 0}},
            {"rollingUpdate": {"maxUnavailable": "0%"}}]
