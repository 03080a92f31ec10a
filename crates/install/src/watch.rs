// SPDX-License-Identifier: Apache-2.0
//! Keeps everything in place. Owns a thread that follows inotify events of the directories and looks again when one
//! concerns us; without events it sleeps. Decides nothing about files.

use std::collections::{HashMap, VecDeque};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use cni::conflist::{TYPE, is_candidate};
use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{InstallError, Kind};
use crate::fight::{Fight, Fights};
use crate::installer::{FRESH, Installer, Report};

/// A look without an event: what inotify does not tell, as on some network file systems, or a path that leads somewhere
/// else since.
const IDLE: Duration = Duration::from_secs(60);
/// The same while the kernel grants no watch. Pods start unprotected until it is noticed, so it is shorter.
const BLIND: Duration = Duration::from_secs(2);
/// Pause after a failure; it doubles.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// One change often causes several events.
const SETTLE: Duration = Duration::from_millis(2);

/// How it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// What the last successful look found; `None` before the first one.
    pub report: Option<Report>,
    /// What is not in place, and why. Empty: a pod that starts now is redirected.
    pub blockers: Vec<InstallError>,
    /// Somebody takes our entry out again and again.
    pub fight: Option<Fight>,
    /// How often something that had been in place had to be put there again.
    pub restored: u64,
    /// The kernel grants no watch, and the directories are looked at every two seconds.
    pub polling: bool,
}

/// The thread; it ends when this is dropped.
pub struct Watch {
    shared: Arc<Shared>,
    wake: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    health: Mutex<Health>,
    asked: AtomicBool,
    ending: AtomicBool,
}

/// The thread's side.
struct Looker<F> {
    installer: Installer,
    shared: Arc<Shared>,
    wake: PipeReader,
    tell: F,
    inotify: Option<Inotify>,
    watches: HashMap<WatchDescriptor, Place>,
    fights: Fights,
    /// Everything was in place at the last look.
    in_place: bool,
    failures: u32,
}

/// Which names matter in a directory.
#[derive(Clone, Copy)]
enum Place {
    Configuration,
    Plugin,
}

impl Health {
    /// Whether a pod that starts now is redirected.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.report.is_some() && self.blockers.is_empty()
    }
}

impl Watch {
    /// Put everything in place and keep it there. `tell` is called on the thread, after each change of the health.
    ///
    /// # Errors
    /// Those of starting a thread and of a pipe.
    pub fn start(installer: Installer, tell: impl FnMut(&Health) + Send + 'static) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let shared = Arc::new(Shared {
            health: Mutex::default(),
            asked: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        });
        let looker = Looker {
            installer,
            shared: Arc::clone(&shared),
            wake: reader,
            tell,
            inotify: None,
            watches: HashMap::new(),
            fights: Fights::default(),
            in_place: false,
            failures: 0,
        };
        let thread = thread::Builder::new().name("install".to_owned()).spawn(move || looker.run())?;
        Ok(Self { shared, wake: Some(writer), thread: Some(thread) })
    }

    /// Look now: the role was taken or lost.
    pub fn look(&self) {
        if !self.shared.asked.swap(true, Ordering::AcqRel) {
            let _ = self.wake.as_ref().map(|mut wake| wake.write_all(&[0]));
        }
    }

    /// How it stands.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.lock().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: FnMut(&Health)> Looker<F> {
    fn run(mut self) {
        while !self.shared.ending.load(Ordering::Acquire) {
            // Before the look: what changes after it causes an event.
            let watching = self.arm();
            let due = self.look();
            self.publish(watching);
            let idle = Instant::now() + if watching { IDLE } else { BLIND };
            self.wait(due.map_or(idle, |due| due.min(idle)));
        }
    }

    /// Watch every directory. A directory that is watched already stays so; one that took its place is added.
    fn arm(&mut self) -> bool {
        let settings = self.installer.settings();
        let conf = [(settings.conf_dir.clone(), Place::Configuration)];
        let bins = settings.bin_dirs.iter().map(|dir| (dir.clone(), Place::Plugin));
        let places: Vec<(PathBuf, Place)> = conf.into_iter().chain(bins).collect();
        if self.inotify.is_none() {
            self.watches.clear();
            self.inotify = Inotify::init().ok();
        }
        let Some(inotify) = &self.inotify else { return false };
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        places.iter().fold(true, |all, (path, place)| {
            let watch = inotify.watches().add(path, mask);
            let added = watch.map(|watch| self.watches.insert(watch, *place)).is_ok();
            all && added
        })
    }

    /// One look, and when the next one is due without an event.
    fn look(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if !self.installer.may_write() {
            self.in_place = false;
            self.shared.lock().blockers = vec![InstallError::not_holder(&self.installer.settings().conf_dir)];
            return None;
        }
        if self.in_place && self.installer.is_in_place() == Ok(false) {
            let due = self.fights.lost(now);
            if due > now {
                let error = InstallError::held_back(&self.installer.settings().conf_dir);
                self.shared.lock().blockers = vec![error];
                return Some(due);
            }
        }
        match self.installer.ensure() {
            Ok(report) => {
                self.succeeded(report);
                let now = Instant::now();
                self.fights.state(now).and(self.fights.ends())
            }
            Err(error) => Some(self.failed(error)),
        }
    }

    fn succeeded(&mut self, report: Report) {
        let conf_dir = &self.installer.settings().conf_dir;
        if self.in_place && report.changed.iter().any(|path| path.starts_with(conf_dir)) {
            self.fights.restored(Instant::now());
        }
        let again = self.in_place && !report.changed.is_empty();
        (self.in_place, self.failures) = (true, 0);
        let mut health = self.shared.lock();
        health.restored += u64::from(again);
        health.blockers.clear();
        // A look that changed nothing is nothing new.
        let old = health.report.replace(report);
        if let (Some(old), Some(new)) = (old, &mut health.report)
            && new.changed.is_empty()
        {
            new.changed = old.changed;
        }
    }

    fn failed(&mut self, error: InstallError) -> Instant {
        let pause = match error.kind {
            Kind::NoPrimary | Kind::NotHolder => IDLE,
            Kind::BeingWritten => FRESH,
            _ => (RETRY * 2u32.pow(self.failures.min(8))).min(RETRY_MAX),
        };
        self.failures = self.failures.saturating_add(1);
        self.shared.lock().blockers = vec![error];
        Instant::now() + pause
    }

    fn publish(&mut self, watching: bool) {
        let fight = self.fights.state(Instant::now());
        let mut health = self.shared.lock();
        health.fight = fight;
        health.polling = !watching;
        let now = health.clone();
        drop(health);
        (self.tell)(&now);
    }

    /// Until something concerns us, or `until`.
    fn wait(&mut self, until: Instant) {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.ready(left) {
                break;
            }
        }
    }

    /// Wait for the next events, at most `left`. Tells whether to look.
    fn ready(&mut self, left: Duration) -> bool {
        // Rounded up, so that it does not wake too early again and again.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.inotify.as_ref().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
        if poll(&mut fds, timeout).is_err() {
            return false;
        }
        let any = |at: usize| fds.get(at).and_then(PollFd::any).unwrap_or(false);
        let (woken, events) = (any(0), any(1));
        if woken {
            // Before the byte is read: a wish that comes now writes another one.
            self.shared.asked.store(false, Ordering::Release);
            let _ = self.wake.read(&mut [0]);
        }
        woken | (events && self.concerned())
    }

    fn concerned(&mut self) -> bool {
        let mut concerned = self.drain();
        if concerned {
            thread::sleep(SETTLE);
            concerned |= self.drain();
        }
        concerned
    }

    fn drain(&mut self) -> bool {
        let Some(inotify) = &mut self.inotify else { return false };
        let mut concerned = false;
        let mut lost = false;
        let mut buffer = [0; 4096];
        let mut names = VecDeque::new();
        while let Ok(events) = inotify.read_events(&mut buffer) {
            for event in events {
                match event.name {
                    Some(name) => names.push_back((event.wd, name.to_owned())),
                    // A directory is gone, or events are.
                    None => {
                        let gone = EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF;
                        lost |= event.mask.intersects(gone);
                        concerned |= lost || event.mask.contains(EventMask::Q_OVERFLOW);
                    }
                }
            }
        }
        for (watch, name) in names {
            let name = name.to_str().unwrap_or_default();
            concerned |= match self.watches.get(&watch) {
                Some(Place::Configuration) => is_candidate(name),
                Some(Place::Plugin) => name == TYPE,
                None => true,
            };
        }
        if lost {
            // All watches anew.
            self.inotify = None;
        }
        concerned
    }
}
