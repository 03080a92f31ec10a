// SPDX-License-Identifier: Apache-2.0
//! Pods from a directory of manifests, watched.
//!
//! Owns a thread that reads files and follows inotify events. A file that cannot be used is logged by name and left
//! out, and its pods are unknown until it is mended: an older version of it could be of another pod. Never writes.
//!
//! # When a file is read
//! Half a manifest may parse, and then decide wrongly. So a file is read when an event says that it is whole (closed by
//! its writer, or renamed into place), and a file that is merely found, at start or after events were lost, only when
//! nobody has written to it for [`SETTLE`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant as Clock, SystemTime};

use inotify::{EventMask, Events, Inotify, WatchMask};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prometheus_client::metrics::gauge::Gauge;
use redirect::Pod;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::index::Index;
use super::manifest::{Form, ManifestError, parse};
use super::{Absent, Found, Key, Known, PodSource};

/// Largest file in bytes; the API server itself takes no object over 1.5 MiB.
const MAX_LEN: u64 = 4 << 20;
/// Pause while the directory is missing.
const RETRY: Duration = Duration::from_millis(500);
/// A file that was written to this recently may be half of what it is to be.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the first reading waits for such files: each gets one second look. What is still being written then is
/// unknown until its writer closes it.
const START: Duration = Duration::from_millis(1200);

/// A watched directory.
pub(crate) struct Directory {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
}

struct Shared {
    path: PathBuf,
    index: Mutex<Index>,
    changed: watch::Sender<u64>,
    bad: Gauge,
}

/// Why a file is not in the index.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a regular file")]
    NotFile,
    #[error("longer than {MAX_LEN} bytes")]
    TooLong,
    #[error("{0}")]
    Manifest(#[from] ManifestError),
}

/// The thread's side.
struct Watcher {
    shared: Arc<Shared>,
    /// Files that cannot be used, with the reason last logged.
    bad: BTreeMap<String, String>,
    /// Files that were found too soon after they were written to.
    fresh: BTreeMap<String, Fresh>,
}

/// When to look at a file again, and when it had last been written to.
struct Fresh {
    due: Clock,
    modified: SystemTime,
}

/// What the events of one buffer ask for.
#[derive(Default)]
struct Asked {
    /// By name, the last event: whether the file is there and whole.
    files: BTreeMap<String, bool>,
    scan: bool,
    gone: bool,
}

impl Directory {
    /// Start to watch `path`; `synced` is called when every file in it was read once, or was being written
    /// to for as long as [`START`]. The directory may come later.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(crate) fn watch(
        path: PathBuf,
        bad: Gauge,
        synced: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (changed, changes) = watch::channel(0);
        let shared = Arc::new(Shared { path, index: Mutex::default(), changed, bad });
        let mut watcher =
            Watcher { shared: Arc::clone(&shared), bad: BTreeMap::new(), fresh: BTreeMap::new() };
        thread::Builder::new().name("pods".to_owned()).spawn(move || watcher.run(synced))?;
        Ok(Self { shared, changes })
    }

    fn place(&self) -> String {
        let files = self.shared.lock().files();
        format!("{} ({files} usable files, {} unusable)", self.shared.path.display(), self.shared.bad.get())
    }

    fn look(&self, key: Key<'_>) -> Result<Arc<Pod>, Option<String>> {
        let pod = self.shared.lock().find(key.namespace, key.name).ok_or(None)?;
        // A manifest as people write it has no uid, and an old runtime sends none: then the name decides.
        match (
            key.uid.filter(|uid| !uid.is_empty()),
            pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty()),
        ) {
            (Some(wanted), Some(found)) if wanted != found => Err(Some(found.to_owned())),
            _ => Ok(pod),
        }
    }
}

impl PodSource for Directory {
    fn find<'a>(&'a self, key: Key<'a>, deadline: Instant) -> Found<'a> {
        Box::pin(async move {
            // Subscribed before the first look: a change in between is seen.
            let mut changes = self.changes.clone();
            loop {
                changes.mark_unchanged();
                let other = match self.look(key) {
                    Ok(pod) => return Ok(Known::Pod(pod)),
                    Err(other) => other,
                };
                if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                    let place = self.place();
                    return Err(match other {
                        Some(uid) => Absent::OtherUid { place, uid },
                        None => Absent::Unknown { place },
                    });
                }
            }
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }
}

impl Watcher {
    fn run(&mut self, synced: impl FnOnce()) {
        let mut synced = Some(synced);
        let mut told = false;
        loop {
            // The watch before the scan: what changes in between is read twice, never missed.
            match self.start() {
                Ok(inotify) => {
                    told = false;
                    self.follow(inotify, &mut synced);
                    tracing::warn!(dir = %self.shared.path.display(), "the pod manifest directory went away");
                    self.scan().unwrap_or_else(|_| self.clear());
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(dir = %self.shared.path.display(), %error, "watch the pod manifest directory");
                }
                Err(_) => {}
            }
            thread::sleep(RETRY);
        }
    }

    fn start(&mut self) -> io::Result<Inotify> {
        let inotify = Inotify::init()?;
        // CREATE: links and symbolic links appear complete. DELETE_SELF, MOVE_SELF: a new directory may take its place.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(&self.shared.path, mask)?;
        self.scan()?;
        Ok(inotify)
    }

    /// Follow events until the directory is gone.
    fn follow(&mut self, mut inotify: Inotify, synced: &mut Option<impl FnOnce()>) {
        let mut buffer = [0; 4096];
        let start_ends = Clock::now() + START;
        loop {
            if (self.fresh.is_empty() || Clock::now() >= start_ends)
                && let Some(synced) = synced.take()
            {
                synced();
            }
            let due = self.fresh.values().map(|fresh| fresh.due);
            let until = due.chain(synced.is_some().then_some(start_ends)).min();
            let gone = match next(&mut inotify, &mut buffer, until) {
                Ok(asked) => self.apply(asked),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) =>
                {
                    false
                }
                Err(_) => return,
            };
            self.settle();
            if gone {
                return;
            }
        }
    }

    /// Do what the events of one buffer ask for. Tells whether the directory is gone.
    fn apply(&mut self, asked: Asked) -> bool {
        for (name, there) in &asked.files {
            self.fresh.remove(name);
            // A regular file just made is still being written: CLOSE_WRITE follows.
            if *there || self.complete(name) { self.load(name) } else { self.forget(name) }
        }
        if asked.scan {
            let _ = self.scan();
        } else if !asked.files.is_empty() {
            self.shared.tell();
        }
        asked.gone
    }

    /// Whether a name is a link to something that was there before it.
    fn complete(&self, name: &str) -> bool {
        fs::symlink_metadata(self.shared.path.join(name)).is_ok_and(|m| m.is_symlink() || m.nlink() > 1)
    }

    /// Read everything that is not being written to.
    fn scan(&mut self) -> io::Result<()> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(&self.shared.path)? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| Form::of(name).is_some()));
        }
        let gone: Vec<_> =
            self.shared.lock().names().filter(|name| !names.contains(*name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        self.fresh.clear();
        for name in &names {
            match self.written(name).and_then(|at| Some((at, left(at)?))) {
                Some((modified, left)) => {
                    self.fresh.insert(name.clone(), Fresh { due: Clock::now() + left, modified });
                }
                None => self.load(name),
            }
        }
        self.bad.retain(|name, _| names.contains(name));
        self.count();
        self.shared.tell();
        Ok(())
    }

    /// Look again at the files that were fresh: those that nobody wrote to since are read.
    fn settle(&mut self) {
        let now = Clock::now();
        let due: Vec<_> =
            self.fresh.iter().filter(|(_, fresh)| fresh.due <= now).map(|(name, _)| name.clone()).collect();
        for name in &due {
            match (self.fresh.remove(name), self.written(name)) {
                (Some(fresh), Some(modified)) if fresh.modified != modified => {
                    self.fresh.insert(name.clone(), Fresh { due: now + SETTLE, modified });
                }
                _ => self.load(name),
            }
        }
        if !due.is_empty() {
            self.shared.tell();
        }
    }

    /// When a regular file was last written to. Other files are not waited for: what a link of a ConfigMap volume leads
    /// to was whole before.
    fn written(&self, name: &str) -> Option<SystemTime> {
        let metadata = fs::symlink_metadata(self.shared.path.join(name)).ok().filter(Metadata::is_file)?;
        metadata.modified().ok()
    }

    /// A file is gone, or another one in its place is not whole yet.
    fn forget(&mut self, name: &str) {
        self.bad.remove(name);
        self.shared.lock().remove(name);
        self.count();
    }

    /// Read one file, which may be gone by now.
    fn load(&mut self, name: &str) {
        let Some(form) = Form::of(name) else { return };
        match read(&self.shared.path.join(name), form) {
            Ok(pods) => {
                tracing::debug!(file = name, pods = pods.len(), "read manifest");
                self.bad.remove(name);
                self.shared.lock().replace(name, pods);
            }
            Err(FileError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(name);
            }
            Err(error) => {
                self.shared.lock().remove(name);
                let reason = error.to_string();
                if self.bad.get(name) != Some(&reason) {
                    tracing::warn!(file = name, %reason, "skip manifest: its pods cannot start until it is mended");
                    self.bad.insert(name.to_owned(), reason);
                }
            }
        }
        self.count();
    }

    fn clear(&mut self) {
        *self.shared.lock() = Index::default();
        self.bad.clear();
        self.fresh.clear();
        self.count();
        self.shared.tell();
    }

    fn count(&self) {
        self.shared.bad.set(i64::try_from(self.bad.len()).unwrap_or(i64::MAX));
    }
}

/// How long a file that was written to at `modified` is fresh still. A time to come is of a wrong clock, and as good as now.
fn left(modified: SystemTime) -> Option<Duration> {
    SETTLE.checked_sub(modified.elapsed().unwrap_or_default()).filter(|left| !left.is_zero())
}

/// What the events ask for that are there before `until`; nothing then is [`io::ErrorKind::WouldBlock`].
fn next(inotify: &mut Inotify, buffer: &mut [u8], until: Option<Clock>) -> io::Result<Asked> {
    let timeout = until.map_or(PollTimeout::NONE, |until| {
        // Rounded up, so that it is not woken too early again and again.
        let left = until.saturating_duration_since(Clock::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    });
    poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout)
        .map_err(Errno::into)
        .and_then(|_: i32| inotify.read_events(buffer))
        .map(Asked::of)
}

impl Asked {
    /// The last event of a name counts: a file that was closed and then removed may be in the making again.
    fn of(events: Events<'_>) -> Self {
        let mut asked = Self::default();
        for event in events {
            asked.gone |=
                event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF);
            match event.name {
                // Events were lost.
                None => asked.scan |= event.mask.contains(EventMask::Q_OVERFLOW),
                // A ConfigMap volume changes all its files by renaming `..data`.
                Some(name) if name.as_bytes().starts_with(b"..") => asked.scan = true,
                Some(name) => {
                    if let Some(name) = OsStr::to_str(name).filter(|name| Form::of(name).is_some()) {
                        let whole = event.mask.intersects(EventMask::CLOSE_WRITE | EventMask::MOVED_TO);
                        asked.files.insert(name.to_owned(), whole);
                    }
                }
            }
        }
        asked
    }
}

fn read(path: &Path, form: Form) -> Result<Vec<Pod>, FileError> {
    // O_NONBLOCK: a FIFO of that name must not hold up the thread.
    let file: File = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FileError::NotFile);
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(FileError::TooLong);
    }
    // The thread must outlive a defect in a parser: without it no new pod of the node could start.
    panic::catch_unwind(|| parse(form, &bytes)).unwrap_or(Err(ManifestError::Parser)).map_err(FileError::from)
}
