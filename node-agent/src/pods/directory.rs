// SPDX-License-Identifier: Apache-2.0
//! Pods from a directory of manifests, watched.
//!
//! Owns a thread that reads files and follows inotify events. A file that cannot be used is logged by name and left
//! out, and its pods are unknown until it is mended: an older version of it could be of another pod. Never writes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use inotify::{EventMask, Inotify, WatchMask};
use nix::fcntl::OFlag;
use prometheus_client::metrics::gauge::Gauge;
use redirect::Pod;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::index::Index;
use super::manifest::{Form, ManifestError, parse};
use super::{Absent, Found, Key, PodSource};

/// Largest file in bytes; the API server itself takes no object over 1.5 MiB.
const MAX_LEN: u64 = 4 << 20;
/// Pause while the directory is missing.
const RETRY: Duration = Duration::from_millis(500);

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
}

impl Directory {
    /// Start to watch `path`; `synced` is called when every file in it was read once. The directory may come later.
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
        let mut watcher = Watcher { shared: Arc::clone(&shared), bad: BTreeMap::new() };
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
                    Ok(pod) => return Ok(pod),
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
                    if let Some(synced) = synced.take() {
                        synced();
                    }
                    self.follow(inotify);
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
    fn follow(&mut self, mut inotify: Inotify) {
        let mut buffer = [0; 4096];
        loop {
            let events = match inotify.read_events_blocking(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let mut gone = false;
            for event in events {
                gone |=
                    event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF);
                match event.name.and_then(OsStr::to_str) {
                    Some(name) if Form::of(name).is_some() => {
                        // A regular file just made is still being written: CLOSE_WRITE follows.
                        if !event.mask.contains(EventMask::CREATE) || self.complete(name) {
                            self.load(name);
                        }
                    }
                    // A ConfigMap volume changes all its files by renaming `..data`; an overflow has no name at all.
                    _ => drop(self.scan()),
                }
            }
            self.shared.tell();
            if gone {
                return;
            }
        }
    }

    /// Whether a name that just appeared is a link to something that was there before.
    fn complete(&self, name: &str) -> bool {
        fs::symlink_metadata(self.shared.path.join(name)).is_ok_and(|m| m.is_symlink() || m.nlink() > 1)
    }

    /// Read everything.
    fn scan(&mut self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.shared.path)? {
            names.extend(entry?.file_name().into_string().ok().filter(|name| Form::of(name).is_some()));
        }
        let gone: Vec<_> = self.shared.lock().names().filter(|name| !names.contains(name)).cloned().collect();
        for name in gone.iter().chain(&names) {
            self.load(name);
        }
        self.bad.retain(|name, _| names.contains(name));
        self.count();
        self.shared.tell();
        Ok(())
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
                self.bad.remove(name);
                self.shared.lock().remove(name);
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
        self.count();
        self.shared.tell();
    }

    fn count(&self) {
        self.shared.bad.set(i64::try_from(self.bad.len()).unwrap_or(i64::MAX));
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
