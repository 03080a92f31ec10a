// SPDX-License-Identifier: Apache-2.0
//! Peers that are not the plugin, or that send what no plugin sends. None of them gets anything programmed, each is
//! counted by reason, and the plugin is served all the while.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs::{self, Permissions};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use agent_api::netns::{Netlink, Netns, is_initial};
use agent_api::{Answer, Operation, Outcome, frame};
use common::{Agent, Dir, PodNetns, ask, dial, owned, raw, request, wait};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};

fn setup() -> (Dir, Agent) {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let agent = Agent::start(&dir);
    (dir, agent)
}

fn counted(agent: &Agent, reason: &str, times: u32) {
    let line = format!("waylay_refused_peers_total{{reason=\"{reason}\"}} {times}");
    wait(&line, || agent.metrics().lines().any(|l| l == line), || agent.metrics());
}

fn refused(answer: &Answer, reason: &str) {
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(105), reason), "{}", answer.message);
    assert!(!answer.message.is_empty() && !answer.message.contains('\n'));
}

fn still_serves(dir: &Dir) {
    let pod = PodNetns::new();
    let answer = ask(dir, &request(Operation::Add, "a"), &pod.fds()).unwrap();
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Done, "programmed"));
}

/// Another uid for this thread alone: libc's own call changes all threads of the process.
#[allow(unsafe_code, reason = "only the bare system call changes one thread")]
fn become_nobody() {
    // SAFETY: setresuid(2) takes three integers.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, 65534, 65534, 65534) };
    assert_eq!(result, 0);
}

#[test]
fn descriptors_are_believed_only_after_a_look() {
    let (dir, agent) = setup();
    let (pod, other) = (PodNetns::new(), PodNetns::new());
    let file: OwnedFd = fs::File::open("/proc/self/status").unwrap().into();
    let mount: OwnedFd = fs::File::open("/proc/self/ns/mnt").unwrap().into();
    let agents = owned(&Netns::open(Path::new(&format!("/proc/{}/ns/net", agent.child.id()))).unwrap());
    let (netns, own, nf, rt) = (&pod.netns, &pod.own, &pod.nfnetlink, &pod.rtnetlink);
    let generic = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let mut total = std::collections::BTreeMap::new();
    for (fds, reason) in [
        (vec![], "descriptor_count"),
        (vec![netns, own, nf], "descriptor_count"),
        (vec![netns, own, nf, rt, rt], "descriptor_count"),
        (vec![own, netns, nf, rt], "socket_of_other_netns"),
        (vec![nf, rt, netns, own], "not_a_netns"),
        (vec![netns, own, rt, nf], "not_that_socket"),
        (vec![netns, own, &generic, rt], "not_that_socket"),
        (vec![netns, own, nf, &file], "not_that_socket"),
        (vec![&file, own, nf, rt], "not_a_netns"),
        (vec![&mount, own, nf, rt], "not_a_netns"),
        (vec![netns, &mount, nf, rt], "not_a_netns"),
        (vec![netns, own, &other.nfnetlink, rt], "socket_of_other_netns"),
        (vec![netns, own, nf, &other.rtnetlink], "socket_of_other_netns"),
        (vec![&other.netns, own, nf, rt], "socket_of_other_netns"),
        (vec![netns, netns, nf, rt], "netns_of_plugin"),
        (vec![&agents, own, nf, rt], "netns_of_agent"),
    ] {
        refused(&ask(&dir, &request(Operation::Add, "a"), &fds).unwrap(), reason);
        *total.entry(reason).or_insert(0) += 1;
    }
    for (reason, times) in total {
        counted(&agent, reason, times);
    }
    assert_eq!((pod.rules(), other.rules()), (String::new(), String::new()));
    still_serves(&dir);
}

#[test]
fn the_netns_of_the_node_is_refused_by_what_it_is() {
    let (dir, _agent) = setup();
    let own = Netns::own().unwrap();
    let (nf, rt) = (Netlink::Netfilter.open().unwrap(), Netlink::Route.open().unwrap());
    // Sockets in the node's netns can be opened there only.
    assert!(is_initial(own.id().unwrap(), nf.as_fd()), "run this test in the initial network namespace");
    let node = owned(&own);
    // CHECK, because it writes nothing, whatever is wrong with the agent.
    let other = PodNetns::new();
    let fds = [&node, &other.netns, &nf, &rt];
    refused(&ask(&dir, &request(Operation::Check, "a"), &fds).unwrap(), "netns_of_node");
}

#[test]
fn the_kernel_refuses_sockets_whose_opener_lacked_net_admin() {
    let (dir, _agent) = setup();
    let pod = PodNetns::new();
    let (nf, rt) = pod.inside(|| {
        caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).unwrap();
        (Netlink::Netfilter.open().unwrap(), Netlink::Route.open().unwrap())
    });
    let answer = ask(&dir, &request(Operation::Add, "a"), &[&pod.netns, &pod.own, &nf, &rt]).unwrap();
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Fail(106), "kernel_refused"));
    assert!(answer.message.contains("EPERM"), "{}", answer.message);
    assert_eq!(pod.rules(), "");
}

#[test]
fn a_peer_that_is_not_root_is_closed_also_when_the_file_lets_it_in() {
    let (dir, agent) = setup();
    let path = dir.requests();
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let stranger = thread::spawn(move || {
        become_nobody();
        raw(&path, b"{}", &[])
    });
    assert_eq!(stranger.join().unwrap(), None);
    counted(&agent, "peer_uid", 1);
    still_serves(&dir);
}

#[test]
fn what_is_not_a_request_is_closed_and_counted() {
    let (dir, agent) = setup();
    let pod = PodNetns::new();
    let whole = request(Operation::Add, "a").encode();
    let half = &whole[..whole.len() / 2];
    let deep = [b"{\"sandbox\":".repeat(2000), b"1".to_vec()].concat();
    for bytes in
        [half, b"\0", b"[]", b"\xff\xfe", b"{\"protocol\":{\"current\":-1,\"oldest\":1}}", deep.as_slice()]
    {
        assert_eq!(raw(&dir.requests(), bytes, &pod.fds()), None, "{bytes:?}");
    }
    counted(&agent, "malformed", 6);
    let long = dial(&dir.requests());
    nix::sys::socket::setsockopt(&long, nix::sys::socket::sockopt::SndBufForce, &(4 * frame::MAX_LEN))
        .unwrap();
    nix::sys::socket::send(long.as_raw_fd(), &vec![b' '; frame::MAX_LEN + 1], MsgFlags::MSG_NOSIGNAL)
        .unwrap();
    assert!(frame::receive(&long).is_err());
    counted(&agent, "too_long", 1);
    drop(dial(&dir.requests()));
    counted(&agent, "closed_early", 1);
    // A second request on a connection is nobody's: one each.
    let twice = dial(&dir.requests());
    let ping = request(Operation::Ping, "a").encode();
    frame::send(&twice, &ping, &[]).unwrap();
    frame::receive(&twice).unwrap();
    assert!(frame::send(&twice, &ping, &[]).and_then(|()| frame::receive(&twice)).is_err());
    assert_eq!(pod.rules(), "");
    still_serves(&dir);
}

#[test]
fn hostile_notices_neither_block_the_queue_nor_become_labels() {
    let (dir, agent) = setup();
    let path = agent_api::path::notices(&dir.run());
    let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None).unwrap();
    nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::SndBufForce, &(4 * frame::MAX_LEN))
        .unwrap();
    let to = UnixAddr::new(&path).unwrap();
    let long = vec![b' '; frame::MAX_LEN + 1];
    let evil = br#"{"protocol":{"current":1,"oldest":1},"kind":"pass","reason":"made\"up"}"#;
    let newer = br#"{"protocol":{"current":9,"oldest":8},"kind":"pass","reason":"no_sidecar"}"#;
    let good = br#"{"protocol":{"current":1,"oldest":1},"kind":"pass","reason":"no_sidecar"}"#;
    for bytes in [b"".as_slice(), b"junk", &long, newer, evil, good] {
        sendto(sender.as_raw_fd(), bytes, &to, MsgFlags::empty()).unwrap();
    }
    let line = "waylay_notices_total{kind=\"pass\",reason=\"no_sidecar\"} 1";
    wait(line, || agent.metrics().contains(line), || agent.metrics());
    assert!(agent.metrics().contains("waylay_notices_total{kind=\"pass\",reason=\"other\"} 1"));
    assert!(!agent.metrics().contains("made"));
    counted(&agent, "malformed", 3);
    counted(&agent, "protocol_versions", 1);
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_pod() {
    let (dir, agent) = setup();
    let sender = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::empty(), None).unwrap();
    let to = UnixAddr::new(&agent_api::path::notices(&dir.run())).unwrap();
    let notice = br#"{"protocol":{"current":1,"oldest":1},"kind":"pass","reason":"no_sidecar"}"#;
    agent.unread(|| {
        // More than a pipe and the agent hold.
        for _ in 0..5000 {
            sendto(sender.as_raw_fd(), notice, &to, MsgFlags::empty()).unwrap();
        }
        still_serves(&dir);
    });
    agent.wait_log("nobody read the log: lines are lost");
}

#[test]
fn a_thousand_idle_connections_do_not_delay_an_add() {
    let (dir, agent) = setup();
    // Made before: a busy machine needs seconds for them, and the idle connections live for five.
    let pods: Vec<_> = (0..50).map(|_| PodNetns::new()).collect();
    let start = Instant::now();
    let idle: Vec<_> = (0..1000).map(|_| dial(&dir.requests())).collect();
    for pod in &pods {
        let asked = Instant::now();
        let answer = ask(&dir, &request(Operation::Add, "a"), &pod.fds()).unwrap();
        assert_eq!(answer.outcome, Outcome::Done);
        assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    }
    assert!(start.elapsed() < Duration::from_secs(5), "the idle ones were gone before the end");
    assert!(agent.metrics().contains("waylay_open_connections 1000"), "{}", agent.metrics());
    counted(&agent, "timeout", 1000);
    assert!(agent.metrics().contains("waylay_open_connections 0"), "{}", agent.metrics());
    drop(idle);
}

#[test]
fn connections_over_the_limit_are_closed_and_counted() {
    let (dir, agent) = setup();
    setrlimit(Resource::RLIMIT_NOFILE, 10_000, 10_000).unwrap();
    let start = Instant::now();
    let idle: Vec<_> = (0..4100).map(|_| dial(&dir.requests())).collect();
    counted(&agent, "too_many_connections", 4);
    assert!(start.elapsed() < Duration::from_secs(5), "this machine is too slow to have 4,096 at once");
    counted(&agent, "timeout", 4096);
    drop(idle);
    still_serves(&dir);
}

#[test]
fn descriptors_that_are_taken_away_are_reported_as_that() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    // No room for four more descriptors once the agent runs: the kernel takes them away as a security module would.
    let agent = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &["--health-port=0"]);
    agent.wait_log("took the socket");
    let open = fs::read_dir(format!("/proc/{}/fd", agent.child.id())).unwrap().count();
    let limit = format!("--nofile={}", open + 2);
    let run = Command::new("prlimit").arg(format!("--pid={}", agent.child.id())).arg(limit).status().unwrap();
    assert!(run.success());
    let pod = PodNetns::new();
    let answer = ask(&dir, &request(Operation::Add, "a"), &pod.fds()).unwrap();
    // Room may be there again in a moment.
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Retry, "descriptors_denied"));
    assert!(
        answer.message.contains("security module") && !answer.message.contains('\n'),
        "{}",
        answer.message
    );
    assert!(answer.message.contains("a security module"), "{}", answer.message);
    agent.wait_log("descriptors_denied");
}

#[test]
fn idle_connections_to_the_health_port_do_not_keep_the_kubelet_out() {
    let (_dir, agent) = setup();
    let ready = || {
        let asked = Instant::now();
        assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"), "{}", agent.log());
        asked.elapsed()
    };
    ready();
    let netns = agent_api::netns::Netns::open(format!("/proc/{}/ns/net", agent.child.id()).as_ref()).unwrap();
    let idle = std::thread::spawn(move || {
        netns.enter().unwrap();
        (0..100).map(|_| std::net::TcpStream::connect("127.0.0.1:8000").unwrap()).collect::<Vec<_>>()
    });
    let idle = idle.join().unwrap();
    let took = ready();
    assert!(took < Duration::from_secs(1), "{took:?}");
    drop(idle);
}
