// SPDX-License-Identifier: Apache-2.0
//! Which attachments had their ADD: one small file for each in the run directory, written before the answer goes out, gone
//! with DEL. So CHECK can tell rules that are gone from rules that never were, also after a restart of the agent, and a
//! pod that never had an ADD is known by having none.
//!
//! And what became of the attachments heard of last, for people, in memory.
//!
//! Another agent may write to the same directory at the same time: what is not in memory is looked for there.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_api::Sandbox;
use serde::{Deserialize, Serialize};

use super::recent::{Attachment, Event, Recent, Verb};

/// The directory in the run directory.
const DIR: &str = "sandboxes";
/// Its name while it is removed.
const GONE: &str = ".sandboxes.gone";
/// Records kept; a node runs a few hundred sandboxes. Beyond it nothing is written.
const LIMIT: usize = 4096;
/// Longest name of a file (`NAME_MAX` is 255, and a temporary one is longer).
const LONGEST: usize = 240;
/// Longest file read.
const MAX_LEN: u64 = 4096;
/// A record younger than this is not swept: the API server may not have told of its pod yet.
const YOUNG: Duration = Duration::from_secs(600);
/// Seconds after which the API server has long told of the end of what ran in a sandbox.
const REMEMBERED: i64 = 600;

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    namespace: String,
    name: String,
    uid: String,
    /// Whether rules were written.
    redirected: bool,
    /// The reason code.
    reason: String,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            namespace: String::new(),
            name: String::new(),
            uid: String::new(),
            redirected: true,
            reason: String::new(),
        }
    }
}

/// The records.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// Nowhere: in memory only.
    dir: Option<PathBuf>,
    by_file: HashMap<String, Record>,
    /// When the last sandbox of a pod ended, by its [`key`], in seconds since 1970.
    ended: HashMap<String, i64>,
    recent: Recent,
}

impl Records {
    /// The records in `run_dir`, which are made if there are none.
    ///
    /// # Errors
    /// Those of making and reading the directory. A file that cannot be read counts as a record of an unknown pod.
    pub(crate) fn open(run_dir: &Path) -> io::Result<Self> {
        let dir = run_dir.join(DIR);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let mut records = Self { dir: Some(dir), ..Self::default() };
        records.load()?;
        Ok(records)
    }

    /// Take in what is in the directory and not in memory.
    fn load(&mut self) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        for entry in fs::read_dir(dir)?.flatten() {
            let Ok(file) = entry.file_name().into_string() else { continue };
            if file.starts_with('.') {
                // Of an agent that was killed meanwhile; a living one is through with it in no time.
                let _ = old(&entry.path()).filter(|old| *old).map(|_| fs::remove_file(entry.path()));
            } else if self.by_file.len() < LIMIT && !self.by_file.contains_key(&file) {
                let record = read(&entry.path()).unwrap_or_default();
                self.by_file.insert(file, record);
            }
        }
        Ok(())
    }

    /// The ADD of `sandbox` is about to be answered.
    ///
    /// # Errors
    /// Those of writing the file; the record is kept in memory all the same, unless there are too many.
    pub(crate) fn insert(&mut self, sandbox: &Sandbox, redirected: bool, reason: &str) -> io::Result<()> {
        let Some(file) = file(sandbox) else { return Ok(()) };
        if self.by_file.len() >= LIMIT && !self.by_file.contains_key(&file) {
            return Err(io::Error::other(format!("there are {LIMIT} records already")));
        }
        let record = Record {
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            uid: sandbox.uid.clone().unwrap_or_default(),
            redirected,
            reason: reason.to_owned(),
        };
        let written = self.dir.as_deref().map_or(Ok(()), |dir| write(dir, &file, &record));
        self.by_file.insert(file, record);
        match written {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.restore(),
            written => written,
        }
    }

    /// If the directory is gone, write again what is known: an older agent that was uninstalled may take it away when this one
    /// has read it already.
    ///
    /// # Errors
    /// Those of making the directory and of writing files.
    pub(crate) fn restore(&self) -> io::Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.by_file.iter().try_for_each(|(file, record)| write(dir, file, record)),
        }
    }

    /// The DEL of `sandbox` came. One without a record says nothing of its pod: the kubelet has sandboxes removed long after
    /// the pod runs in another.
    pub(crate) fn remove(&mut self, sandbox: &Sandbox) {
        let Some(file) = file(sandbox) else { return };
        let known = self.by_file.remove(&file).is_some();
        let written = self.dir.as_ref().is_some_and(|dir| fs::remove_file(dir.join(file)).is_ok());
        if !known && !written {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        if self.ended.len() >= LIMIT {
            self.ended.retain(|_, ended| *ended > now - REMEMBERED);
        }
        if self.ended.len() < LIMIT {
            let Sandbox { namespace, name, uid, .. } = sandbox;
            self.ended.insert(key(uid.as_deref().unwrap_or_default(), (namespace, name)), now);
        }
    }

    /// Whether `sandbox` was redirected, as far as is known.
    pub(crate) fn redirected(&self, sandbox: &Sandbox) -> bool {
        let Some(file) = file(sandbox) else { return false };
        match (self.by_file.get(&file), &self.dir) {
            (Some(record), _) => record.redirected,
            (None, Some(dir)) => read(&dir.join(file)).is_some_and(|record| record.redirected),
            (None, None) => false,
        }
    }

    /// Whether a sandbox of the pod `uid` had its ADD, or may have had; `name` is its namespace and name, for runtimes that send
    /// no uid.
    pub(crate) fn has_pod(&mut self, uid: &str, (namespace, name): (&str, &str)) -> bool {
        let is_it = |record: &Record| match record.uid.as_str() {
            "" => record.namespace == namespace && record.name == name,
            other => other == uid,
        };
        let found =
            self.by_file.values().any(is_it) || (self.load().is_ok() && self.by_file.values().any(is_it));
        // When it is full, some have none.
        found || self.by_file.len() >= LIMIT
    }

    /// Whether what ran in the pod `uid` at `time` (seconds since 1970) ended with a sandbox whose DEL came: the pod's
    /// status tells of that later.
    pub(crate) fn has_ended(&self, uid: &str, name: (&str, &str), time: Option<i64>) -> bool {
        let ended = self.ended.get(uid).or_else(|| self.ended.get(&key("", name)));
        ended.is_some_and(|ended| time <= Some(*ended))
    }

    /// Remove the records of pods that are not there any more, whose DEL never came.
    pub(crate) fn sweep(&mut self, is_there: impl Fn(&str) -> bool) {
        let Some(dir) = self.dir.clone() else { return };
        let _ = self.load();
        self.by_file.retain(|file, record| {
            let path = dir.join(file);
            let keep = record.uid.is_empty() || is_there(&record.uid) || old(&path) == Some(false);
            if !keep {
                let _ = fs::remove_file(path);
            }
            keep
        });
    }

    /// Remember for people what happened to `sandbox`.
    pub(crate) fn see(&mut self, sandbox: &Sandbox, verb: Verb, event: Event) {
        self.recent.see(sandbox, verb, event);
    }

    /// What happened to the sandboxes heard of last, the newest last.
    pub(crate) fn recent(&self) -> impl DoubleEndedIterator<Item = &Attachment> {
        self.recent.iter()
    }
}

/// The name of the file of `sandbox`; nothing when its names are not those of the CNI specification. Several networks may run the
/// plugin in one sandbox.
fn file(sandbox: &Sandbox) -> Option<String> {
    let Sandbox { container_id, ifname, .. } = sandbox;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let usable = container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && container_id.chars().all(plain)
        && !ifname.is_empty()
        && ifname.chars().all(|c| c.is_ascii_graphic() && c != '/');
    let name = format!("{container_id},{ifname}");
    (usable && name.len() <= LONGEST).then_some(name)
}

/// Of a pod: its uid, or for runtimes that send none its namespace and name.
fn key(uid: &str, (namespace, name): (&str, &str)) -> String {
    if uid.is_empty() { format!("{namespace}/{name}") } else { uid.to_owned() }
}

/// Remove the records, after an uninstall. All at once: an agent that starts meanwhile finds all of them or none.
///
/// # Errors
/// Those of renaming and removing files.
pub(crate) fn forget(run_dir: &Path) -> io::Result<()> {
    let (dir, gone) = (run_dir.join(DIR), run_dir.join(GONE));
    // Of one that was killed here.
    absent_is_fine(fs::remove_dir_all(&gone))?;
    absent_is_fine(fs::rename(dir, &gone))?;
    absent_is_fine(fs::remove_dir_all(gone))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Without fsync: the run directory is in memory, and does not outlive the node's sandboxes.
fn write(dir: &Path, file: &str, record: &Record) -> io::Result<()> {
    let temporary = dir.join(format!(".{file}"));
    // Names and uids of pods are nobody's business, also where the kubelet made the directory.
    let mut options = fs::File::options();
    let mut new = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    new.write_all(&serde_json::to_vec(record)?)?;
    fs::rename(&temporary, dir.join(file))
}

fn read(path: &Path) -> Option<Record> {
    let fits = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_LEN);
    serde_json::from_slice(&fs::read(path).ok().filter(|_| fits)?).ok()
}

/// Whether the file is older than [`YOUNG`]; nothing when it is gone.
fn old(path: &Path) -> Option<bool> {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    Some(SystemTime::now().duration_since(modified).is_ok_and(|age| age >= YOUNG))
}

#[cfg(test)]
mod tests {
    use std::fs::FileTimes;

    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("waylay-records-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn files(&self) -> Vec<String> {
            let mut names: Vec<_> = fs::read_dir(self.0.join(DIR))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sandbox(id: &str, uid: Option<&str>) -> Sandbox {
        Sandbox {
            container_id: id.to_owned(),
            ifname: "eth0".to_owned(),
            namespace: "n".to_owned(),
            name: format!("pod-{id}"),
            uid: uid.map(str::to_owned),
        }
    }

    #[test]
    fn a_record_outlives_the_agent_and_goes_with_del() {
        let dir = Dir::new("outlives");
        let (a, b) = (sandbox("a", Some("1")), sandbox("b", Some("2")));
        {
            let mut records = Records::open(&dir.0).unwrap();
            records.insert(&a, true, "programmed").unwrap();
            records.insert(&b, false, "mode_none").unwrap();
        }
        let mut records = Records::open(&dir.0).unwrap();
        assert!(records.redirected(&a) && !records.redirected(&b));
        assert!(records.has_pod("2", ("n", "pod-b")) && !records.has_pod("3", ("n", "pod-b")));
        records.remove(&a);
        assert!(!records.redirected(&a) && !records.has_pod("1", ("n", "pod-a")));
        assert_eq!(dir.files(), ["b,eth0"]);
    }

    #[test]
    fn what_ran_before_its_sandbox_ended_is_told_from_what_was_started_after() {
        let mut records = Records::default();
        for (id, uid) in [("a", Some("1")), ("b", None)] {
            records.insert(&sandbox(id, uid), true, "programmed").unwrap();
            records.remove(&sandbox(id, uid));
        }
        let (a, b, now) = (("n", "pod-a"), ("n", "pod-b"), records.ended["1"]);
        assert!(records.has_ended("1", a, None) && records.has_ended("1", a, Some(now)));
        assert!(!records.has_ended("1", a, Some(now + 2)) && !records.has_ended("2", a, Some(now)));
        // Without a uid from the runtime the name has to do.
        assert!(records.has_ended("any", b, Some(now)) && !records.has_ended("any", b, Some(now + 2)));
    }

    #[test]
    fn a_sandbox_without_a_record_says_nothing_of_its_pod_when_it_is_removed() {
        let mut records = Records::default();
        records.remove(&sandbox("old", Some("1")));
        assert!(!records.has_ended("1", ("n", "pod-old"), Some(0)));
        // Runtimes send the DEL of a sandbox twice: when it is stopped, and when it is removed.
        records.insert(&sandbox("old", Some("1")), true, "programmed").unwrap();
        records.remove(&sandbox("old", Some("1")));
        records.ended.insert("1".to_owned(), 1000);
        records.remove(&sandbox("old", Some("1")));
        assert!(!records.has_ended("1", ("n", "pod-old"), Some(1001)));
    }

    #[test]
    fn when_there_are_too_many_nothing_is_said_of_pods_without_one() {
        let mut records = Records::default();
        for n in 0..LIMIT {
            records.insert(&sandbox(&n.to_string(), Some(&n.to_string())), true, "programmed").unwrap();
        }
        assert!(records.insert(&sandbox("x", Some("x")), true, "programmed").is_err());
        assert!(records.has_pod("x", ("n", "pod-x")));
    }

    #[test]
    fn after_an_uninstall_nothing_is_left() {
        let dir = Dir::new("forget");
        Records::open(&dir.0).unwrap().insert(&sandbox("a", Some("1")), true, "programmed").unwrap();
        fs::create_dir_all(dir.0.join(GONE).join("of one that was killed")).unwrap();
        forget(&dir.0).unwrap();
        forget(&dir.0).unwrap();
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 0);
    }

    #[test]
    fn what_an_agent_that_was_uninstalled_takes_away_is_written_again() {
        let dir = Dir::new("restored");
        let mut records = Records::open(&dir.0).unwrap();
        records.insert(&sandbox("a", Some("1")), true, "programmed").unwrap();
        forget(&dir.0).unwrap();
        records.restore().unwrap();
        assert_eq!(dir.files(), ["a,eth0"]);
        forget(&dir.0).unwrap();
        records.insert(&sandbox("b", Some("2")), false, "no_sidecar").unwrap();
        assert_eq!(dir.files(), ["a,eth0", "b,eth0"]);
        let again = Records::open(&dir.0).unwrap();
        assert!(again.redirected(&sandbox("a", None)) && !again.redirected(&sandbox("b", None)));
    }

    #[test]
    fn what_another_agent_wrote_meanwhile_is_seen() {
        let dir = Dir::new("another");
        let (mut one, mut other) = (Records::open(&dir.0).unwrap(), Records::open(&dir.0).unwrap());
        let (a, b) = (sandbox("a", Some("1")), sandbox("b", None));
        other.insert(&a, true, "programmed").unwrap();
        other.insert(&b, true, "programmed").unwrap();
        assert!(one.redirected(&a));
        assert!(one.has_pod("1", ("n", "pod-a")));
        // Without a uid from the runtime the name has to do.
        assert!(one.has_pod("any", ("n", "pod-b")) && !one.has_pod("any", ("n", "pod-c")));
    }

    #[test]
    fn only_old_records_of_pods_that_are_gone_are_swept() {
        let dir = Dir::new("sweep");
        let mut records = Records::open(&dir.0).unwrap();
        for (id, uid) in [("there", Some("1")), ("young", Some("2")), ("gone", Some("3")), ("nameless", None)]
        {
            records.insert(&sandbox(id, uid), true, "programmed").unwrap();
        }
        fs::write(dir.0.join(DIR).join(".half"), "{").unwrap();
        for file in ["there,eth0", "gone,eth0", "nameless,eth0", ".half"] {
            let file = fs::File::options().write(true).open(dir.0.join(DIR).join(file)).unwrap();
            file.set_times(FileTimes::new().set_modified(SystemTime::now() - YOUNG)).unwrap();
        }
        records.sweep(|uid| uid == "1");
        assert_eq!(dir.files(), ["nameless,eth0", "there,eth0", "young,eth0"]);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_record_of_an_unknown_pod_and_harms_nobody() {
        let dir = Dir::new("garbage");
        fs::create_dir(dir.0.join(DIR)).unwrap();
        fs::write(dir.0.join(DIR).join("a,eth0"), [0; 8192]).unwrap();
        fs::create_dir(dir.0.join(DIR).join("b,eth0")).unwrap();
        let mut records = Records::open(&dir.0).unwrap();
        assert!(records.redirected(&sandbox("a", None)));
        assert!(!records.has_pod("1", ("n", "pod-a")));
    }

    #[test]
    fn names_that_are_no_file_names_are_not_recorded() {
        let dir = Dir::new("names");
        let mut records = Records::open(&dir.0).unwrap();
        for (id, ifname) in
            [("../a", "eth0"), ("a/b", "eth0"), ("", "eth0"), ("a", ""), ("a", "../x"), (".a", "e")]
        {
            let odd = Sandbox { ifname: ifname.into(), ..sandbox(id, Some("1")) };
            records.insert(&odd, true, "programmed").unwrap();
            assert!(!records.redirected(&odd));
        }
        records.insert(&sandbox(&"x".repeat(LONGEST), Some("1")), true, "programmed").unwrap();
        assert_eq!(dir.files(), [""; 0]);
    }
}
