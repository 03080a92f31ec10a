// SPDX-License-Identifier: Apache-2.0
//! What can be seen of a running agent: its ports from the first moment on, the admin socket, `status` and `pods`; and
//! how it refuses settings.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use agent_api::{Notice, NoticeKind, Operation, Outcome, PROTOCOL};
use common::{Agent, Dir, LONG, PodNetns, ask, request, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

const NET_ADMIN: &str = "--bounding-set=-all,+net_admin";

/// `install-cni` with these arguments, which ends by itself.
fn command(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_install-cni"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `install-cni <question>` prints as JSON.
fn question(dir: &Dir, question: &str) -> Value {
    let flag = format!("--cni-agent-run-dir={}", dir.run().display());
    let output = command(&[question, "--output=json", &flag], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn admin_sockets(dir: &Dir) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir.run()).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_str().unwrap().contains("waylay-admin.sock.")).collect()
}

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer of `path`; nothing while nobody listens.
fn get(path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", 8000)).ok()?;
    stream.set_read_timeout(Some(LONG)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn the_port_answers_from_the_first_moment_and_names_what_is_missing_until_nothing_is() {
    let dir = Dir::new();
    let pods = dir.0.join("pods");
    fs::remove_dir(&pods).unwrap();
    let (run, netns) = (dir.run(), PodNetns::new());
    let (first, body, ready) = netns.inside(move || {
        let start = Instant::now();
        let _agent = Process(
            Command::new(env!("CARGO_BIN_EXE_install-cni"))
                .arg(format!("--cni-agent-run-dir={}", run.display()))
                .arg(format!("--pod-manifest-dir={}", pods.display()))
                .arg("--cni-enable-install=false")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut body = None;
        wait(
            "answer",
            || {
                body = get("/readyz?verbose").filter(|text| !text.is_empty());
                body.is_some()
            },
            String::new,
        );
        let first = start.elapsed();
        fs::create_dir(&pods).unwrap();
        wait("200", || get("/readyz").is_some_and(|text| text.starts_with("HTTP/1.1 200")), String::new);
        (first, body.unwrap(), get("/readyz?verbose").unwrap())
    });
    // The figure is in the bench; a machine with other work has more time here.
    assert!(first < Duration::from_secs(2), "{first:?}");
    assert!(body.starts_with("HTTP/1.1 503"), "{body}");
    let lines: Vec<&str> = body.split("\r\n\r\n").nth(1).unwrap().lines().collect();
    assert_eq!(
        lines,
        [
            "[-]pods failed: not all pods were read yet",
            "[-]socket failed: not tried to serve the plugin yet",
            "readyz check failed"
        ]
    );
    assert!(ready.ends_with("\r\n\r\n[+]pods ok\n[+]socket ok\nreadyz check passed\n"), "{ready}");
}

#[test]
fn status_and_pods_say_what_the_agent_does_and_what_became_of_each_sandbox() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    dir.pod("bad", "sidecar.istio.io/status: '', traffic.sidecar.istio.io/excludeInboundPorts: '80,'");
    let ports_off = ["--monitoring-port=0", "--health-port=0", "--ipv6-policy=drop"];
    let agent = Agent::spawn(&dir, &["env", "REPAIR_ENABLED=true", "setpriv", NET_ADMIN], &ports_off);
    agent.wait_log("took the socket");
    let pod = PodNetns::new();
    let notice = |name: &str| {
        let sandbox = request(Operation::Add, name).sandbox;
        let notice = Notice { protocol: PROTOCOL, kind: NoticeKind::Del, sandbox, reason: String::new() };
        let path = agent_api::path::notices(&dir.run());
        std::os::unix::net::UnixDatagram::unbound().unwrap().send_to(&notice.encode(), path).unwrap();
    };
    let reasons = || -> Vec<String> {
        let of = |pod: &Value, verb: &str| pod[verb]["reason"].as_str().unwrap_or("-").to_owned();
        let line = |pod: &Value| {
            format!("{} {} {}", pod["pod"].as_str().unwrap(), of(pod, "add"), of(pod, "check"))
                + if pod["del"].is_object() { " deleted" } else { "" }
        };
        let mut lines: Vec<_> = question(&dir, "pods")["pods"].as_array().unwrap().iter().map(line).collect();
        // Remembered after the answer, by another thread.
        lines.sort();
        lines
    };
    // What is asked is remembered after its answer, by another thread: the next question is not to overtake it.
    let steps: [(Operation, &str, &[&str]); 3] = [
        (Operation::Add, "a", &["a programmed -"]),
        (Operation::Check, "a", &["a programmed rules_as_written"]),
        (Operation::Add, "bad", &["a programmed rules_as_written", "bad invalid_annotation -"]),
    ];
    for (operation, name, expected) in steps {
        ask(&dir, &request(operation, name), &pod.fds()).unwrap();
        wait("memory of it", || reasons() == expected, || format!("{:?}", reasons()));
    }
    notice("a");
    let expected = ["a programmed rules_as_written deleted", "bad invalid_annotation -"];
    wait("both pods", || reasons() == expected, || format!("{:?}", reasons()));
    let flag = format!("--cni-agent-run-dir={}", dir.run().display());
    let printed = text(&command(&["pods", &flag], &[]).stdout);
    assert!(printed.contains("n/bad") && printed.contains("excludeInboundPorts"), "{printed}");

    let status = &question(&dir, "status")["agents"][0];
    assert_eq!((&status["holds_socket"], &status["ready"]), (&true.into(), &true.into()), "{status}");
    assert_eq!((&status["rules_form"], &status["pid"]), (&"inet".into(), &agent.child.id().into()));
    assert_eq!(status["counters"]["waylay_adds_total{result=\"done\",reason=\"programmed\"}"], 1.0);
    assert_eq!(status["config"]["settings"]["policy"]["ipv6"], "drop");
    assert_eq!(status["config"]["given"]["ipv6-policy"], "--ipv6-policy");
    assert_eq!(status["config"]["without_effect"]["repair-enabled"]["value"], "true");
    let printed = text(&command(&["status"], &[("CNI_AGENT_RUN_DIR", dir.run().to_str().unwrap())]).stdout);
    for line in ["role         serves the plugin", "ready        yes", "rules        inet"] {
        assert!(printed.lines().any(|l| l == line), "{line}\n{printed}");
    }
    assert!(agent.log().contains("repair-enabled"), "{}", agent.log());
}

#[test]
fn both_of_two_agents_are_shown_with_their_roles_and_none_is_an_error() {
    let dir = Dir::new();
    let older = Agent::start(&dir);
    let newer = Agent::start(&dir);
    older.wait_log("standing by");
    let roles = |agents: Value| -> Vec<(Value, bool)> {
        let agents = agents["agents"].as_array().unwrap().clone();
        agents.iter().map(|a| (a["pid"].clone(), a["holds_socket"] == true)).collect()
    };
    let expected = [(newer.child.id().into(), true), (older.child.id().into(), false)];
    wait("both roles", || roles(question(&dir, "status")) == expected, || older.log());
    // One that ends takes its name along; of one that is killed it stays, and answers nobody.
    newer.signal(Signal::SIGKILL);
    assert_eq!(older.end().0, Some(0));
    assert_eq!(admin_sockets(&dir).len(), 1);
    let run = dir.run();
    for (path, expected) in
        [(&run, "no admin socket of a running one in"), (&run.join("no"), "read its run directory")]
    {
        for question in ["status", "pods"] {
            let output = command(&[question, "--cni-agent-run-dir", path.to_str().unwrap()], &[]);
            let error = text(&output.stderr);
            assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]));
            assert!(
                error.starts_with("install-cni: no agent answers on this node") && error.contains(expected),
                "{error}"
            );
        }
    }
}

#[test]
fn what_a_killed_agent_left_goes_with_the_next_start_and_a_young_name_stays() {
    let dir = Dir::new();
    for (name, age) in [("waylay-admin.sock.1-old", 3600), ("waylay-admin.sock.1-young", 0)] {
        let path = dir.run().join(name);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let time = nix::sys::time::TimeSpec::new(-age, 0);
        let then = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).unwrap() + time;
        let cwd = nix::fcntl::AT_FDCWD;
        nix::sys::stat::utimensat(cwd, &path, &then, &then, nix::sys::stat::UtimensatFlags::NoFollowSymlink)
            .unwrap();
    }
    let _agent = Agent::start(&dir);
    let mut names: Vec<_> =
        admin_sockets(&dir).iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&"waylay-admin.sock.1-young".to_owned()), "{names:?}");
}

#[test]
fn only_root_is_answered_on_the_admin_socket_even_where_others_could_connect() {
    let dir = Dir::new();
    let agent = Agent::start(&dir);
    let path = admin_sockets(&dir).pop().unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o600, 0));
    let of = path.clone();
    let as_nobody = move || {
        // This thread alone: the raw call, unlike the one of libc, is for one thread.
        let uid = 65534;
        #[allow(unsafe_code, reason = "no safe wrapper changes one thread only")]
        // SAFETY: a system call on plain numbers, in a thread that ends with this closure.
        let changed = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(changed, 0);
        let mut stream = UnixStream::connect(&of)?;
        stream.set_read_timeout(Some(LONG))?;
        let _ = stream.write_all(b"GET /status HTTP/1.0\r\n\r\n");
        let mut text = String::new();
        match stream.read_to_string(&mut text) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(String::new()),
            read => read.map(|_| text),
        }
    };
    let denied = std::thread::spawn(as_nobody.clone()).join().unwrap();
    assert_eq!(denied.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(std::thread::spawn(as_nobody).join().unwrap().unwrap(), "");
    let refused = "waylay_refused_peers_total{reason=\"peer_uid\"} 1";
    let metrics = agent.metrics();
    assert!(metrics.lines().any(|line| line == refused), "{metrics}");
    assert_eq!(question(&dir, "status")["agents"].as_array().unwrap().len(), 1);
}

#[test]
fn ambient_mode_keeps_the_agent_unready_and_says_so_while_sidecars_are_redirected() {
    let dir = Dir::new();
    dir.mesh_pod("a");
    let agent = Agent::spawn(&dir, &["env", "AMBIENT_ENABLED=true", "setpriv", NET_ADMIN], &[]);
    agent.wait_log("took the socket");
    let answer = ask(&dir, &request(Operation::Add, "a"), &PodNetns::new().fds()).unwrap();
    assert_eq!((answer.outcome, answer.reason.as_str()), (Outcome::Done, "programmed"));
    let ready = || agent.http(8000, "/readyz");
    wait(
        "everything else",
        || ready().contains("[+]pods ok\n[+]socket ok\n[-]ambient_not_supported failed: "),
        ready,
    );
    assert!(ready().starts_with("HTTP/1.1 503"), "{}", ready());
    assert!(agent.log().contains("ambient_not_supported"), "{}", agent.log());
    let metrics = agent.metrics();
    for line in
        ["waylay_blocked{blocker=\"ambient_not_supported\"} 1", "waylay_blocked{blocker=\"socket\"} 0"]
    {
        assert!(metrics.lines().any(|l| l == line), "{line}\n{metrics}");
    }
    let config = agent.http(8000, "/config");
    let config: Value = serde_json::from_str(config.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(config["settings"]["ambient_enabled"], true);
    assert_eq!(config["given"]["ambient-enabled"], "AMBIENT_ENABLED");
}

#[test]
fn settings_that_cannot_be_used_are_said_all_at_once_with_exit_status_64() {
    let env = [("MONITORING_PORT", "many"), ("CHAINED_CNI_PLUGIN", "yes")];
    let output = command(&["--ipv6-policy=no"], &env);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(64), &b""[..]));
    let error = text(&output.stderr);
    assert_eq!(error.lines().count(), 4, "{error}");
    assert!(error.lines().all(|line| line.starts_with("install-cni: ")), "{error}");
    let output = command(&["uninstall", "--mounted-cni-net-dir=relative"], &[]);
    assert_eq!(output.status.code(), Some(64), "{}", text(&output.stderr));
}

#[test]
fn uninstall_does_not_pretend() {
    let output = command(&["uninstall", "--mounted-cni-net-dir=/nonexistent"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("read /nonexistent: no such file"), "{}", text(&output.stderr));
    let version = command(&["version"], &[]);
    assert_eq!(text(&version.stdout), format!("install-cni {}\n", env!("CARGO_PKG_VERSION")));
}
