// SPDX-License-Identifier: Apache-2.0
//! Two agents on one node: the newer one takes over without a failed exchange, and loses the role when it does not work.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agent_api::{Notice, NoticeKind, Operation, Outcome, PROTOCOL, exchange};
use common::{Agent, Dir, LONG, PodNetns, dial, request, wait};
use nix::sys::signal::Signal;

/// How soon the older agent must have the role again.
const RETAKE: Duration = Duration::from_secs(1);

/// ADDs one after the other, each with the patience of the plugin: one attempt may last 2 s, all together [`LONG`].
struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Duration)>,
}

impl Stream {
    fn start(dir: &Dir) -> Self {
        dir.mesh_pod("a");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, path) = (Arc::clone(&stop), dir.requests());
        let thread = thread::spawn(move || {
            let (mut done, mut slowest) = (0, Duration::ZERO);
            let pod = PodNetns::new();
            let fds: Vec<_> = pod.fds().into_iter().map(|fd| fd.as_fd()).collect();
            while !stopping.load(Ordering::Relaxed) {
                let start = Instant::now();
                let answer = loop {
                    match exchange(&path, &request(Operation::Add, "a"), &fds, Instant::now() + RETAKE) {
                        Ok(answer) if answer.outcome != Outcome::Retry => break answer,
                        failed => assert!(start.elapsed() < LONG, "{failed:?}"),
                    }
                    thread::sleep(Duration::from_millis(10));
                };
                assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
                slowest = slowest.max(start.elapsed());
                done += 1;
            }
            (done, slowest)
        });
        Self { stop, thread }
    }

    /// End it: how many ADDs were done, all of them with success, and how long the slowest took.
    fn end(self) -> (usize, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The sockets in the run directory.
fn names(dir: &Dir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir.run())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_socket())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn inode(dir: &Dir) -> u64 {
    fs::metadata(dir.requests()).unwrap().ino()
}

/// Wait until the request socket is another file than `before`; how long it took.
fn taken(dir: &Dir, before: u64, agent: &Agent) -> Duration {
    let start = Instant::now();
    wait("change of the socket", || inode(dir) != before, || agent.log());
    start.elapsed()
}

fn notice_names_belong_together(dir: &Dir, agent: &Agent, times: u32) {
    let fd = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Unix,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .unwrap();
    let notice = Notice {
        protocol: PROTOCOL,
        kind: NoticeKind::Del,
        reason: String::new(),
        sandbox: Default::default(),
    };
    let to = nix::sys::socket::UnixAddr::new(&agent_api::path::notices(&dir.run())).unwrap();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
    nix::sys::socket::sendto(raw, &notice.encode(), &to, nix::sys::socket::MsgFlags::empty()).unwrap();
    let line = format!("waylay_notices_total{{kind=\"del\",reason=\"\"}} {times}");
    wait(&line, || agent.metrics().contains(&line), || agent.metrics());
}

#[test]
fn a_newer_agent_takes_over_and_the_older_finishes_what_it_has_accepted() {
    let dir = Dir::new();
    let older = Agent::start(&dir);
    let stream = Stream::start(&dir);
    let (before, early) = (inode(&dir), dial(&dir.requests()));
    let newer = Agent::start(&dir);
    assert_ne!(inode(&dir), before);
    // Connected to the older one before: answered by it, if it asks within the 5 s that a connection may be silent.
    agent_api::frame::send(&early, &request(Operation::Ping, "a").encode(), &[]).unwrap();
    agent_api::frame::receive(&early).unwrap();
    older.wait_log("standing by");
    notice_names_belong_together(&dir, &newer, 1);
    let (status, log) = older.end();
    assert_eq!(status, Some(0), "{log}");
    let now = inode(&dir);
    thread::sleep(2 * RETAKE);
    assert_eq!(inode(&dir), now, "the names are not taken from an agent that works");
    let (done, slowest) = stream.end();
    assert!(done > 100 && slowest < RETAKE, "{done} ADDs, the slowest took {slowest:?}");
}

#[test]
fn a_newer_agent_that_crashes_at_start_changes_nothing() {
    let dir = Dir::new();
    let older = Agent::start(&dir);
    let stream = Stream::start(&dir);
    let before = inode(&dir);
    // At whatever point of its start: 0 to 9 ms after fork.
    for delay in 0..10 {
        let mut newer = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &[]);
        thread::sleep(Duration::from_millis(delay));
        newer.child.kill().unwrap();
        newer.child.wait().unwrap();
    }
    let (code, text) = Agent::spawn(&dir, &["--bounding-set=-all"], &[]).failed();
    assert_eq!(code, Some(1), "{text}");
    thread::sleep(RETAKE);
    let (done, slowest) = stream.end();
    assert!(done > 100 && slowest < 2 * RETAKE, "{done} ADDs, the slowest took {slowest:?}");
    // One of them may have lived long enough to take the names; then they are back.
    assert_eq!(inode(&dir), before, "{}", older.log());
}

#[test]
fn a_newer_agent_without_its_pods_does_not_take_the_role() {
    let dir = Dir::new();
    let _older = Agent::start(&dir);
    let before = inode(&dir);
    let newer = Agent::spawn(&dir, &["--bounding-set=-all,+net_admin"], &["--pod-manifest-dir=/nonexistent"]);
    newer.wait_log("watch the pod manifest directory");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(inode(&dir), before);
    let ready = newer.http(8000, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("[-]pods failed: "), "{ready}");
    assert!(ready.contains("[-]socket failed: "), "{ready}");
}

#[test]
fn a_newer_agent_that_dies_after_it_took_the_role_loses_it_within_a_second() {
    let dir = Dir::new();
    let older = Agent::start(&dir);
    let mine = inode(&dir);
    let stream = Stream::start(&dir);
    for round in 1..=5 {
        let mut newer = Agent::start(&dir);
        let theirs = inode(&dir);
        // At different points of the older one's period.
        thread::sleep(Duration::from_millis(round * 110));
        newer.child.kill().unwrap();
        newer.child.wait().unwrap();
        assert!(taken(&dir, theirs, &older) < RETAKE);
        assert_eq!(inode(&dir), mine);
        notice_names_belong_together(&dir, &older, u32::try_from(round).unwrap());
    }
    let (done, slowest) = stream.end();
    assert!(done > 100 && slowest < 2 * RETAKE, "{done} ADDs, the slowest took {slowest:?}");
}

#[test]
fn a_newer_agent_that_hangs_loses_the_role_and_does_not_fight_for_it_afterwards() {
    let dir = Dir::new();
    let older = Agent::start(&dir);
    let (mine, stream) = (inode(&dir), Stream::start(&dir));
    let newer = Agent::start(&dir);
    let theirs = inode(&dir);
    newer.signal(Signal::SIGSTOP);
    assert!(taken(&dir, theirs, &older) < RETAKE);
    assert_eq!(inode(&dir), mine);
    newer.signal(Signal::SIGCONT);
    newer.wait_log("standing by");
    thread::sleep(RETAKE);
    assert_eq!(inode(&dir), mine);
    // It is a stand-by like any other now.
    drop(older);
    wait("the other agent in the role", || inode(&dir) == theirs, || newer.log());
    let (done, slowest) = stream.end();
    assert!(done > 100 && slowest < 3 * RETAKE, "{done} ADDs, the slowest took {slowest:?}");
}

/// How often the threads of a process went to sleep.
fn sleeps(pid: u32) -> u64 {
    let of_thread = |entry: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(entry.unwrap().path().join("status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        count.trim().parse::<u64>().unwrap()
    };
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(of_thread).sum()
}

#[test]
fn an_agent_that_holds_the_names_sleeps_until_somebody_takes_them() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let rest = |what: &str| {
        let give_up = Instant::now() + LONG;
        // Two seconds of rest; every 250 ms would be eight times.
        loop {
            let before = sleeps(agent.child.id());
            thread::sleep(2 * RETAKE);
            let woken = sleeps(agent.child.id()) - before;
            if woken == 0 {
                break;
            }
            assert!(Instant::now() < give_up, "{what}: woken {woken} times");
        }
    };
    rest("at first");
    let newer = Agent::start(&dir);
    agent.wait_log("standing by");
    drop(newer);
    agent.wait_log("before=Standby");
    rest("after it took them back");
}

#[test]
fn a_removed_or_torn_name_is_put_back() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let mine = inode(&dir);
    fs::remove_file(dir.requests()).unwrap();
    wait(
        "the request socket",
        || fs::metadata(dir.requests()).is_ok_and(|m| m.ino() == mine),
        || agent.log(),
    );
    fs::remove_file(agent_api::path::notices(&dir.run())).unwrap();
    wait("the notice socket", || agent_api::path::notices(&dir.run()).exists(), || agent.log());
    notice_names_belong_together(&dir, &agent, 1);
}

#[test]
fn at_the_end_the_public_names_stay_and_the_own_ones_go() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    // Two public ones, two own ones, and that of the admin socket.
    assert_eq!(names(&dir).len(), 5);
    let idle = dial(&dir.requests());
    thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    assert_eq!(agent.end().0, Some(0));
    assert!(start.elapsed() < Duration::from_secs(1), "an idle peer must not hold up the end");
    drop(idle);
    assert_eq!(names(&dir), ["waylay-notice.sock", "waylay.sock"]);
    let refused = exchange(&dir.requests(), &request(Operation::Ping, "a"), &[], Instant::now() + RETAKE);
    assert!(
        matches!(refused, Err(agent_api::ExchangeError::Connect(nix::errno::Errno::ECONNREFUSED))),
        "{refused:?}"
    );
}

#[test]
fn an_accepted_add_is_answered_before_the_end() {
    let dir = Dir::new();
    let mut agent = Agent::start(&dir);
    let pod = PodNetns::new();
    thread::scope(|scope| {
        let add = scope.spawn(|| {
            let fds: Vec<_> = pod.fds().into_iter().map(|fd| fd.as_fd()).collect();
            exchange(&dir.requests(), &request(Operation::Add, "late"), &fds, Instant::now() + LONG)
        });
        wait("open connection", || agent.metrics().contains("waylay_open_connections 1"), || agent.metrics());
        agent.signal(Signal::SIGTERM);
        agent.wait_log("signal=\"SIGTERM\"");
        dir.mesh_pod("late");
        assert_eq!(add.join().unwrap().unwrap().outcome, Outcome::Done);
        assert_eq!(agent.child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn names_of_agents_that_were_killed_are_swept_and_those_of_living_ones_are_not() {
    let dir = Dir::new();
    let names = || names(&dir).len();
    drop(Agent::start(&dir));
    let _living = Agent::start(&dir);
    // Two public names, and three of each agent.
    assert_eq!(names(), 8);
    let old = nix::sys::time::TimeSpec::new(1, 0);
    for entry in fs::read_dir(dir.run()).unwrap() {
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &entry.unwrap().path(),
            &old,
            &old,
            nix::sys::stat::UtimensatFlags::NoFollowSymlink,
        )
        .unwrap();
    }
    let newer = Agent::start(&dir);
    assert_eq!(names(), 8, "{}", newer.log());
    // The living one can still take the names back.
    drop(newer);
    let answers =
        || exchange(&dir.requests(), &request(Operation::Ping, "a"), &[], Instant::now() + RETAKE).is_ok();
    wait("an agent that answers", answers, String::new);
}

#[test]
fn an_agent_whose_sockets_were_removed_ends_with_an_error_and_the_next_one_serves() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    // Its own names alone are no loss as long as the public ones lead to it.
    for name in names(&dir).into_iter().filter(|name| !name.ends_with(".sock")) {
        fs::remove_file(dir.run().join(name)).unwrap();
    }
    thread::sleep(Duration::from_millis(600));
    notice_names_belong_together(&dir, &agent, 1);
    assert!(agent.http(8000, "/readyz").starts_with("HTTP/1.1 200"), "{}", agent.log());
    for name in names(&dir) {
        fs::remove_file(dir.run().join(name)).unwrap();
    }
    agent.wait_log("this agent's own sockets were removed from the run directory");
    assert_eq!(agent.failed().0, Some(1));
    let _next = Agent::start(&dir);
    exchange(&dir.requests(), &request(Operation::Ping, "a"), &[], Instant::now() + RETAKE).unwrap();
}

#[test]
fn an_agent_that_the_kernel_refuses_does_not_take_the_role() {
    let dir = Dir::new();
    let _older = Agent::start(&dir);
    let before = inode(&dir);
    // All capabilities, but in a user namespace that its netns does not belong to: nf_tables says EPERM.
    let newer = Agent::spawn(&dir, &["unshare", "--user", "--map-root-user"], &[]);
    newer.wait_log("cannot serve the plugin; trying again");
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(inode(&dir), before, "{}", newer.log());
    assert_eq!(newer.log().matches("cannot serve the plugin").count(), 1, "{}", newer.log());
    assert!(newer.log().contains("read the rules in the agent's own network namespace"), "{}", newer.log());
}

#[test]
fn readiness_ends_when_neither_this_agent_nor_another_can_serve() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let ready = |expected| {
        let status = || agent.http(8000, "/readyz");
        wait(expected, || status().starts_with(expected), || format!("{}{}", status(), agent.log()));
    };
    ready("HTTP/1.1 200");
    let newer = Agent::start(&dir);
    agent.wait_log("standing by");
    thread::sleep(Duration::from_millis(500));
    ready("HTTP/1.1 200");
    drop(newer);
    agent.wait_log("before=Standby");
    // A directory in the place of the name can neither be asked nor replaced. The agent may put its own back in between.
    let place = || fs::remove_file(dir.requests()).and_then(|()| fs::create_dir(dir.requests())).is_ok();
    wait("a directory in the place of the name", place, || agent.log());
    ready("HTTP/1.1 503");
    fs::remove_dir(dir.requests()).unwrap();
    ready("HTTP/1.1 200");
}
