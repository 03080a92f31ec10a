// SPDX-License-Identifier: Apache-2.0
//! What talks to a cluster: the calls of kubectl in their order, the objects that go in, and what is said when something
//! fails.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::manifests::{assert_least_privilege, yaml};
use crate::{Ended, SHELLS, Scratch, script};

/// Records its call and what it is given, and answers with the first `answers/<n>` whose first line is in the call; the
/// second line is the exit status, the rest what it prints. `@CANARY@` there is the canary's name.
const KUBECTL: &str = r#"#!/bin/sh
state=$(dirname "$0")/..
printf '%s\n' "$*" >>"$state/calls"
case "$*" in
    apply*" -f -"*) cat >>"$state/applied" && echo --- >>"$state/applied" ;;
    apply*" -f "*) for file; do :; done; cat "$file" >>"$state/applied" ;;
esac
canary=$(sed -n 's/^  name: \(waylay-canary-.*\)/\1/p' "$state/applied" 2>/dev/null | tail -n 1)
for answer in "$state"/answers/*; do
    pattern=$(head -n 1 "$answer")
    case "$*" in *"$pattern"*)
        tail -n +3 "$answer" | sed "s/@CANARY@/$canary/"
        exit "$(sed -n 2p "$answer")" ;;
    esac
done
"#;
const AGENTS: &str = "get pods -n istio-cni -l k8s-app=istio-cni-node -o jsonpath";
const NODE: &str = "n1 linux amd64 6.1.0-37-amd64 containerd://2.2.3";
const SEEN: &str =
    r#"2026-01-01T00:00:00Z  INFO op="add" result="told" reason="no_sidecar" pod.name="@CANARY@""#;

struct Cluster {
    state: Scratch,
    bin: PathBuf,
}

impl Cluster {
    /// Answers, the first that fits; then what every cluster says.
    fn new(answers: &[(&str, i32, &str)]) -> Self {
        let state = Scratch::new();
        state.program("bin/kubectl", KUBECTL);
        let usual = [
            ("get nodes -o", 0, NODE),
            ("get nodes -l", 0, "n1\nn2"),
            // The second was told to end.
            (
                AGENTS,
                0,
                "False istio-cni-node-a n1 \nTrue istio-cni-node-c n1 2026-01-01T00:00:00Z\nTrue istio-cni-node-b n2 ",
            ),
            ("logs istio-cni-node-b -n istio-cni", 0, SEEN),
        ];
        for (number, (call, status, output)) in answers.iter().chain(&usual).enumerate() {
            state.write(&format!("answers/{number:02}"), &format!("{call}\n{status}\n{output}\n"));
        }
        let bin = state.path("bin");
        Self { state, bin }
    }

    fn run(&self, shell: &[&str], name: &str, arguments: &[&str]) -> Ended {
        script(shell, name, &self.bin, arguments)
    }

    fn calls(&self) -> Vec<String> {
        self.state.read("calls").lines().map(str::to_owned).collect()
    }

    /// Calls that are not only questions.
    fn changes(&self) -> Vec<String> {
        let asks = |call: &String| {
            ["get ", "version", "logs ", "wait ", "rollout "].iter().any(|a| call.starts_with(a))
        };
        self.calls().into_iter().filter(|call| !asks(call)).collect()
    }

    fn applied(&self) -> Vec<Value> {
        let text = self.state.read("applied");
        text.split("---\n").filter(|document| !document.trim().is_empty()).map(yaml).collect()
    }
}

fn kinds(documents: &[Value]) -> Vec<&str> {
    documents.iter().map(|document| document["kind"].as_str().unwrap()).collect()
}

#[track_caller]
fn in_order(calls: &[String], wanted: &[&str]) {
    let mut calls = calls.iter();
    for part in wanted {
        assert!(calls.any(|call| call.contains(part)), "{part:?} is missing, or not in its place");
    }
}

#[test]
fn install_applies_waits_and_proves_and_leaves_no_canary() {
    for shell in SHELLS {
        let cluster = Cluster::new(&[]);
        let said = cluster.run(shell, "install.sh", &[]).with(0);
        assert!(said.contains("the agent on node n2 saw it: no_sidecar"), "{said}");
        let order = [
            "version",
            "get nodes",
            "apply -f",
            "rollout status daemonset/istio-cni-node -n istio-cni",
            AGENTS,
        ];
        in_order(&cluster.calls(), &order);
        in_order(
            &cluster.calls(),
            &["apply -f -", "wait pod waylay-canary-", "logs ", "delete pod waylay-canary-"],
        );
        let objects = cluster.applied();
        let (canary, objects) = objects.split_last().unwrap();
        let wanted = [
            "Namespace",
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "ConfigMap",
            "ResourceQuota",
            "NetworkPolicy",
            "DaemonSet",
        ];
        assert_eq!(kinds(objects), wanted);
        assert_least_privilege(&objects[9], &json!(["NET_ADMIN"]));
        assert_eq!(
            canary["spec"]["containers"][0]["image"],
            objects[9]["spec"]["template"]["spec"]["containers"][0]["image"]
        );
        assert_eq!((&canary["kind"], &canary["spec"]["nodeName"]), (&json!("Pod"), &json!("n2")));
        // Again: what is there is applied once more.
        cluster.run(shell, "install.sh", &[]).with(0);
    }
}

#[test]
fn install_puts_what_was_asked_for_into_the_objects() {
    let cluster =
        Cluster::new(&[("get namespace mesh", 0, "namespace/mesh"), ("get pods -n mesh", 0, "True a n")]);
    let options = "--namespace mesh --image r.test/w@sha256:0a --cni-conf-dir /k/net.d --cni-bin-dir /k/bin \
                   --dac-override --selinux --no-canary";
    cluster.run(SHELLS[0], "install.sh", &options.split_whitespace().collect::<Vec<_>>()).with(0);
    let objects = cluster.applied();
    assert!(!kinds(&objects).contains(&"Namespace"), "a namespace that is there stays as it is");
    for object in &objects {
        let everywhere = object["kind"].as_str().unwrap().starts_with("Cluster");
        assert_eq!(object["metadata"].get("namespace").is_none(), everywhere);
        if let Some(subjects) = object.get("subjects") {
            assert_eq!(subjects[0]["namespace"], "mesh");
        }
        assert!(everywhere || object["metadata"]["namespace"] == "mesh");
    }
    let daemonset = objects.last().unwrap();
    assert_least_privilege(daemonset, &json!(["NET_ADMIN", "DAC_OVERRIDE"]));
    let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "r.test/w@sha256:0a");
    assert_eq!(container["securityContext"]["seLinuxOptions"], json!({"type": "spc_t"}));
    let volumes = daemonset["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let paths: Vec<_> = volumes.iter().map(|v| v["hostPath"]["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/k/bin", "/k/net.d", "/var/run/istio-cni"]);
    let refused = cluster.run(SHELLS[0], "install.sh", &["--image", "x\ny: z"]).with(64);
    assert!(refused.contains("cannot be used"), "{refused}");
}

#[test]
fn a_dry_run_only_asks() {
    for (name, promise) in
        [("install.sh", "would apply this"), ("uninstall.sh", "would run: kubectl delete daemonset")]
    {
        for shell in SHELLS {
            let cluster = Cluster::new(&[]);
            let said = cluster.run(shell, name, &["--dry-run"]).with(0);
            assert!(said.contains(promise) && !said.contains("clean: "), "{said}");
            assert_eq!(cluster.changes(), [""; 0]);
        }
    }
}

#[test]
fn install_stops_where_it_fails_and_says_why() {
    let cilium = ("get configmap cilium-config", 0, "cilium-config/true/true//");
    let cluster = Cluster::new(&[cilium]);
    let said = cluster.run(SHELLS[0], "install.sh", &[]).with(1);
    assert!(
        said.contains("error: Cilium: cni-exclusive is true") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(cluster.changes(), [""; 0]);
    cluster.run(SHELLS[0], "install.sh", &["--skip-preflight"]).with(0);

    let cluster =
        Cluster::new(&[("rollout", 1, "timed out"), ("logs -n istio-cni -l", 0, "the agent's last words")]);
    let said = cluster.run(SHELLS[0], "install.sh", &[]).with(1);
    assert!(said.contains("did not become ready") && said.contains("the agent's last words"), "{said}");
    assert!(!cluster.calls().iter().any(|call| call.contains("canary")));

    let cases: [(&[_], _); 4] = [
        (&[("wait pod", 1, "")], "the canary did not start on node n2"),
        (&[("logs istio", 0, "nothing of it")], "the plugin was not called for it"),
        (&[(AGENTS, 0, "False istio-cni-node-a n1")], "no agent is ready"),
        (&[("apply -f -", 1, "")], "the canary cannot be made"),
    ];
    for (answers, wanted) in cases {
        let cluster = Cluster::new(answers);
        // Without the pause between questions.
        cluster.state.program("bin/sleep", "#!/bin/sh\n");
        let said = cluster.run(SHELLS[0], "install.sh", &[]).with(1);
        assert!(said.contains(wanted), "{said}");
        let made = cluster.calls().iter().any(|call| call == "apply -f -");
        let deleted = cluster.calls().last().unwrap().starts_with("delete pod waylay-canary-");
        assert_eq!(made, deleted, "{:#?}", cluster.calls());
    }
}

#[test]
fn uninstall_ends_the_agents_then_cleans_each_node_then_removes_the_objects() {
    let daemonset = [
        ("containers[0].image}", 0, "r.test/w:2"),
        ("cni-net-dir", 0, "/k/net.d"),
        ("capabilities.add", 0, "[\"NET_ADMIN\",\"DAC_OVERRIDE\"]"),
        (
            "name=waylay-cleanup -o jsonpath",
            0,
            "Succeeded n1 istio-cni-node-cleanup-1\nSucceeded n2 istio-cni-node-cleanup-2",
        ),
        ("get namespace istio-cni --ignore-not-found -o jsonpath", 0, "waylay"),
        ("get namespace istio-cni", 0, "namespace/istio-cni"),
        ("get serviceaccount istio-cni", 0, "serviceaccount/istio-cni"),
        ("get resourcequota", 0, "resourcequota/istio-cni-resource-quota"),
    ];
    // Its own namespace stays unless it is to go.
    let cluster = Cluster::new(&daemonset);
    cluster.run(SHELLS[0], "uninstall.sh", &[]).with(0);
    assert!(!cluster.calls().iter().any(|call| call.starts_with("delete namespace")));
    for shell in SHELLS {
        let cluster = Cluster::new(&daemonset);
        let said = cluster.run(shell, "uninstall.sh", &["--delete-namespace"]).with(0);
        assert!(!cluster.calls().iter().any(|call| call.starts_with("create ")));
        assert!(said.contains("clean: 2 nodes"), "{said}");
        let order = [
            "delete daemonset istio-cni-node",
            "--for=delete",
            "apply -f -",
            "apply -f -",
            "delete pod",
            "serviceaccount/istio-cni",
        ];
        in_order(&cluster.calls(), &order);
        assert_eq!(cluster.calls().last().unwrap(), "delete namespace istio-cni --ignore-not-found");
        let pods = cluster.applied();
        assert_eq!(pods.len(), 2);
        for (pod, node) in pods.iter().zip(["n1", "n2"]) {
            assert!(pod["metadata"]["name"].as_str().unwrap().starts_with("istio-cni-node-"));
            assert_eq!(pod["spec"]["nodeName"], node);
            assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
            let container = &pod["spec"]["containers"][0];
            assert_eq!(container["command"], json!(["install-cni", "uninstall"]));
            assert_eq!(container["image"], "r.test/w:2");
            assert_eq!(container["securityContext"]["privileged"], false);
            let capabilities = json!({"drop": ["ALL"], "add": ["DAC_OVERRIDE"]});
            assert_eq!(container["securityContext"]["capabilities"], capabilities);
            let volumes = pod["spec"]["volumes"].as_array().unwrap();
            let paths: Vec<_> = volumes.iter().map(|v| v["hostPath"]["path"].as_str().unwrap()).collect();
            assert_eq!(paths, ["/opt/cni/bin", "/k/net.d", "/var/run/istio-cni"]);
        }
    }
}

#[test]
fn uninstall_makes_what_is_gone_and_it_needs_and_takes_it_away_again() {
    let answers = [
        ("get namespace istio-cni --ignore-not-found -o jsonpath", 0, "waylay-cleanup"),
        ("get namespace istio-cni", 0, ""),
        ("get serviceaccount istio-cni", 0, ""),
        ("name=waylay-cleanup -o jsonpath", 0, "Succeeded n1 istio-cni-node-cleanup-1"),
    ];
    let cluster = Cluster::new(&answers);
    cluster.run(SHELLS[0], "uninstall.sh", &[]).with(0);
    let order = [
        "create namespace istio-cni",
        "label namespace istio-cni pod-security.kubernetes.io/enforce=privileged app.kubernetes.io/name=waylay-cleanup",
        "get namespace istio-cni --ignore-not-found -o jsonpath",
        "create serviceaccount istio-cni -n istio-cni",
        "apply -f -",
        "serviceaccount/istio-cni",
        "delete namespace istio-cni",
    ];
    in_order(&cluster.calls(), &order);
    assert_eq!(cluster.applied()[0]["spec"]["priorityClassName"], "");
}

#[test]
fn a_node_that_cannot_be_cleaned_is_named_and_the_objects_stay() {
    let phases = "Succeeded n1 istio-cni-node-cleanup-1\nFailed n2 istio-cni-node-cleanup-2";
    let late = "Succeeded n1 istio-cni-node-cleanup-1\nPending n2 istio-cni-node-cleanup-2";
    for (phases, seconds) in [(phases, "180"), (late, "0")] {
        let answers = [
            ("name=waylay-cleanup -o jsonpath", 0, phases),
            ("logs istio-cni-node-cleanup-2", 0, "read-only file system"),
        ];
        let cluster = Cluster::new(&answers);
        let said = cluster.run(SHELLS[0], "uninstall.sh", &["--timeout", seconds]).with(1);
        assert!(said.contains("node n2: clean-up pod") && said.contains("read-only file system"), "{said}");
        assert!(said.contains("run node-cleanup.sh on them") && !said.contains("node n1:"), "{said}");
        assert!(!cluster.calls().iter().any(|call| call.contains("serviceaccount/")));
    }
    let cluster = Cluster::new(&[("--for=delete", 1, "")]);
    assert!(cluster.run(SHELLS[0], "uninstall.sh", &[]).with(1).contains("agents still run"));
    assert!(!cluster.calls().iter().any(|call| call.contains("apply")));
}

#[test]
fn each_conflict_is_found_by_its_name() {
    let calico = "get customresourcedefinition felix";
    let crd = (calico, 0, "customresourcedefinition/felixconfigurations");
    let felix = "get felixconfigurations";
    let cases: [(&[_], i32, &str); 19] = [
        (
            &[("get nodes", 0, "n1 linux amd64 4.15.0 containerd://1.6")],
            1,
            "error: node n1: kernel 4.15.0 is older",
        ),
        (
            &[("get nodes", 0, "n1 linux s390x 6.1.0 containerd://1.6")],
            1,
            "error: node n1: architecture s390x",
        ),
        (&[("get nodes", 0, "n1 linux arm64 6.1.0 docker://20")], 0, "warning: node n1: runtime docker://20"),
        (&[("get nodes", 0, "")], 1, "error: the cluster has no nodes"),
        (&[("get nodes", 1, "forbidden")], 1, "error: kubectl get nodes -o: forbidden"),
        (&[("version", 1, "refused")], 1, "error: the cluster cannot be reached with kubectl: refused"),
        (&[("cilium-config", 0, "cilium-config////")], 1, "error: Cilium: cni-exclusive is on by default"),
        (
            &[("cilium-config", 0, "cilium-config/false/true//")],
            1,
            "error: Cilium: it balances services in the pod's",
        ),
        (
            &[("cilium-config", 0, "cilium-config/false/true//true")],
            0,
            "ok: Cilium: socketLB.hostNamespaceOnly is on",
        ),
        (&[crd, (felix, 0, "true//")], 1, "error: Calico: eBPF with connect-time load balancing"),
        (&[crd, (felix, 0, "true/TCP/")], 1, "error: Calico: eBPF with connect-time load balancing"),
        (&[crd, (felix, 0, "true/Disabled/")], 0, "ok: Calico: eBPF with connect-time load balancing off"),
        (&[crd, (felix, 0, "//")], 0, "ok: Calico: no eBPF data plane"),
        (
            &[("aws-node", 0, "ENABLE_POD_ENI=true")],
            1,
            "error: AWS VPC CNI: security groups for pods in strict mode",
        ),
        (
            &[("aws-node", 0, "ENABLE_POD_ENI=true\nPOD_SECURITY_GROUP_ENFORCING_MODE=standard")],
            0,
            "ok: AWS VPC CNI: security groups for pods in standard",
        ),
        (&[("get runtimeclasses", 0, "sandboxed runsc")], 0, "warning: RuntimeClass sandboxed has gVisor"),
        (&[("get runtimeclasses", 0, "kata-qemu kata-qemu")], 0, "warning: RuntimeClass kata-qemu has Kata"),
        (
            &[("get daemonsets -A", 0, "istio-system  istio-cni-node")],
            1,
            "error: namespace istio-system has an istio-cni-node too",
        ),
        (
            &[("get daemonsets -A", 0, "istio-cni Helm istio-cni-node")],
            1,
            "error: namespace istio-cni has an istio-cni-node of Helm",
        ),
    ];
    for (answers, code, wanted) in cases {
        let [one, two] =
            SHELLS.map(|shell| Cluster::new(answers).run(shell, "preflight.sh", &["--cluster"]).with(code));
        assert_eq!(one, two);
        assert!(one.lines().any(|line| line.starts_with(wanted)), "{wanted}\n{one}");
    }
    let said = Cluster::new(&[]).run(SHELLS[0], "preflight.sh", &["--cluster"]).with(0);
    assert!(said.ends_with("preflight: 0 errors, 0 warnings\n"), "{said}");
}
