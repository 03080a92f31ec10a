// SPDX-License-Identifier: Apache-2.0
//! The manifests: each privilege that the agent does not have, and names that the plugin and the agent agree with.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use harness::node::agent_binary;
use serde_json::{Value, json};

use crate::{REPOSITORY, run};

/// The document of a file that has one.
pub(crate) fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn base(name: &str) -> Value {
    yaml(&fs::read_to_string(format!("{REPOSITORY}/daemonset/base/{name}.yaml")).unwrap())
}

/// Everything that the agent's pod must not have, and the little that it must, with `added` capabilities.
#[track_caller]
pub(crate) fn assert_least_privilege(daemonset: &Value, added: &Value) {
    let pod = &daemonset["spec"]["template"]["spec"];
    for absent in
        ["hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace", "initContainers"]
    {
        assert_eq!(pod.get(absent), None, "{absent}");
    }
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(pod["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}));
    assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
    let container = &pod["containers"][0];
    let mut security = container["securityContext"].as_object().unwrap().clone();
    security.remove("seLinuxOptions");
    // Compared as a whole: an exception for AppArmor or another field would be one too many.
    let wanted = json!({
        "runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "privileged": false,
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": added},
    });
    assert_eq!(Value::Object(security), wanted);
    let annotations = daemonset["spec"]["template"]["metadata"]["annotations"].as_object().unwrap();
    assert!(!annotations.keys().any(|key| key.contains("apparmor") || key.contains("seccomp")));
    for port in container["ports"].as_array().unwrap() {
        assert_eq!(port.get("hostPort"), None);
    }
    let mounts: Vec<_> = container["volumeMounts"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    let volumes: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
    assert_eq!(mounts, ["cni-bin-dir", "cni-net-dir", "cni-run-dir"]);
    assert_eq!(volumes, mounts);
}

#[test]
fn the_daemonset_has_net_admin_and_nothing_else() {
    assert_least_privilege(&base("daemonset"), &json!(["NET_ADMIN"]));
}

#[test]
fn the_daemonset_is_what_others_and_the_plugin_look_for() {
    let daemonset = base("daemonset");
    let template = &daemonset["spec"]["template"];
    let (pod, container) = (&template["spec"], &template["spec"]["containers"][0]);
    let name = daemonset["metadata"]["name"].as_str().unwrap();
    let plugin = fs::read_to_string(format!("{REPOSITORY}/cni-plugin/src/verbs.rs")).unwrap();
    assert!(plugin.contains(&format!("const AGENT_POD_PREFIX: &str = \"{name}-\";")));
    let uninstall = fs::read_to_string(format!("{REPOSITORY}/install-scripts/uninstall.sh")).unwrap();
    assert!(uninstall.contains(&format!("cleanup_pod \"{name}-")));
    assert_eq!(template["metadata"]["labels"]["k8s-app"], "istio-cni-node");
    assert_eq!(daemonset["spec"]["selector"]["matchLabels"], json!({"k8s-app": "istio-cni-node"}));
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    assert_eq!(daemonset["spec"]["updateStrategy"], rolling);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    let tolerations = json!([
        {"effect": "NoSchedule", "operator": "Exists"}, {"effect": "NoExecute", "operator": "Exists"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
    ]);
    assert_eq!(pod["tolerations"], tolerations);
    assert_eq!(container["command"], json!(["install-cni"]));
    let probe = json!({"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 1});
    assert_eq!(container["readinessProbe"], probe);
    assert_eq!(container.get("livenessProbe"), None);
    assert_eq!(container["resources"]["limits"].get("cpu"), None);
    let mount = |name| {
        let mounts = container["volumeMounts"].as_array().unwrap();
        mounts.iter().find(|m| m["name"] == name).unwrap()["mountPath"].as_str().unwrap()
    };
    let volumes = pod["volumes"].as_array().unwrap();
    let host =
        |name| volumes.iter().find(|v| v["name"] == name).unwrap()["hostPath"]["path"].as_str().unwrap();
    let run = agent_api::path::DEFAULT_RUN_DIR;
    assert_eq!((mount("cni-run-dir"), host("cni-run-dir")), (run, run));
    assert_eq!((mount("cni-bin-dir"), host("cni-bin-dir")), ("/host/opt/cni/bin", "/opt/cni/bin"));
    assert_eq!((mount("cni-net-dir"), host("cni-net-dir")), ("/host/etc/cni/net.d", "/etc/cni/net.d"));
}

#[test]
fn every_flag_and_variable_is_known_to_the_agent() {
    let container = &base("daemonset")["spec"]["template"]["spec"]["containers"][0];
    let flags: Vec<_> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    // What comes before --help is parsed.
    let help = run(Command::new(agent_binary()).args(&flags).arg("--help")).with(0);
    run(Command::new(agent_binary()).args(["--log_output_levels=info", "--help"])).with(1);

    let text = help + &fs::read_to_string(format!("{REPOSITORY}/docs/SETTINGS.md")).unwrap_or_default();
    let known: BTreeSet<_> =
        text.split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')).collect();
    let data = base("configmap")["data"].as_object().unwrap().clone();
    let env = container["env"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap().to_owned());
    for name in data.into_iter().map(|(name, _)| name).chain(env) {
        assert!(known.contains(name.as_str()), "{name}");
    }
}

#[test]
fn the_agent_may_ask_the_api_for_what_it_uses_and_nothing_else() {
    assert_eq!(base("serviceaccount")["automountServiceAccountToken"], false);
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
    ]);
    assert_eq!(base("clusterrole")["rules"], rules);
    let rules = json!([
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["istio-cni-node"], "verbs": ["get"]},
    ]);
    assert_eq!(base("role")["rules"], rules);
    let subjects = json!([{"kind": "ServiceAccount", "name": "istio-cni", "namespace": "istio-cni"}]);
    for (binding, role) in [("clusterrolebinding", "clusterrole"), ("rolebinding", "role")] {
        let (binding, role) = (base(binding), base(role));
        assert_eq!(binding["subjects"], subjects);
        let wanted = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": role["metadata"]["name"]});
        assert_eq!(binding["roleRef"], wanted);
    }
    let policy = base("networkpolicy");
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["egress"], json!([{}]));
    let ports = json!([{"protocol": "TCP", "port": 15014}, {"protocol": "TCP", "port": 8000}]);
    assert_eq!(policy["spec"]["ingress"], json!([{"ports": ports}]));
}

#[test]
fn the_kustomization_has_every_file_of_the_base_in_one_namespace() {
    let kustomization = base("kustomization");
    let namespace = kustomization["namespace"].as_str().unwrap();
    let listed: BTreeSet<_> = kustomization["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r.as_str().unwrap().to_owned())
        .collect();
    let mut present = BTreeSet::new();
    for file in fs::read_dir(format!("{REPOSITORY}/daemonset/base")).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().into_string().unwrap();
        let document = yaml(&fs::read_to_string(file.path()).unwrap());
        match document["kind"].as_str().unwrap() {
            "Kustomization" => continue,
            "ClusterRole" | "ClusterRoleBinding" => {}
            "Namespace" => {
                assert_eq!(document["metadata"]["name"], namespace);
                let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
                assert_eq!(document["metadata"]["labels"], labels);
            }
            _ => assert_eq!(document["metadata"]["namespace"], namespace, "{name}"),
        }
        present.insert(name);
    }
    assert_eq!(listed, present);
}

#[test]
fn each_overlay_adds_one_thing_to_the_daemonset() {
    for (overlay, capabilities, selinux) in [
        ("foreign-owner", json!(["NET_ADMIN", "DAC_OVERRIDE"]), Value::Null),
        ("selinux", json!(["NET_ADMIN"]), json!({"type": "spc_t"})),
    ] {
        let path = format!("{REPOSITORY}/daemonset/overlays/{overlay}/kustomization.yaml");
        let kustomization = yaml(&fs::read_to_string(path).unwrap());
        assert_eq!(kustomization["resources"], json!(["../../base"]));
        let patches = kustomization["patches"].as_array().unwrap();
        assert_eq!(patches[0]["target"], json!({"kind": "DaemonSet", "name": "istio-cni-node"}));
        let operations = yaml(patches[0]["patch"].as_str().unwrap());
        let [operation] = operations.as_array().unwrap().as_slice() else { panic!("{operations}") };
        let mut daemonset = base("daemonset");
        add(&mut daemonset, operation);
        assert_least_privilege(&daemonset, &capabilities);
        let security = &daemonset["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(security.get("seLinuxOptions").unwrap_or(&Value::Null), &selinux);
    }
}

/// JSON patch (RFC 6902) "add".
fn add(document: &mut Value, operation: &Value) {
    assert_eq!(operation["op"], "add");
    let (parent, key) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
    let value = operation["value"].clone();
    match document.pointer_mut(parent).unwrap() {
        Value::Array(list) if key == "-" => list.push(value),
        Value::Object(map) => drop(map.insert(key.to_owned(), value)),
        other => panic!("{other}"),
    }
}
