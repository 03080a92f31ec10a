// SPDX-License-Identifier: Apache-2.0
//! Connections that are open while something happens.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use harness::lab::{Lab, Servers};
use harness::packet::{Packet, Verdict};
use harness::probe::{Connection, Outcome, PATIENCE, judge};
use harness::sequence::beyond_window;
use kernel::Applied;
use nix::errno::Errno;
use ruleset::Form;

use crate::{FAMILIES, REMOTE, inbound, outbound, program, settings};

#[test]
fn a_segment_beyond_the_window_resets_a_redirected_connection_unless_invalid_ones_are_dropped() {
    let cases: Vec<_> = Form::ALL
        .into_iter()
        .flat_map(|form| [("true", Verdict::Drop), ("false", Verdict::Pass)].map(|case| (form, case)))
        .collect();
    // Silence takes its time, so they wait for it together.
    std::thread::scope(|scope| {
        for (form, (drop_invalid, expected)) in cases {
            scope.spawn(move || {
                let settings = settings(&format!("drop_invalid={drop_invalid}"));
                let lab = Lab::new(Servers::of(&settings));
                program(&lab, &redirect::compile(&settings.config()).in_form(form));
                for family in FAMILIES {
                    let seen = beyond_window(&lab, &inbound(family));
                    assert_eq!(seen, Ok(expected), "{form:?} {drop_invalid} {family:?}");
                }
            });
        }
    });
}

/// A connection on which bytes go to and fro, on a thread of its own.
struct Flow {
    name: String,
    echoes: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), Errno>>>,
}

impl Flow {
    fn start(name: String, mut connection: Connection) -> Self {
        let (echoes, stop) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&echoes), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                connection.talk()?;
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        Self { name, echoes, stop, thread: Some(thread) }
    }

    /// Fail unless echoes still come, of bytes that were sent from now on.
    fn goes_on(&mut self, when: &str) {
        let (before, give_up) = (self.echoes.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        // One may have been under way.
        while self.echoes.load(Ordering::Relaxed) < before + 2 {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || Instant::now() > give_up {
                let result = self.thread.take().filter(JoinHandle::is_finished).map(JoinHandle::join);
                panic!("{}, {when}: stands still: {result:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Open `packet`'s connection and have it go on; it must get `verdict`.
fn open(lab: &Lab, packet: &Packet, verdict: Verdict, name: String) -> Flow {
    let port = lab.fresh_port();
    let connection =
        Connection::open(lab, packet, port, PATIENCE).unwrap_or_else(|errno| panic!("{name}: {errno}"));
    let client = SocketAddr::new(packet.from.expect("flows name their source"), port);
    let outcome = Outcome::Answered(connection.report.clone(), client);
    assert_eq!(judge(packet, &outcome), Ok(verdict), "{name}");
    Flow::start(name, connection)
}

#[test]
fn live_connections_survive_every_replacement_and_new_ones_get_the_new_settings() {
    const EXCLUDED: &str = "in_exclude=8080,15020,15021,15090; out_port_exclude=80,15020";
    let (redirected, captured) = (Verdict::Redirect(15006), Verdict::Redirect(15001));
    // Settings, and what new connections of the peer and of the application get with them.
    let stages = [
        (String::new(), redirected, captured),
        (EXCLUDED.to_owned(), Verdict::Pass, Verdict::Pass),
        ("mode=TPROXY; dns=all; drop_invalid=true".to_owned(), Verdict::Tproxy(15006), captured),
        (format!("mode=TPROXY; {EXCLUDED}"), Verdict::Pass, Verdict::Pass),
        ("exclude_ifaces=net1".to_owned(), redirected, captured),
    ];
    for form in Form::ALL {
        let lab = Lab::new(Servers::of(&settings("")));
        let mut flows: Vec<Flow> = Vec::new();
        for (stage, (changes, inward, outward)) in stages.iter().enumerate() {
            let plan = redirect::compile(&settings(changes).config()).in_form(form);
            let applied = program(&lab, &plan);
            assert_eq!(applied, if stage == 0 { Applied::Created } else { Applied::Replaced });
            flows.iter_mut().for_each(|flow| flow.goes_on(&format!("with {changes:?}")));
            for (family, remote) in FAMILIES.into_iter().zip(REMOTE) {
                let name = |what| format!("{form:?}: {what} {remote} of {changes:?}");
                flows.push(open(&lab, &inbound(family), *inward, name("from the peer to the pod, beside")));
                flows.push(open(&lab, &outbound(family, remote), *outward, name("from the pod to")));
            }
        }
        assert_eq!(flows.len(), 4 * stages.len());
        flows.iter_mut().for_each(|flow| flow.goes_on("at the end"));
    }
}
