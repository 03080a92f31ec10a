// SPDX-License-Identifier: Apache-2.0
//! The verbs: each is one decision and at most one message to the agent. Owns which pods the agent is not asked about,
//! and what its answer, or none, means to the runtime. It never programs anything.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use agent_api::{
    Answer, DECISIVE_ANNOTATIONS, ENVIRONMENT, Notice, NoticeKind, Operation, Outcome, PROTOCOL, PassReason,
    Request, Sandbox, path,
};
use cni::{Args, Call, Code, Error, Options};

use crate::agent::{self, NoAnswer};
use crate::log::{self, Level};
use crate::sandbox::Descriptors;

/// Pods of our own DaemonSet have names that begin so.
const AGENT_POD_PREFIX: &str = "istio-cni-node-";
/// Present on every pod with an injected sidecar, whatever its value.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// Where the kubelet has a pod from: `api`, `file` or `http`.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// How long an ADD waits for an agent that only observes.
const OBSERVE_LIMIT: Duration = Duration::from_secs(3);
/// How long a CHECK waits for the agent. It has nothing to say when the agent cannot be asked.
const CHECK_LIMIT: Duration = Duration::from_secs(2);

/// ADD: pass, or let the agent make the pod ready.
///
/// # Errors
/// See `docs/ERRORS.md`.
pub(crate) fn add(
    call: &Call<'_>,
    lookup: &dyn Fn(&str) -> Option<String>,
    stderr: &mut dyn Write,
) -> Result<(), Error> {
    let (options, args) = read(call)?;
    let run_dir = run_dir(&options.run_dir);
    let sandbox = sandbox(call, &args);
    if let Some(reason) = pass(&args, &options) {
        let text = format!("pass without redirection: {} ({})", reason.code(), subject(&sandbox));
        let reason = reason.code().into();
        let told =
            agent::tell(&run_dir, &Notice { protocol: PROTOCOL, kind: NoticeKind::Pass, reason, sandbox });
        // An agent that knows has the line in its log: once is enough, as a runtime keeps what comes here, too.
        let level = if told { Level::Debug } else { Level::Info };
        log::line(stderr, Level::parse(&options.log_level), level, &text);
        return Ok(());
    }
    match redirect(call, &options, request(Operation::Add, sandbox.clone(), &options, lookup)) {
        Err(error) if options.observe => {
            let reason = PassReason::Observed.code();
            let text = format!("pass without redirection: {reason} ({}): {error}", subject(&sandbox));
            log::line(stderr, Level::parse(&options.log_level), Level::Warn, &text);
            let reason = reason.into();
            agent::tell(&run_dir, &Notice { protocol: PROTOCOL, kind: NoticeKind::Pass, reason, sandbox });
            Ok(())
        }
        result => result,
    }
}

/// Let the agent make the pod ready.
fn redirect(call: &Call<'_>, options: &Options, mut request: Request) -> Result<(), Error> {
    let run_dir = run_dir(&options.run_dir);
    let descriptors = Descriptors::open(&call.invocation)?;
    request.addresses = call.document.prev_result().map(cni::addresses).unwrap_or_default();
    let deadline = Duration::from_secs(options.deadline_seconds.into());
    let limit = if options.observe { deadline.min(OBSERVE_LIMIT) } else { deadline };
    match agent::ask(&run_dir, &mut request, &descriptors.as_fds(), limit) {
        Ok(answer) => settle(answer),
        Err(NoAnswer::Final(error)) => Err(error),
        Err(NoAnswer::TimeOver(trouble)) => Err(Error::new(
            Code::TryAgain,
            &format!(
                "the istio-cni agent did not make pod {}/{} ready within {} s ({}: {trouble}); see the istio-cni-node pod \
                 on this node and its log, or, if there is to be none any more, run node-cleanup.sh on the node",
                request.sandbox.namespace,
                request.sandbox.name,
                limit.as_secs(),
                path::requests(&run_dir).display()
            ),
        )),
    }
}

/// CHECK: let the agent compare the rules with what ADD left. A pod that ADD passes has none, and an agent that cannot
/// be asked is no fault of the pod.
///
/// # Errors
/// See `docs/ERRORS.md`.
pub(crate) fn check(
    call: &Call<'_>,
    lookup: &dyn Fn(&str) -> Option<String>,
    stderr: &mut dyn Write,
) -> Result<(), Error> {
    let (options, args) = read(call)?;
    if pass(&args, &options).is_some() {
        return Ok(());
    }
    let descriptors = Descriptors::open(&call.invocation)?;
    let mut request = request(Operation::Check, sandbox(call, &args), &options, lookup);
    match agent::ask(&run_dir(&options.run_dir), &mut request, &descriptors.as_fds(), CHECK_LIMIT) {
        Ok(answer) => settle(answer),
        Err(NoAnswer::Final(error)) => Err(error),
        Err(NoAnswer::TimeOver(trouble)) => {
            let text = format!("check without the agent: {trouble} ({})", subject(&request.sandbox));
            log::line(stderr, Level::parse(&options.log_level), Level::Warn, &text);
            Ok(())
        }
    }
}

/// DEL: the rules go with the netns, so that the agent is only told. Nothing that is wrong with the call matters.
pub(crate) fn del(call: &Call<'_>) {
    let args = Args::parse(&call.invocation.args).unwrap_or_default();
    let notice = Notice {
        protocol: PROTOCOL,
        kind: NoticeKind::Del,
        reason: String::new(),
        sandbox: sandbox(call, &args),
    };
    agent::tell(&run_dir(&call.document.run_dir_or_default()), &notice);
}

/// GC: nothing outlives a netns, so that nothing is stale; but a list that cannot be read is reported.
///
/// # Errors
/// Code 7.
pub(crate) fn gc(call: &Call<'_>) -> Result<(), Error> {
    call.document.valid_attachments().map(drop)
}

/// STATUS: yes. Asking the agent here would keep a node from starting the agent's own pod, which is not on the host
/// network and so needs the node's network to be ready.
#[allow(clippy::unnecessary_wraps, reason = "the verbs have one shape")]
pub(crate) fn status() -> Result<(), Error> {
    Ok(())
}

fn read(call: &Call<'_>) -> Result<(Options, Args), Error> {
    Ok((call.document.options()?, Args::parse(&call.invocation.args)?))
}

/// Which pods are not for the agent to decide. Everything here is known from the call alone, so that an agent that is
/// down holds up mesh pods only.
fn pass(args: &Args, options: &Options) -> Option<PassReason> {
    if args.pod_name.is_empty() || args.pod_namespace.is_empty() {
        return Some(PassReason::NotKubernetes);
    }
    if args.pod_name.starts_with(AGENT_POD_PREFIX) && args.pod_namespace == options.pod_namespace {
        return Some(PassReason::AgentPod);
    }
    if options.exclude_namespaces.contains(&args.pod_namespace) {
        return Some(PassReason::ExcludedNamespace);
    }
    let annotations = options.annotations.as_ref()?;
    if !options.ambient_enabled && !annotations.contains_key(SIDECAR_STATUS) {
        return Some(PassReason::NoSidecar);
    }
    // The kubelet writes it, over whatever the pod says: `api` for a pod of the API server.
    let source = annotations.get(CONFIG_SOURCE);
    source.is_some_and(|source| source != "api").then_some(PassReason::StaticPod)
}

fn run_dir(configured: &str) -> PathBuf {
    PathBuf::from(if configured.is_empty() { path::DEFAULT_RUN_DIR } else { configured })
}

fn sandbox(call: &Call<'_>, args: &Args) -> Sandbox {
    Sandbox {
        container_id: call.invocation.container_id.clone(),
        ifname: call.invocation.ifname.clone(),
        namespace: args.pod_namespace.clone(),
        name: args.pod_name.clone(),
        uid: Some(args.pod_uid.clone()).filter(|uid| !uid.is_empty()),
    }
}

fn subject(sandbox: &Sandbox) -> String {
    if sandbox.name.is_empty() {
        format!("container {}", sandbox.container_id)
    } else {
        format!("pod {}/{}, container {}", sandbox.namespace, sandbox.name, sandbox.container_id)
    }
}

fn request(
    operation: Operation,
    sandbox: Sandbox,
    options: &Options,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Request {
    let mut environment = BTreeMap::new();
    for name in ENVIRONMENT {
        if let Some(value) = lookup(name) {
            environment.insert((*name).into(), value);
        }
    }
    Request {
        protocol: PROTOCOL,
        operation,
        sandbox,
        annotations: options.annotations.as_ref().map(decisive),
        environment,
        addresses: Vec::new(),
        wait_ms: 0,
    }
}

/// The annotations that decide something. The injector's status report is one by its presence only and can be long.
fn decisive(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut sent = BTreeMap::new();
    for key in DECISIVE_ANNOTATIONS {
        if let Some(value) = annotations.get(*key) {
            let value = if *key == SIDECAR_STATUS { String::new() } else { value.clone() };
            sent.insert((*key).into(), value);
        }
    }
    sent
}

fn settle(answer: Answer) -> Result<(), Error> {
    let Outcome::Fail(code) = answer.outcome else { return Ok(()) };
    Err(Error::with_number(code, &agent::said(answer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(namespace: &str, name: &str) -> Args {
        Args { pod_name: name.into(), pod_namespace: namespace.into(), ..Args::default() }
    }

    fn options(annotations: Option<&[&str]>) -> Options {
        Options {
            exclude_namespaces: vec!["kube-system".into()],
            pod_namespace: "istio-system".into(),
            ambient_enabled: false,
            run_dir: String::new(),
            log_level: String::new(),
            deadline_seconds: 60,
            observe: false,
            annotations: annotations
                .map(|keys| keys.iter().map(|key| (String::from(*key), "x".repeat(1000))).collect()),
        }
    }

    #[test]
    fn each_pass_has_its_reason() {
        let none = options(None);
        let cases = [
            (args("", ""), Some(PassReason::NotKubernetes)),
            (args("default", ""), Some(PassReason::NotKubernetes)),
            (args("", "a"), Some(PassReason::NotKubernetes)),
            (args("kube-system", "a"), Some(PassReason::ExcludedNamespace)),
            (args("kube-system-2", "a"), None),
            (args("Kube-System", "a"), None),
            (args("istio-system", "istio-cni-node-x7"), Some(PassReason::AgentPod)),
            (args("istio-system", "istio-cni-nod"), None),
            (args("default", "istio-cni-node-x7"), None),
            (args("istio-system", "istiod-1"), None),
        ];
        for (args, expected) in cases {
            assert_eq!(pass(&args, &none), expected, "{args:?}");
        }
    }

    #[test]
    fn the_agent_is_asked_unless_the_annotations_are_known_to_lack_the_status() {
        let pod = args("default", "a");
        assert_eq!(pass(&pod, &options(None)), None);
        assert_eq!(pass(&pod, &options(Some(&[]))), Some(PassReason::NoSidecar));
        assert_eq!(pass(&pod, &options(Some(&["other"]))), Some(PassReason::NoSidecar));
        assert_eq!(pass(&pod, &options(Some(&[SIDECAR_STATUS]))), None);
        assert_eq!(pass(&pod, &Options { ambient_enabled: true, ..options(Some(&[])) }), None);
    }

    #[test]
    fn only_decisive_annotations_are_sent_and_the_status_without_its_text() {
        let lookup = |name: &str| (name == "ISTIO_OUTBOUND_OWNER_GROUPS").then(String::new);
        let keys = ["other", SIDECAR_STATUS, "traffic.sidecar.istio.io/includeInboundPorts"];
        let request = request(Operation::Add, Sandbox::default(), &options(Some(&keys)), &lookup);
        let sent = request.annotations.unwrap();
        assert_eq!(sent.keys().collect::<Vec<_>>(), [keys[1], keys[2]]);
        assert_eq!((sent[keys[1]].len(), sent[keys[2]].len()), (0, 1000));
        assert_eq!(
            request.environment,
            BTreeMap::from([("ISTIO_OUTBOUND_OWNER_GROUPS".into(), String::new())])
        );
    }

    #[test]
    fn a_failure_keeps_the_agents_code_and_text() {
        let answer = |outcome, message: &str| Answer {
            protocol: PROTOCOL,
            outcome,
            reason: "bad_annotation".into(),
            message: message.into(),
        };
        assert_eq!(settle(answer(Outcome::Done, "")), Ok(()));
        assert_eq!(settle(answer(Outcome::Fail(101), "a: b")), Err(Error::with_number(101, "a: b")));
        assert_eq!(settle(answer(Outcome::Fail(777), "")), Err(Error::with_number(777, "bad_annotation")));
    }
}
