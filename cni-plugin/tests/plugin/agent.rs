// SPDX-License-Identifier: Apache-2.0
//! ADD and CHECK with an agent that answers, closes, resets, refuses, hangs, is late or is of another release.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use agent_api::netns::{Netlink, Netns};
use agent_api::{Operation, Outcome, PROTOCOL};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use crate::harness::{Caller, FakeAgent, Received, RunDir, Step, TestNetns, answer, bound, done, finish};

const OK: &str = "{\"cniVersion\":\"1.0.0\"}\n";
const LOOK: &str = "see the istio-cni-node pod on this node and its log, or, if there is to be none any more, run node-cleanup.sh on the node";

fn call(verb: &str, dir: &RunDir, netns: &TestNetns, more: &str) -> Caller {
    Caller::new(verb, dir.config(more)).with("CNI_NETNS", &netns.path())
}

/// One ADD against a script; what the agent saw.
fn add(script: Vec<Step>) -> Vec<Received> {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, script);
    call("ADD", &dir, &netns, "").run().succeeded_with(OK);
    agent.seen()
}

/// One ADD with a deadline of 1 s that ends with code 11 because of `trouble`.
fn add_times_out(dir: &RunDir, trouble: &str) {
    let netns = TestNetns::new();
    let finished = call("ADD", dir, &netns, r#","agent_deadline_seconds":1"#).run();
    finished.failed_with(
        11,
        &format!(
            "the istio-cni agent did not make pod default/web-0 ready within 1 s ({}: {trouble}); {LOOK}",
            dir.requests()
        ),
    );
    let (shortest, longest) = (Duration::from_millis(700), Duration::from_secs(5));
    assert!((shortest..longest).contains(&finished.took), "{finished:?}");
}

#[test]
fn the_request_says_which_attachment_and_how_long_the_plugin_waits() {
    let seen = add(vec![done()]);
    let request = &seen[0].request;
    assert_eq!((request.protocol, request.operation), (PROTOCOL, Operation::Add));
    let sandbox = &request.sandbox;
    assert_eq!((sandbox.container_id.as_str(), sandbox.ifname.as_str()), ("c0ffee", "eth0"));
    assert_eq!((sandbox.namespace.as_str(), sandbox.name.as_str()), ("default", "web-0"));
    assert_eq!(sandbox.uid.as_deref(), Some("u-1"));
    assert_eq!(request.annotations, None, "the runtime handed over none");
    assert!(request.environment.is_empty());
    assert!((4000..=5000).contains(&request.wait_ms), "{}", request.wait_ms);
}

#[test]
fn the_descriptors_are_the_pods_netns_our_own_and_two_sockets_inside_the_pods() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![done()]);
    call("ADD", &dir, &netns, "").run().succeeded_with(OK);
    let fds = agent.seen().remove(0).fds;
    assert_eq!(fds.len(), 4);
    let id = |index: usize| Netns::from_fd(fds[index].try_clone().unwrap()).unwrap().id().unwrap();
    assert_eq!(id(0), netns.id());
    assert_eq!(id(1), Netns::own().unwrap().id().unwrap());
    assert_eq!(Netlink::Netfilter.verify(fds[2].as_fd(), netns.id()), Ok(()));
    assert_eq!(Netlink::Route.verify(fds[3].as_fd(), netns.id()), Ok(()));
}

#[test]
fn an_exchange_that_breaks_is_tried_again() {
    let seen = add(vec![Step::Close, Step::Reset, Step::Close, Step::Raw("not an answer"), done()]);
    // A reset connection never got its request read.
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|received| received.fds.len() == 4));
}

#[test]
fn an_answer_that_says_retry_is_asked_again() {
    assert_eq!(add(vec![answer(Outcome::Retry, "busy"), answer(Outcome::Retry, "busy"), done()]).len(), 3);
}

#[test]
fn a_connection_to_an_agent_that_hangs_is_given_up_and_the_next_one_serves() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![Step::Hang, done()]);
    let finished = call("ADD", &dir, &netns, "").run();
    finished.succeeded_with(OK);
    assert!((4..8).contains(&finished.took.as_secs()), "{finished:?}");
    assert_eq!(agent.seen().len(), 2);
}

/// An ADD that waits for an agent which hangs, until a newer one takes the name of the socket.
fn add_moves_to_the_newer_agent(dir: &RunDir) {
    let netns = TestNetns::new();
    let waiting = call("ADD", dir, &netns, "").start();
    std::thread::sleep(Duration::from_millis(500));
    let newer = FakeAgent::take_over(dir, vec![done()]);
    let finished = finish(waiting);
    finished.succeeded_with(OK);
    // Without a look at the name it would be 5 s.
    assert!((500..2500).contains(&finished.took.as_millis()), "{finished:?}");
    assert_eq!(newer.seen().len(), 1);
}

#[test]
fn an_agent_that_hangs_is_left_for_the_one_that_takes_the_socket() {
    let dir = RunDir::new();
    let older = FakeAgent::start(&dir, vec![Step::Hang, done()]);
    add_moves_to_the_newer_agent(&dir);
    drop(older);
}

#[test]
fn so_is_one_that_accepts_nothing() {
    let dir = RunDir::new();
    let older = bound(&agent_api::path::requests(&dir.0));
    nix::sys::socket::listen(&older, nix::sys::socket::Backlog::new(4).unwrap()).unwrap();
    add_moves_to_the_newer_agent(&dir);
}

#[test]
fn so_is_one_whose_backlog_is_full() {
    let dir = RunDir::new();
    let path = agent_api::path::requests(&dir.0);
    let older = bound(&path);
    nix::sys::socket::listen(&older, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let connected: Vec<_> = std::iter::repeat_with(|| dial(&path)).map_while(Result::ok).take(10).collect();
    assert!(connected.len() < 10, "the backlog has an end");
    add_moves_to_the_newer_agent(&dir);
}

/// A connection, made without waiting.
fn dial(path: &std::path::Path) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

#[test]
fn the_agents_failure_is_the_plugins_with_code_and_text() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let text =
        "annotation traffic.sidecar.istio.io/includeInboundPorts is \"x\": must be \"*\" or a list of ports";
    let agent = FakeAgent::start(
        &dir,
        vec![answer(Outcome::Fail(101), text), answer(Outcome::Fail(777), "of a newer agent\nin two lines")],
    );
    let finished = call("ADD", &dir, &netns, "").run();
    finished.failed_with(101, text);
    call("ADD", &dir, &netns, "").run().failed_with(777, "of a newer agent in two lines");
    assert_eq!(agent.seen().len(), 2, "a failure is not asked again");
}

#[test]
fn agents_of_the_next_release_are_understood() {
    let newer = r#"{"protocol":{"current":2,"oldest":1},"outcome":"done","reason":"programmed","rules":43}"#;
    assert_eq!(add(vec![Step::Raw(newer)]).len(), 1);
    let failed = r#"{"protocol":{"current":2,"oldest":1},"outcome":{"fail":106},"reason":"x","message":"m"}"#;
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![Step::Raw(failed)]);
    call("ADD", &dir, &netns, "").run().failed_with(106, "m");
    assert_eq!(agent.seen().len(), 1);
}

#[test]
fn an_agent_too_far_away_is_waited_for_to_be_replaced() {
    let far = r#"{"protocol":{"current":9,"oldest":9},"outcome":"done","reason":"programmed"}"#;
    assert_eq!(add(vec![Step::Raw(far), done()]).len(), 2);
}

#[test]
fn without_an_agent_an_add_ends_with_code_11_at_its_deadline() {
    let dir = RunDir::new();
    add_times_out(&dir, "connect: ENOENT: No such file or directory");
    let _nobody_listens = bound(&agent_api::path::requests(&dir.0));
    add_times_out(&dir, "connect: ECONNREFUSED: Connection refused");
}

#[test]
fn an_agent_that_only_hangs_ends_with_code_11_at_the_deadline() {
    let dir = RunDir::new();
    // The second step never comes; it keeps the agent, and with it the first connection, alive.
    let _agent = FakeAgent::start(&dir, vec![Step::Hang, Step::Hang]);
    add_times_out(&dir, "it took the request and gave no answer");
}

#[test]
fn the_agents_last_word_is_in_the_message_when_the_time_is_over() {
    let dir = RunDir::new();
    let script = (0..200).map(|_| answer(Outcome::Retry, "pod default/web-0 is not known here")).collect();
    let _agent = FakeAgent::start(&dir, script);
    add_times_out(&dir, "pod default/web-0 is not known here");
}

#[test]
fn twenty_adds_wait_for_an_agent_that_comes_late() {
    let dir = RunDir::new();
    let netns: Vec<TestNetns> = (0..20).map(|_| TestNetns::new()).collect();
    let started: Vec<_> = netns.iter().map(|netns| call("ADD", &dir, netns, "").start()).collect();
    std::thread::sleep(Duration::from_millis(600));
    let agent = FakeAgent::start(&dir, (0..20).map(|_| done()).collect());
    for child in started {
        finish(child).succeeded_with(OK);
    }
    assert_eq!(agent.seen().len(), 20);
}

#[test]
fn check_asks_the_agent_and_reports_what_it_says() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![done(), answer(Outcome::Fail(107), "rules are missing")]);
    call("CHECK", &dir, &netns, "").run().succeeded_with("");
    call("CHECK", &dir, &netns, "").run().failed_with(107, "rules are missing");
    let seen = agent.seen();
    assert!(
        seen.iter().all(|received| received.request.operation == Operation::Check && received.fds.len() == 4)
    );
    assert!(seen.iter().all(|received| (1500..=2000).contains(&received.request.wait_ms)));
}

#[test]
fn check_succeeds_after_2_s_when_the_agent_cannot_be_asked() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let finished = call("CHECK", &dir, &netns, "").run();
    finished.succeeded_with("");
    let (shortest, longest) = (Duration::from_millis(1700), Duration::from_secs(5));
    assert!((shortest..longest).contains(&finished.took), "{finished:?}");
    assert_eq!(
        finished.stderr,
        "istio-cni: warn: check without the agent: connect: ENOENT: No such file or directory (pod default/web-0, \
         container c0ffee)\n"
    );
}

#[test]
fn a_run_dir_too_long_for_a_socket_is_told_at_once() {
    let netns = TestNetns::new();
    let long = format!("/run/{}", "x".repeat(120));
    let config = format!(r#"{{"name":"n","cniVersion":"1.0.0","cni_agent_run_dir":"{long}"}}"#);
    let finished = Caller::new("ADD", config).with("CNI_NETNS", &netns.path()).run();
    finished.failed_with(
        7,
        &format!(
            "network config has cni_agent_run_dir \"{long}\": must be shorter than 90 bytes, because a socket in it has a \
             path of at most 107; correct the istio-cni entry of the node's CNI configuration"
        ),
    );
    assert!(finished.took < Duration::from_secs(1));
}

/// Annotations as the runtime hands them over, the sidecar's status among them.
fn annotations(more: &str) -> String {
    format!(
        r#","runtimeConfig":{{"io.kubernetes.cri.pod-annotations":{{"sidecar.istio.io/status":"{{\"x\":1}}"{more}}}}}"#
    )
}

#[test]
fn foreign_annotations_of_256_kib_do_not_matter() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![done()]);
    let foreign = format!(
        r#","kubectl.kubernetes.io/last-applied-configuration":"{}","sidecar.istio.io/interceptionMode":"REDIRECT""#,
        "\\u0001".repeat(256 * 1024)
    );
    call("ADD", &dir, &netns, &annotations(&foreign)).run().succeeded_with(OK);
    let sent = agent.seen().remove(0).request.annotations.unwrap();
    let sent: Vec<_> = sent.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(sent, [("sidecar.istio.io/interceptionMode", "REDIRECT"), ("sidecar.istio.io/status", "")]);
}

#[test]
fn lists_of_10_000_entries_arrive_whole() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![done()]);
    let list: Vec<String> = (0..10_000).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let list = list.join(",");
    let key = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    call("ADD", &dir, &netns, &annotations(&format!(r#","{key}":"{list}""#))).run().succeeded_with(OK);
    assert_eq!(agent.seen().remove(0).request.annotations.unwrap()[key], list);
}

#[test]
fn a_request_that_no_message_holds_is_code_108_at_once() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    // A connection, but no request.
    let _agent = bound(&agent_api::path::requests(&dir.0));
    nix::sys::socket::listen(&_agent, nix::sys::socket::Backlog::new(4).unwrap()).unwrap();
    let list = "10.0.0.0/8,".repeat(50_000);
    let key = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let finished = call("ADD", &dir, &netns, &annotations(&format!(r#","{key}":"{list}""#))).run();
    finished.failed_with(
        108,
        "the pod's traffic.sidecar.istio.io annotations are too large for one message to the agent, which takes 512 KiB: \
         shorten the lists",
    );
    assert!(finished.took < Duration::from_secs(1), "{finished:?}");
}

#[test]
fn the_runtimes_variables_that_change_rules_are_sent() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![done()]);
    call("ADD", &dir, &netns, "")
        .with("ISTIO_OUTBOUND_OWNER_GROUPS", "1000,2000")
        .with("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "")
        .with("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8")
        .with("HTTP_PROXY", "http://x")
        .run()
        .succeeded_with(OK);
    let sent = agent.seen().remove(0).request.environment;
    let sent: Vec<_> = sent.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(
        sent,
        [
            ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8"),
            ("ISTIO_OUTBOUND_OWNER_GROUPS", "1000,2000"),
            ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", ""),
        ]
    );
}

#[test]
fn an_add_starts_no_other_program_and_no_thread() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let agent = FakeAgent::start(&dir, vec![Step::Close, done()]);
    let trace = dir.0.join("trace");
    let finished = call("ADD", &dir, &netns, "")
        .under(&["/usr/bin/strace", "-f", "-e", "trace=process", "-o", trace.to_str().unwrap()])
        .run();
    finished.succeeded_with(OK);
    assert_eq!(agent.seen().len(), 2);
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls = |name: &str| trace.lines().filter(|line| line.contains(&format!(" {name}("))).count();
    assert_eq!(calls("execve"), 1, "{trace}");
    assert_eq!(["execveat", "clone", "clone3", "fork", "vfork"].map(calls), [0; 5], "{trace}");
}
