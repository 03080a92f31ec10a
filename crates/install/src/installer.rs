// SPDX-License-Identifier: Apache-2.0
//! Brings a node to the state that the settings describe, and back.
//!
//! Owns the order over several files: the plugin before the configuration that names it, and the other way round at
//! removal. Has no memory: all it needs to know is on the node.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cni::conflist::{Conf, Unusable, is_candidate};
use nix::libc;

use crate::binary::{Binary, Plugin};
use crate::error::{InstallError, Kind};
use crate::fault;
use crate::file::{Attributes, Content, Dir, Done, Stamp};
use crate::plan::{self, Action, Blocked, Found, Seen};
use crate::settings::{InstallSettings, SettingsError};

/// Largest configuration in bytes; real ones have less than ten thousand.
const MAX_LEN: u64 = 1 << 20;
/// A broken file that was written to this recently may be whole soon.
pub(crate) const FRESH: Duration = Duration::from_secs(2);
/// Attempts when files change under us.
const ATTEMPTS: usize = 10;
/// Attempts when they do not.
const ROUNDS: usize = 2;

/// Installs and removes.
#[derive(Clone)]
pub struct Installer {
    settings: InstallSettings,
    may_write: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What to leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Nothing.
    Nothing,
    /// The plugin: CRI-O and Multus keep a pod's configuration and call the plugin for its DEL, and cannot delete the
    /// pod without it.
    Plugin,
}

/// Everything is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The file with our entry.
    pub file: PathBuf,
    /// What had to be written, made or removed for it.
    pub changed: Vec<PathBuf>,
    /// What an administrator should know.
    pub notices: Vec<Notice>,
}

/// Everything is in place, but.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Notice {
    /// A file before ours cannot be loaded.
    #[error(
        "{0} comes first and cannot be loaded ({1}): containerd loads no network at all; repair or remove it"
    )]
    Broken(PathBuf, Unusable),
    /// The runtime loads another file.
    #[error("{0} comes first, so the runtime loads it and not the file with our entry")]
    Preempted(PathBuf),
    /// A plugin of a newer release was left alone.
    #[error("{0} is of release {1}, newer than this agent, and is left in place")]
    NewerPlugin(PathBuf, String),
}

/// The configuration directory at one moment.
struct Snapshot {
    found: Vec<Found>,
    states: Vec<(Stamp, Attributes)>,
}

impl Installer {
    /// An installer that may always write.
    ///
    /// # Errors
    /// All contradictions in the settings.
    pub fn new(settings: InstallSettings) -> Result<Self, Vec<SettingsError>> {
        let errors = settings.check();
        if errors.is_empty() { Ok(Self { settings, may_write: Arc::new(|| true) }) } else { Err(errors) }
    }

    /// Write only while `may_write` says so. It is asked before each file, and again before each rename.
    #[must_use]
    pub fn while_allowed(self, may_write: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { may_write: Arc::new(may_write), ..self }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &InstallSettings {
        &self.settings
    }

    /// Whether a plugin of ours, of whatever release, is in one of the directories.
    #[must_use]
    pub fn has_plugin(&self) -> bool {
        self.settings.bin_dirs.iter().any(|dir| Plugin::is_in(dir))
    }

    pub(crate) fn may_write(&self) -> bool {
        (self.may_write)()
    }

    /// Put everything in place that is not: first the plugin, then our entry, then what remains elsewhere.
    ///
    /// # Errors
    /// The first thing that did not succeed. What was done before it stays, and is of use by itself.
    pub fn ensure(&self) -> Result<Report, InstallError> {
        let mut changed = Vec::new();
        let mut notices = Vec::new();
        self.ensure_plugin(&mut changed, &mut notices)?;
        let dir = self.dir(&self.settings.conf_dir);
        dir.allowed(dir.path)?;
        dir.sweep()?;
        // From one mode to another takes two rounds. Whoever undoes the second one at once is not met with a third.
        let mut rounds = 0;
        for _ in 0..ATTEMPTS {
            let snapshot = Snapshot::read(dir.path)?;
            let plan = plan::install(&snapshot.found, &self.settings).map_err(|b| self.blocked(b))?;
            if plan.actions.is_empty() || rounds == ROUNDS {
                self.notice(plan.seen.clone(), &mut notices);
                return Ok(Report { file: dir.path.join(&plan.seen.file), changed, notices });
            }
            rounds += usize::from(self.perform(&dir, &plan.actions, &snapshot, &mut changed)? == Done::Yes);
        }
        Err(InstallError::changed(dir.path))
    }

    /// Whether [`Self::ensure`] would leave the configuration as it is.
    ///
    /// # Errors
    /// What keeps it from being looked at, or from being in place.
    pub fn is_in_place(&self) -> Result<bool, InstallError> {
        let snapshot = Snapshot::read(&self.settings.conf_dir)?;
        let plan = plan::install(&snapshot.found, &self.settings).map_err(|b| self.blocked(b))?;
        Ok(plan.actions.is_empty())
    }

    fn ensure_plugin(
        &self,
        changed: &mut Vec<PathBuf>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), InstallError> {
        let plugin = Plugin::read(&self.settings.plugin)?;
        for path in &self.settings.bin_dirs {
            let dir = self.dir(path);
            dir.allowed(path)?;
            dir.sweep()?;
            let path = path.join(cni::conflist::TYPE);
            match plugin.ensure(&dir, self.settings.downgrade)? {
                Binary::InPlace => {}
                Binary::Written => changed.push(path),
                Binary::Newer(release) => notices.push(Notice::NewerPlugin(path, release)),
            }
        }
        Ok(())
    }

    /// Take away what [`Self::ensure`] brought, from whatever state. Entries that another istio-cni left go, too.
    ///
    /// # Errors
    /// Everything that did not succeed; the rest is done all the same, except that the plugin stays as long as a file
    /// may name it.
    pub fn remove(&self, leaving: Leaving) -> Result<Vec<PathBuf>, Vec<InstallError>> {
        let mut changed = Vec::new();
        let mut errors = Vec::new();
        let dir = self.dir(&self.settings.conf_dir);
        errors.extend(self.remove_entries(&dir, &mut changed).err());
        errors.extend(dir.sweep().err());
        for path in &self.settings.bin_dirs {
            let dir = self.dir(path);
            if leaving == Leaving::Nothing && errors.is_empty() {
                match Plugin::remove(&dir) {
                    Ok(true) => changed.push(path.join(cni::conflist::TYPE)),
                    Ok(false) => {}
                    Err(error) => errors.push(error),
                }
            }
            errors.extend(dir.sweep().err());
        }
        if errors.is_empty() { Ok(changed) } else { Err(errors) }
    }

    fn remove_entries(&self, dir: &Dir<'_>, changed: &mut Vec<PathBuf>) -> Result<(), InstallError> {
        dir.allowed(dir.path)?;
        for _ in 0..ATTEMPTS {
            let snapshot = Snapshot::read(dir.path)?;
            let actions = plan::remove(&snapshot.found, self.settings.own());
            if actions.is_empty() {
                return Ok(());
            }
            self.perform(dir, &actions, &snapshot, changed)?;
        }
        Err(InstallError::changed(dir.path))
    }

    /// Perform what was planned, up to the first file that is not as it was read: then plan anew.
    fn perform(
        &self,
        dir: &Dir<'_>,
        actions: &[Action],
        snapshot: &Snapshot,
        changed: &mut Vec<PathBuf>,
    ) -> Result<Done, InstallError> {
        for action in actions {
            let attributes = |like: &Option<&str>| {
                like.and_then(|like| snapshot.state(like))
                    .map_or(Attributes { mode: self.settings.file_mode, owner: None }, |(_, attributes)| {
                        attributes
                    })
            };
            let expected = |name: &str| snapshot.state(name).map(|(stamp, _)| stamp);
            let (name, done) = match action {
                Action::Write { name, text, like } => {
                    let content = Content::File(text.as_bytes(), attributes(&like.as_deref()));
                    (name, dir.put(name, &content, expected(name), fault::ENTRY)?)
                }
                Action::Strip { name, text, like } => {
                    let content = Content::File(text.as_bytes(), attributes(&Some(like)));
                    (name, dir.put(name, &content, expected(name), fault::STRIP)?)
                }
                Action::Link { name, target } => {
                    (name, dir.put(name, &Content::Link(target), expected(name), fault::STRIP)?)
                }
                Action::Delete { name } => (name, dir.delete(name, expected(name), fault::DELETE)?),
            };
            if done == Done::Changed {
                return Ok(Done::Changed);
            }
            changed.push(dir.path.join(name));
        }
        Ok(Done::Yes)
    }

    fn dir<'a>(&'a self, path: &'a Path) -> Dir<'a> {
        Dir { path, may_write: &*self.may_write }
    }

    fn notice(&self, seen: Seen, notices: &mut Vec<Notice>) {
        let path = |name: &str| self.settings.conf_dir.join(name);
        notices.extend(seen.broken.into_iter().map(|(name, why)| Notice::Broken(path(&name), why)));
        notices.extend(seen.preempted_by.map(|name| Notice::Preempted(path(&name))));
    }

    fn blocked(&self, blocked: Blocked) -> InstallError {
        let dir = &self.settings.conf_dir;
        match blocked {
            Blocked::NoPrimary(broken) => {
                let mut cause = match self.settings.wanted() {
                    Some(name) => format!("no usable {name} yet"),
                    None => "no network configuration yet".to_owned(),
                };
                for (name, why) in broken {
                    cause.push_str(&format!(", and {name} is of no use ({why})"));
                }
                let hint = "install the primary network's CNI plugin, or check the directory";
                InstallError::new(Kind::NoPrimary, "look in", dir, cause, hint)
            }
            Blocked::BeingWritten(name) => {
                let cause = "it is incomplete and was changed just now";
                InstallError::new(Kind::BeingWritten, "read", &dir.join(name), cause, "it is read again")
            }
            Blocked::NotOurs(name) => {
                let hint = "choose another name for our own file";
                let cause = "it is the configuration of another network";
                InstallError::new(Kind::NotOurs, "write", &dir.join(name), cause, hint)
            }
            Blocked::NoName(name) => {
                let hint = "remove the files whose names begin like it and end in .conflist";
                let cause = "a list has to take its place, and others have the names for it";
                InstallError::new(Kind::NotOurs, "convert", &dir.join(name), cause, hint)
            }
        }
    }
}

impl Snapshot {
    /// Read all files that a runtime would consider, in the order of bytes.
    fn read(dir: &Path) -> Result<Self, InstallError> {
        let failed = |error: &io::Error| InstallError::io("read", dir, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(|error| failed(&error))? {
            let entry = entry.map_err(|error| failed(&error))?;
            // The runtimes skip directories.
            if entry.file_type().is_ok_and(|kind| !kind.is_dir()) {
                names.extend(entry.file_name().into_string().ok().filter(|name| is_candidate(name)));
            }
        }
        names.sort_unstable();
        let mut snapshot = Self { found: Vec::new(), states: Vec::new() };
        for name in names {
            let path = dir.join(&name);
            match fs::symlink_metadata(&path) {
                Ok(metadata) => snapshot.add(dir, name, &metadata),
                // Gone since.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(InstallError::io("look at", &path, &error)),
            }
        }
        Ok(snapshot)
    }

    fn add(&mut self, dir: &Path, name: String, metadata: &Metadata) {
        let path = dir.join(&name);
        let link = metadata
            .is_symlink()
            .then(|| fs::read_link(&path).ok().and_then(|target| target.into_os_string().into_string().ok()))
            .flatten();
        let text = read(&path);
        let marked = text.as_ref().ok().and_then(|text| {
            Conf::parse(&name, text).ok().and_then(|conf| conf.marks().and_then(|marks| marks.link.clone()))
        });
        let original = marked.and_then(|target| read(&dir.join(target)).ok());
        let fresh = metadata.modified().is_ok_and(is_fresh);
        // A link has no mode worth having: the file that takes its place gets that of what it leads to.
        let attributes = fs::metadata(&path).map_or_else(|_| metadata.into(), |m| Attributes::from(&m));
        self.states.push((metadata.into(), attributes));
        self.found.push(Found { name, text, link, original, fresh });
    }

    fn state(&self, name: &str) -> Option<(Stamp, Attributes)> {
        self.found.iter().position(|file| file.name == name).map(|at| self.states[at])
    }
}

/// A time to come is of a wrong clock, and long ago.
fn is_fresh(modified: SystemTime) -> bool {
    modified.elapsed().is_ok_and(|ago| ago < FRESH)
}

fn read(path: &Path) -> Result<String, Unusable> {
    let failed = |error: io::Error| Unusable::NotRead(error.to_string());
    // O_NONBLOCK: a FIFO of that name must not hold us up.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Unusable::NotRead("it is not a regular file".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(Unusable::NotRead(format!("it is longer than {MAX_LEN} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| Unusable::NotJson("it is not UTF-8".to_owned()))
}
