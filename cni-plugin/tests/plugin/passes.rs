// SPDX-License-Identifier: Apache-2.0
//! Pods that the agent is not asked about. There is no agent here, and `CNI_NETNS` does not exist: a pass needs neither.

use std::time::Duration;

use agent_api::{NoticeKind, PROTOCOL, PassReason};

use crate::harness::{Caller, RunDir};

const OK: &str = "{\"cniVersion\":\"1.0.0\"}\n";
const KEYS: &str = r#","exclude_namespaces":["kube-system"],"pod_namespace":"istio-system""#;

/// Each pass with the call that leads to it.
fn passes(dir: &RunDir, verb: &str) -> [(PassReason, Caller); 4] {
    let args = |namespace: &str, name: &str| {
        Caller::new(verb, dir.config(KEYS))
            .with("CNI_ARGS", &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"))
    };
    let without_status =
        format!(r#"{KEYS},"runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{{"a":"b"}}}}"#);
    [
        (PassReason::NotKubernetes, Caller::new(verb, dir.config(KEYS)).with("CNI_ARGS", "")),
        (PassReason::ExcludedNamespace, args("kube-system", "coredns-0")),
        (PassReason::AgentPod, args("istio-system", "istio-cni-node-abcde")),
        (PassReason::NoSidecar, Caller::new(verb, dir.config(&without_status))),
    ]
}

#[test]
fn each_pass_succeeds_at_once_and_is_told_in_one_datagram() {
    let dir = RunDir::new();
    let notices = dir.notices();
    for (reason, caller) in passes(&dir, "ADD") {
        let finished = caller.run();
        finished.succeeded_with(OK);
        assert!(finished.took < Duration::from_secs(1), "{finished:?}");
        assert_eq!(finished.stderr, "", "the agent has the line in its log");
        let notice = notices.next();
        assert_eq!(
            (notice.protocol, notice.kind, notice.reason.as_str()),
            (PROTOCOL, NoticeKind::Pass, reason.code())
        );
        assert_eq!(
            (notice.sandbox.container_id.as_str(), notice.sandbox.ifname.as_str()),
            ("c0ffee", "eth0")
        );
    }
    notices.none();
}

#[test]
fn a_pass_does_not_need_anybody_to_hear_of_it() {
    let dir = RunDir::new();
    for (reason, caller) in passes(&dir, "ADD") {
        let finished = caller.run();
        finished.succeeded_with(OK);
        let line = format!("istio-cni: info: pass without redirection: {} (", reason.code());
        assert!(finished.stderr.starts_with(&line), "{finished:?}");
    }
}

#[test]
fn a_full_queue_does_not_hold_up_a_pass() {
    let dir = RunDir::new();
    let _nobody_reads = dir.notices();
    let other = std::os::unix::net::UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"x", agent_api::path::notices(&dir.0)).is_ok() {}
    let (reason, caller) = &passes(&dir, "ADD")[1];
    let said = format!("istio-cni: info: pass without redirection: {} (", reason.code());
    for (caller, said) in [(caller, said.as_str()), (&Caller::new("DEL", dir.config("")), "")] {
        let finished = caller.run();
        assert_eq!(finished.status, 0, "{finished:?}");
        assert!(finished.stderr.starts_with(said), "{finished:?}");
        assert_eq!(finished.stderr.is_empty(), said.is_empty(), "{finished:?}");
        assert!(finished.took < Duration::from_secs(1), "{finished:?}");
    }
}

#[test]
fn check_of_a_passed_pod_succeeds_and_says_nothing() {
    let dir = RunDir::new();
    let notices = dir.notices();
    for (_, caller) in passes(&dir, "CHECK") {
        let finished = caller.run();
        finished.succeeded_with("");
        assert!(finished.took < Duration::from_secs(1), "{finished:?}");
    }
    notices.none();
}

#[test]
fn del_is_told_with_the_pods_name() {
    let dir = RunDir::new();
    let notices = dir.notices();
    Caller::new("DEL", dir.config("")).with("CNI_NETNS", "").run().succeeded_with("");
    let notice = notices.next();
    assert_eq!((notice.protocol, notice.kind, notice.reason.as_str()), (PROTOCOL, NoticeKind::Del, ""));
    assert_eq!((notice.sandbox.namespace.as_str(), notice.sandbox.name.as_str()), ("default", "web-0"));
    assert_eq!(notice.sandbox.uid.as_deref(), Some("u-1"));
}

#[test]
fn with_ambient_enabled_a_pod_without_a_sidecar_is_the_agents_to_decide() {
    let dir = RunDir::new();
    let more = r#","ambient_enabled":true,"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{}}"#;
    // The netns is the first thing that the other path needs.
    let finished = Caller::new("ADD", dir.config(more)).run();
    assert!(finished.stdout.starts_with("{\"code\":102,"), "{finished:?}");
}
