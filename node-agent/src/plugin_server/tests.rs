// SPDX-License-Identifier: Apache-2.0
//! One exchange in this process: releases of different age, a panic, a full queue, an unknown pod.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use agent_api::frame;
use agent_api::netns::{Netlink, Netns};
use agent_api::{Answer, Operation, Outcome, PROTOCOL, Request, Sandbox, Versions};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};
use prometheus_client::metrics::gauge::Gauge;
use redirect::Pod;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::handler::Handler;
use super::records::Records;
use super::reply::{Connection, Reply};
use super::session;
use crate::observability::metrics::Metrics;
use crate::pods::{Absent, Found, Key, Known, PodSource};
use crate::pool::{Closer, Job, Pool};

/// Knows one mesh pod, `n/a`.
struct OnePod;

impl PodSource for OnePod {
    fn find<'a>(&'a self, key: Key<'a>, deadline: Instant) -> Found<'a> {
        Box::pin(async move {
            if key.name == "a" {
                let pod = json!({
                    "metadata": {"name": "a", "namespace": "n", "annotations": {"sidecar.istio.io/status": ""}},
                    "spec": {"containers": [{"name": "istio-proxy"}]},
                });
                return Ok(Known::Pod(Arc::new(serde_json::from_value::<Pod>(pod).unwrap())));
            }
            tokio::time::sleep_until(deadline).await;
            Err(Absent::Unknown { place: "nowhere".to_owned() })
        })
    }
}

/// Of a mesh pod, with a list that has an empty element.
fn bad_annotations() -> BTreeMap<String, String> {
    let all = [("sidecar.istio.io/status", ""), ("traffic.sidecar.istio.io/excludeInboundPorts", "80,")];
    all.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

fn handler(versions: Versions, queue: usize) -> Handler {
    Handler {
        policy: crate::policy::Policy::default(),
        events: crate::observability::events::Events::none(Arc::new(Metrics::new())),
        versions,
        own_netns: Netns::own().unwrap().id().unwrap(),
        pods: Arc::new(OnePod),
        pool: Pool::start(1, queue, Gauge::default()).unwrap(),
        late: Pool::start(1, queue, Gauge::default()).unwrap(),
        closer: Closer::start().unwrap(),
        metrics: Arc::new(Metrics::new()),
        records: Arc::new(Mutex::new(Records::default())),
    }
}

fn request(protocol: Versions, operation: Operation, name: &str) -> Request {
    Request {
        protocol,
        operation,
        sandbox: Sandbox {
            container_id: "c".to_owned(),
            ifname: "eth0".to_owned(),
            namespace: "n".to_owned(),
            name: name.to_owned(),
            uid: None,
        },
        annotations: None,
        environment: BTreeMap::new(),
        addresses: Vec::new(),
        wait_ms: 1000,
    }
}

/// A pod's netns with an address: its descriptors, in the order of the protocol.
fn sandbox() -> Vec<OwnedFd> {
    let own = Netns::own().unwrap().as_fd().try_clone_to_owned().unwrap();
    let (netns, nfnetlink, rtnetlink) = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let ip =
            std::process::Command::new("ip").args(["address", "add", "10.0.0.1/8", "dev", "lo"]).status();
        assert!(ip.unwrap().success());
        let netns = Netns::own().unwrap().as_fd().try_clone_to_owned().unwrap();
        (netns, Netlink::Netfilter.open().unwrap(), Netlink::Route.open().unwrap())
    })
    .join()
    .unwrap();
    vec![netns, own, nfnetlink, rtnetlink]
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_NONBLOCK).unwrap()
}

/// Send `bytes` and `fds` as one plugin would, and wait for the answer.
async fn exchange(handler: &Handler, bytes: &[u8], fds: &[OwnedFd]) -> Option<Answer> {
    let (plugin, agent) = pair();
    let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    frame::send(&plugin, bytes, &raw).unwrap();
    let (_end, ending) = watch::channel(false);
    session::serve(Connection::new(agent, Gauge::default()), handler, ending).await;
    answer(&plugin)
}

/// The answer, or nothing when the agent hung up.
fn answer(plugin: &OwnedFd) -> Option<Answer> {
    nix::fcntl::fcntl(plugin, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty())).unwrap();
    frame::receive(plugin).ok().map(|frame| Answer::decode(&frame.bytes).unwrap())
}

async fn ask(handler: &Handler, request: &Request, fds: &[OwnedFd]) -> Answer {
    exchange(handler, &request.encode(), fds).await.expect("an answer")
}

fn at(current: u32, oldest: u32) -> Versions {
    Versions { current, oldest }
}

#[tokio::test]
async fn plugins_one_release_older_and_newer_are_served() {
    for (agent, plugin) in
        [(at(1, 1), at(1, 1)), (at(2, 1), at(1, 1)), (at(1, 1), at(2, 1)), (at(3, 2), at(2, 1))]
    {
        let handler = handler(agent, 8);
        let fds = sandbox();
        let answer = ask(&handler, &request(plugin, Operation::Add, "a"), &fds).await;
        assert_eq!(
            (answer.outcome, answer.reason.as_str(), answer.message.as_str()),
            (Outcome::Done, "programmed", "")
        );
        assert_eq!(answer.protocol, agent);
        let answer = ask(&handler, &request(plugin, Operation::Add, "a"), &fds).await;
        assert_eq!(answer.reason, "unchanged", "{}", answer.message);
        let answer = ask(&handler, &request(plugin, Operation::Check, "a"), &fds).await;
        assert_eq!(answer.reason, "rules_as_written", "{}", answer.message);
    }
}

#[tokio::test]
async fn a_newer_plugin_with_fields_and_operations_of_its_own_is_understood_or_told() {
    let handler = handler(at(1, 1), 8);
    let newer = |operation: &str| {
        json!({"protocol": {"current": 2, "oldest": 1}, "operation": operation, "novelty": {"a": [1]},
               "sandbox": {"namespace": "n", "name": "a", "more": true}})
        .to_string()
    };
    let known = exchange(&handler, newer("add").as_bytes(), &sandbox()).await.unwrap();
    assert_eq!((known.outcome, known.reason.as_str()), (Outcome::Done, "programmed"));
    let unknown = exchange(&handler, newer("repair").as_bytes(), &[]).await.unwrap();
    assert_eq!((unknown.outcome, unknown.reason.as_str()), (Outcome::Fail(105), "unknown_operation"));
    assert!(unknown.message.contains("plugin speaks protocol 2, the agent 1"), "{}", unknown.message);
}

#[tokio::test]
async fn releases_too_far_apart_are_told_so_before_anything_is_done() {
    for (agent, plugin) in [(at(3, 2), at(1, 1)), (at(1, 1), at(3, 2))] {
        let handler = handler(agent, 8);
        let fds = sandbox();
        let answer = ask(&handler, &request(plugin, Operation::Add, "a"), &fds).await;
        assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(105), "protocol_versions"));
        let expected = format!(
            "the plugin speaks protocol {} (understands {} and later)",
            plugin.current, plugin.oldest
        );
        assert!(answer.message.contains(&expected), "{}", answer.message);
        let answer = ask(&handler, &request(agent, Operation::Check, "a"), &fds).await;
        assert_eq!(answer.reason, "not_redirected");
    }
}

#[tokio::test]
async fn check_tells_rules_that_are_gone_from_rules_that_never_were() {
    let handler = handler(PROTOCOL, 8);
    let (redirected, other) = (sandbox(), sandbox());
    let add = request(PROTOCOL, Operation::Add, "a");
    assert_eq!(ask(&handler, &add, &redirected).await.outcome, Outcome::Done);
    let check = request(PROTOCOL, Operation::Check, "a");
    let gone = ask(&handler, &check, &other).await;
    assert_eq!((gone.outcome, gone.reason.as_str()), (Outcome::Fail(107), "rules_gone"));
    let mut stranger = check.clone();
    stranger.sandbox.container_id = "another".to_owned();
    assert_eq!(ask(&handler, &stranger, &other).await.reason, "not_redirected");
    let del = agent_api::Notice {
        protocol: PROTOCOL,
        kind: agent_api::NoticeKind::Del,
        reason: String::new(),
        sandbox: check.sandbox.clone(),
    };
    handler.notice(&del);
    assert_eq!(ask(&handler, &check, &other).await.reason, "not_redirected");
}

#[tokio::test]
async fn an_annotation_error_of_the_runtime_s_map_fails_with_its_code() {
    let handler = handler(PROTOCOL, 8);
    let mut add = request(PROTOCOL, Operation::Add, "a");
    add.annotations = Some(bad_annotations());
    let answer = ask(&handler, &add, &sandbox()).await;
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(101), "invalid_annotation"));
    assert!(
        answer.message.contains("excludeInboundPorts") && !answer.message.contains('\n'),
        "{}",
        answer.message
    );
}

#[tokio::test(start_paused = true)]
async fn an_unknown_pod_is_waited_for_two_seconds_then_the_answer_is_code_11() {
    let handler = handler(PROTOCOL, 8);
    let start = Instant::now();
    let answer = ask(&handler, &request(PROTOCOL, Operation::Add, "unknown"), &sandbox()).await;
    assert_eq!(start.elapsed().as_secs(), 2);
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(11), "pod_unknown"));
    assert!(answer.message.starts_with("pod n/unknown: not found in nowhere"), "{}", answer.message);
}

#[tokio::test]
async fn a_panic_fails_its_own_exchange_only() {
    struct Panics(Option<Reply>);
    impl Job for Panics {
        fn run(self: Box<Self>) {
            let _owed = &self.0;
            panic!("on purpose");
        }
        fn refuse(self: Box<Self>) {}
    }
    let handler = handler(PROTOCOL, 8);
    let (plugin, agent) = pair();
    let connection = Connection::new(agent, Gauge::default());
    let metrics = Arc::clone(&handler.metrics);
    let reply = Reply::new(connection, PROTOCOL, metrics, Operation::Add, Sandbox::default());
    handler.pool.submit(Box::new(Panics(Some(reply))));
    let answer = answer(&plugin).expect("an answer");
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(100), "internal"));
    let next = ask(&handler, &request(PROTOCOL, Operation::Add, "a"), &sandbox()).await;
    assert_eq!(next.outcome, Outcome::Done);
}

#[tokio::test]
async fn a_full_queue_makes_the_plugin_ask_again() {
    let handler = handler(PROTOCOL, 0);
    let answer = ask(&handler, &request(PROTOCOL, Operation::Add, "a"), &sandbox()).await;
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Retry, "busy"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_closed_after_five_seconds_and_at_the_end_of_the_agent() {
    for (end, expected, reason) in [(false, 5, "timeout"), (true, 1, "shutdown")] {
        let handler = handler(PROTOCOL, 8);
        let (plugin, agent) = pair();
        let (ender, ending) = watch::channel(false);
        let start = Instant::now();
        let serving = session::serve(Connection::new(agent, Gauge::default()), &handler, ending);
        let ended = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ender.send_replace(end);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = serving => {}
            () = ended => {}
        }
        assert_eq!(start.elapsed().as_secs(), expected);
        assert_eq!(recv(plugin.as_raw_fd(), &mut [0], MsgFlags::empty()), Ok(0));
        let counted = format!("waylay_refused_peers_total{{reason=\"{reason}\"}} 1");
        assert!(handler.metrics.render().contains(&counted));
    }
}

#[test]
fn a_ping_tells_that_the_kernel_refuses_this_agent() {
    let ping = |allowed: bool| {
        thread::spawn(move || {
            if !allowed {
                // The threads of the pool inherit it.
                caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let request = request(PROTOCOL, Operation::Ping, "");
            runtime.block_on(async { ask(&handler(PROTOCOL, 8), &request, &[]).await })
        })
        .join()
        .unwrap()
    };
    assert_eq!(ping(true).outcome, Outcome::Done);
    let refused = ping(false);
    assert_eq!((refused.outcome, refused.reason.as_str()), (Outcome::Fail(106), "kernel_refused"));
}

#[tokio::test]
async fn a_request_whose_plugin_has_given_up_is_dropped_without_work() {
    struct Slow(Duration);
    impl Job for Slow {
        fn run(self: Box<Self>) {
            thread::sleep(self.0);
        }
        fn refuse(self: Box<Self>) {}
    }
    let handler = handler(PROTOCOL, 8);
    let fds = sandbox();
    let mut add = request(PROTOCOL, Operation::Add, "a");
    // Zero: a plugin that does not say how long it waits is served however late.
    for (wait_ms, expected) in [(100, None), (0, Some("programmed")), (60_000, Some("unchanged"))] {
        add.wait_ms = wait_ms;
        handler.pool.submit(Box::new(Slow(Duration::from_millis(200))));
        let answer = exchange(&handler, &add.encode(), &fds).await;
        assert_eq!(answer.as_ref().map(|answer| answer.reason.as_str()), expected);
    }
    let counted = "waylay_refused_peers_total{reason=\"plugin_gave_up\"} 1";
    assert!(handler.metrics.render().contains(counted), "{}", handler.metrics.render());
}

#[tokio::test]
async fn a_request_whose_plugin_has_hung_up_is_dropped_without_work() {
    let handler = handler(PROTOCOL, 8);
    let fds = sandbox();
    let add = request(PROTOCOL, Operation::Add, "a").encode();
    let (plugin, agent) = pair();
    let raw: Vec<_> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    frame::send(&plugin, &add, &raw).unwrap();
    drop(plugin);
    let (_ender, ending) = watch::channel(false);
    session::serve(Connection::new(agent, Gauge::default()), &handler, ending).await;
    let answer = exchange(&handler, &add, &fds).await.unwrap();
    assert_eq!(answer.reason, "programmed", "nothing was there");
    let counted = "waylay_refused_peers_total{reason=\"plugin_gave_up\"} 1";
    assert!(handler.metrics.render().contains(counted), "{}", handler.metrics.render());
}

#[tokio::test]
async fn descriptors_are_closed_after_the_answer_by_the_closer() {
    struct Held(std::sync::mpsc::Receiver<()>);
    impl Drop for Held {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    /// How many sockets of NETLINK_NETFILTER are open in a netns: protocol 12, in the second column.
    fn sockets(netns: &OwnedFd) -> usize {
        let netns = Netns::from_fd(netns.try_clone().unwrap()).unwrap();
        let count = move || {
            netns.enter().unwrap();
            let table = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
            // The kernel's own has port id 0.
            let columns = |line: &str| line.split_whitespace().skip(1).take(2).map(str::to_owned).collect();
            table.lines().map(columns).filter(|c: &Vec<_>| c[0] == "12" && c[1] != "0").count()
        };
        thread::spawn(count).join().unwrap()
    }
    let mut plain = request(PROTOCOL, Operation::Add, "a");
    plain.annotations = Some(BTreeMap::from([("istio.io/dataplane-mode".to_owned(), "none".to_owned())]));
    let mut bad = plain.clone();
    bad.annotations = Some(bad_annotations());
    let unknown = request(PROTOCOL, Operation::Unknown, "a");
    for (request, expected) in
        [(plain, "no_sidecar"), (bad, "invalid_annotation"), (unknown, "unknown_operation")]
    {
        let handler = handler(PROTOCOL, 8);
        let (release, held) = std::sync::mpsc::channel();
        handler.closer.close(Held(held));
        let fds = sandbox();
        let netns = fds[0].try_clone().unwrap();
        // nf_tables binds the port at the first message; without it all have port id 0.
        nix::sys::socket::bind(fds[2].as_raw_fd(), &nix::sys::socket::NetlinkAddr::new(0, 0)).unwrap();
        assert_eq!(sockets(&netns), 1);
        assert_eq!(ask(&handler, &request, &fds).await.reason, expected);
        drop(fds);
        assert_eq!(sockets(&netns), 1, "{expected}: closed on the event loop");
        release.send(()).unwrap();
        while sockets(&netns) != 0 {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
