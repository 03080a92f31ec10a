// SPDX-License-Identifier: Apache-2.0
//! Pods of the mesh that run although no ADD of theirs came to an agent of ours: their traffic goes past their proxy.
//!
//! Owns which pods that is said of, and when. Must never change anything.
//!
//! # What can be known
//! Every ADD leaves a record in the run directory before it is answered. A pod without one had its ADD elsewhere, or
//! before we came, and then its rules are somebody else's. So only pods count that were started since this agent or one before
//! it came to the node, or since the node was booted when the plugin was there by then.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use redirect::{Decision, decide};
use serde::{Deserialize, Serialize};

use crate::pods::Entry;
use crate::policy::{Mode, Policy};

/// The file that says since when pods of this node have records.
const FILE: &str = "since";
/// Pods remembered as told of; when there are more, all are forgotten and may be told of again.
const TOLD: usize = 4096;

/// Since when every pod that starts must have a record, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Since {
    /// We came to the node: pods that ran already are not ours.
    Install(i64),
    /// The node was booted, and we were there before: every sandbox is newer.
    Boot(i64),
}

/// Looks at pods.
pub(crate) struct Lookout {
    since: Since,
    policy: Policy,
    excluded_namespaces: Vec<String>,
    told: HashSet<String>,
}

impl Since {
    /// What an earlier agent wrote to `run_dir`, or now. The directory does not survive a boot; whether the plugin did
    /// (`was_installed`) tells a boot from the first time. Asked after the file, and loaded after the records: an uninstall
    /// goes the other way round, so that no agent that starts meanwhile misses records of pods that it holds to have some.
    ///
    /// # Errors
    /// Those of reading and writing files.
    pub(crate) fn load(run_dir: &Path, was_installed: impl FnOnce() -> bool) -> io::Result<Self> {
        let path = run_dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => {
                if let Ok(since) = serde_json::from_slice(&bytes) {
                    return Ok(since);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let since = match was_installed() {
            true => Self::Boot(booted()?),
            false => Self::Install(now),
        };
        since.write(run_dir)?;
        Ok(since)
    }

    fn write(self, run_dir: &Path) -> io::Result<()> {
        let temporary = run_dir.join(".since.new");
        fs::write(&temporary, serde_json::to_vec(&self)?)?;
        fs::rename(&temporary, run_dir.join(FILE))
    }

    /// Write it again, if the file is gone: an older agent that was uninstalled may take it away when this one has read it
    /// already.
    ///
    /// # Errors
    /// Those of writing files.
    pub(crate) fn restore(self, run_dir: &Path) -> io::Result<()> {
        if fs::exists(run_dir.join(FILE))? { Ok(()) } else { self.write(run_dir) }
    }

    /// Forget it: after an uninstall others may redirect pods.
    ///
    /// # Errors
    /// Those of removing the file.
    pub(crate) fn forget(run_dir: &Path) -> io::Result<()> {
        match fs::remove_file(run_dir.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the pod's sandbox was certainly made since then.
    fn covers(self, entry: &Entry) -> bool {
        match self {
            Self::Install(time) => entry.started > Some(time),
            Self::Boot(time) => entry.last_container > Some(time),
        }
    }
}

/// When the node was booted, in seconds since 1970 (`btime`, proc_stat(5)).
fn booted() -> io::Result<i64> {
    let text = fs::read_to_string("/proc/stat")?;
    let time = text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
    time.ok_or_else(|| io::Error::other("/proc/stat has no btime"))
}

impl Lookout {
    /// Look at the pods that started since `since`.
    pub(crate) fn new(since: Since, policy: Policy, excluded_namespaces: Vec<String>) -> Self {
        Self { since, policy, excluded_namespaces, told: HashSet::new() }
    }

    /// Whether `entry` is a pod to tell of, for the first time; `has_record` says whether the sandbox of a pod of this uid has
    /// one, or had one and is gone; `namespace` are the labels of its namespace, if they are known.
    pub(crate) fn see(
        &mut self,
        entry: &Entry,
        namespace: Option<&BTreeMap<String, String>>,
        has_record: impl FnOnce(&str) -> bool,
    ) -> bool {
        let Some(uid) = entry.pod.metadata.uid.as_deref() else { return false };
        // Nobody is redirected then.
        if self.policy.mode == Mode::Observe {
            return false;
        }
        // Of a pod that ends or starts again, the record goes with the sandbox, and the status says later that it does not run.
        let ends = entry.terminating || entry.finished || entry.last_container.is_none();
        let runs = entry.addressed && !ends && !entry.host_network && self.since.covers(entry);
        if !runs || !self.is_ours(entry, namespace) || self.told.contains(uid) || has_record(uid) {
            return false;
        }
        if self.told.len() >= TOLD {
            self.told.clear();
        }
        self.told.insert(uid.to_owned())
    }

    fn is_ours(&self, entry: &Entry, namespace: Option<&BTreeMap<String, String>>) -> bool {
        let metadata = &entry.pod.metadata;
        let excluded = &self.policy.excluded_namespaces;
        // Of a namespace that is not known yet it will be said with the pod's next change.
        if !excluded.is_empty() && namespace.is_none_or(|labels| excluded.matches(labels)) {
            return false;
        }
        entry.mirror_of.is_none()
            && !self.excluded_namespaces.contains(&metadata.namespace)
            && !self.policy.excluded_pods.matches(&metadata.labels)
            && decide(&entry.pod) == Decision::Redirect
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::Excluded;

    fn entry(uid: &str) -> Entry {
        let pod = json!({
            "metadata": {"name": "a", "namespace": "n", "uid": uid, "annotations": {"sidecar.istio.io/status": ""}},
            "spec": {"containers": [{"name": "istio-proxy", "args": ["proxy", "sidecar"]}]},
        });
        Entry {
            pod: serde_json::from_value(pod).unwrap(),
            terminating: false,
            finished: false,
            addressed: true,
            host_network: false,
            started: Some(200),
            last_container: Some(300),
            mirror_of: None,
        }
    }

    fn lookout(since: Since) -> Lookout {
        let policy = Policy {
            excluded_pods: Excluded::parse("{matchLabels: {app: out}}").unwrap(),
            ..Policy::default()
        };
        Lookout::new(since, policy, vec!["kube-system".into()])
    }

    #[test]
    fn a_mesh_pod_that_runs_without_a_record_is_told_of_once() {
        let mut lookout = lookout(Since::Install(100));
        assert!(!lookout.see(&entry("a"), None, |_| true));
        assert!(lookout.see(&entry("b"), None, |_| false));
        assert!(!lookout.see(&entry("b"), None, |_| false));
    }

    #[test]
    fn what_need_not_have_a_record_is_not_told_of() {
        let mut lookout = lookout(Since::Install(100));
        type Change = fn(&mut Entry);
        let cases: [Change; 11] = [
            |e| e.terminating = true,
            |e| e.finished = true,
            |e| e.last_container = None,
            |e| e.addressed = false,
            |e| e.host_network = true,
            |e| e.started = Some(100),
            |e| e.started = None,
            |e| e.mirror_of = Some("hash".into()),
            |e| e.pod.metadata.namespace = "kube-system".into(),
            |e| e.pod.metadata.annotations.clear(),
            |e| {
                e.pod.metadata.labels.insert("app".into(), "out".into());
            },
        ];
        for (number, change) in cases.into_iter().enumerate() {
            let mut entry = entry("a");
            change(&mut entry);
            assert!(!lookout.see(&entry, None, |_| false), "case {number}");
        }
        assert!(lookout.see(&entry("a"), None, |_| false));
    }

    #[test]
    fn a_pod_of_a_namespace_that_is_excluded_or_unknown_is_not_told_of() {
        let policy = Policy {
            excluded_namespaces: Excluded::parse("{matchLabels: {mesh: off}}").unwrap(),
            ..Policy::default()
        };
        let mut lookout = Lookout::new(Since::Install(100), policy, Vec::new());
        let labels = |value: &str| BTreeMap::from([("mesh".to_owned(), value.to_owned())]);
        assert!(!lookout.see(&entry("a"), None, |_| false));
        assert!(!lookout.see(&entry("a"), Some(&labels("off")), |_| false));
        assert!(lookout.see(&entry("a"), Some(&labels("on")), |_| false));
    }

    #[test]
    fn an_agent_that_observes_tells_of_nobody() {
        let policy = Policy { mode: Mode::Observe, ..Policy::default() };
        let mut lookout = Lookout::new(Since::Install(100), policy, Vec::new());
        assert!(!lookout.see(&entry("a"), None, |_| false));
    }

    #[test]
    fn after_a_boot_it_is_the_containers_start_that_counts() {
        // The pod is older than the boot; the kubelet has not come to it yet, or has.
        let waiting = Entry { last_container: Some(300), ..entry("a") };
        assert!(!lookout(Since::Boot(400)).see(&waiting, None, |_| false));
        let running = Entry { last_container: Some(401), ..entry("a") };
        assert!(lookout(Since::Boot(400)).see(&running, None, |_| false));
    }

    #[test]
    fn the_first_agent_of_a_boot_says_since_when_and_later_ones_keep_to_it() {
        let dir = std::env::temp_dir().join(format!("waylay-since-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let first = Since::load(&dir, || false).unwrap();
        assert!(matches!(first, Since::Install(_)));
        assert_eq!(Since::load(&dir, || true).unwrap(), first);
        fs::write(dir.join(FILE), "half").unwrap();
        assert!(matches!(Since::load(&dir, || true).unwrap(), Since::Boot(_)));
        Since::Install(7).restore(&dir).unwrap();
        assert!(matches!(Since::load(&dir, || true).unwrap(), Since::Boot(_)));
        Since::forget(&dir).unwrap();
        Since::forget(&dir).unwrap();
        Since::Install(7).restore(&dir).unwrap();
        assert_eq!(Since::load(&dir, || true).unwrap(), Since::Install(7));
        Since::forget(&dir).unwrap();
        assert!(matches!(Since::load(&dir, || false).unwrap(), Since::Install(_)));
        fs::remove_dir_all(&dir).unwrap();
    }
}
