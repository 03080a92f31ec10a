// SPDX-License-Identifier: Apache-2.0
//! Lines on stdout, from a thread of their own: a reader that stops holds up no pod, and lines about pods that come close
//! together are one write, as each write makes the runtime's shim and the runtime copy it. Knows nothing of what is in a line.

use std::io::{self, Write};
use std::mem::take;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The target of what is said for each pod.
pub(crate) const POD: &str = "pod";
/// How long a line with that target waits for others.
const TOGETHER: Duration = Duration::from_secs(1);
/// Bytes that wait for a reader. Lines beyond it are lost, and counted.
const LIMIT: usize = 256 << 10;
/// How long the writer of a warning, and the end of the process, wait for it to be read.
const PATIENCE: Duration = Duration::from_secs(1);

/// The process's only stdout.
static STDOUT: Lines = Lines::new();

/// Lines on their way.
struct Lines {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Who writes; nobody yet: each line is written where it is made.
    writer: Option<ThreadId>,
    waiting: Vec<u8>,
    lost: u64,
    /// Something that waits is not to wait for more.
    urgent: bool,
    /// What was taken out of `waiting` is not written yet.
    writing: bool,
    /// Somebody waited in vain: nobody reads.
    stuck: bool,
}

/// From here on by a thread of its own. Not before capabilities were given up, which a thread would keep.
///
/// # Errors
/// That of making a thread.
pub(crate) fn start() -> io::Result<()> {
    thread::Builder::new().name("log".to_owned()).spawn(|| STDOUT.write_for_ever(&mut io::stdout())).map(drop)
}

/// Wait until all lines are written, for a second at most.
pub(crate) fn finish() {
    let mut state = STDOUT.lock();
    state.urgent = true;
    STDOUT.changed.notify_all();
    STDOUT.wait_written(state);
}

impl Lines {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                writer: None,
                waiting: Vec::new(),
                lost: 0,
                urgent: false,
                writing: false,
                stuck: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take a line.
    fn add(&self, line: &[u8], urgency: Urgency) -> io::Result<()> {
        let mut state = self.lock();
        let Some(writer) = state.writer else {
            drop(state);
            return io::stdout().write_all(line);
        };
        let first = state.waiting.is_empty();
        if state.waiting.len() + line.len() > LIMIT {
            state.lost += 1;
        } else {
            state.waiting.extend_from_slice(line);
        }
        let now = urgency > Urgency::WithOthers || state.waiting.len() > LIMIT / 2;
        state.urgent |= now;
        // Others would wake the writer only to have it sleep again.
        if first || now {
            self.changed.notify_all();
        }
        if urgency == Urgency::Awaited && thread::current().id() != writer {
            self.wait_written(state);
        }
        Ok(())
    }

    /// Once in vain is enough: a reader that stopped must not delay everything that is worth a warning.
    fn wait_written(&self, state: MutexGuard<'_, State>) {
        if state.writer.is_none() || state.stuck {
            return;
        }
        let left = |state: &mut State| state.writing || !state.waiting.is_empty();
        let (mut state, waited) =
            self.changed.wait_timeout_while(state, PATIENCE, left).unwrap_or_else(PoisonError::into_inner);
        state.stuck = waited.timed_out();
    }

    /// Write what is added.
    fn write_for_ever(&self, out: &mut dyn Write) {
        self.lock().writer = Some(thread::current().id());
        loop {
            let lost = self.write_once(out);
            if lost > 0 {
                tracing::warn!(lost, "nobody read the log: lines are lost");
            }
        }
    }

    /// Wait for lines and write them; how many were lost before.
    fn write_once(&self, out: &mut dyn Write) -> u64 {
        let state = self.lock();
        let some = self
            .changed
            .wait_while(state, |state| state.waiting.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .changed
            .wait_timeout_while(some, TOGETHER, |state| !state.urgent)
            .unwrap_or_else(PoisonError::into_inner);
        let (lines, lost) = (take(&mut state.waiting), take(&mut state.lost));
        state.urgent = false;
        state.writing = true;
        drop(state);
        // There is nobody to tell of a failure.
        let _ = out.write_all(&lines).and_then(|()| out.flush());
        let mut state = self.lock();
        state.writing = false;
        state.stuck = false;
        self.changed.notify_all();
        lost
    }
}

/// Where `tracing` puts lines: each is one write.
pub(crate) struct ToStdout;

/// One line.
pub(crate) struct Line(Urgency);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Urgency {
    WithOthers,
    Now,
    /// Written when whoever says it goes on: the process may be about to end.
    Awaited,
}

impl<'a> MakeWriter<'a> for ToStdout {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Urgency::Now)
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> Line {
        Line(match of.target() {
            _ if *of.level() <= Level::WARN => Urgency::Awaited,
            POD => Urgency::WithOthers,
            _ => Urgency::Now,
        })
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        STDOUT.add(line, self.0).map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Instant;

    use super::*;

    /// A reader that takes one write at a time, when it is asked to.
    struct Pipe(SyncSender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn started() -> (Arc<Lines>, Receiver<Vec<u8>>) {
        let lines = Arc::new(Lines::new());
        let (into, out) = sync_channel(0);
        let writes = Arc::clone(&lines);
        thread::spawn(move || {
            writes.lock().writer = Some(thread::current().id());
            let mut lost = 0;
            loop {
                lost += writes.write_once(&mut Pipe(into.clone()));
                if lost > 0 {
                    let _ = into.send(format!("{lost} lost").into_bytes());
                }
            }
        });
        while lines.lock().writer.is_none() {
            thread::yield_now();
        }
        (lines, out)
    }

    #[test]
    fn lines_wait_for_others_and_are_one_write() {
        let (lines, out) = started();
        for line in ["a\n", "b\n", "c\n"] {
            lines.add(line.as_bytes(), Urgency::WithOthers).unwrap();
        }
        assert_eq!(out.recv_timeout(5 * TOGETHER).unwrap(), b"a\nb\nc\n");
    }

    #[test]
    fn a_warning_takes_along_what_waits_and_returns_when_it_is_written() {
        let (lines, out) = started();
        lines.add(b"a\n", Urgency::WithOthers).unwrap();
        let reader = thread::spawn(move || out.recv_timeout(TOGETHER / 2).unwrap());
        let began = Instant::now();
        lines.add(b"b\n", Urgency::Awaited).unwrap();
        assert!(began.elapsed() < TOGETHER, "{:?}", began.elapsed());
        assert_eq!(reader.join().unwrap(), b"a\nb\n");
    }

    #[test]
    fn a_reader_that_stopped_holds_up_nobody_for_long_and_what_is_lost_is_counted() {
        let (lines, out) = started();
        let began = Instant::now();
        lines.add(b"first\n", Urgency::Awaited).unwrap();
        for _ in 0..LIMIT / 64 + 10 {
            lines.add(&[b'x'; 64], Urgency::WithOthers).unwrap();
            lines.add(b"", Urgency::Awaited).unwrap();
        }
        assert!(began.elapsed() < 3 * PATIENCE, "{:?}", began.elapsed());
        assert!(lines.lock().waiting.len() <= LIMIT);
        assert_eq!(out.recv().unwrap(), b"first\n");
        assert_eq!(out.recv().unwrap().len(), LIMIT);
        assert_eq!(out.recv().unwrap(), b"10 lost");
    }
}
