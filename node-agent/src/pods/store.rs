// SPDX-License-Identifier: Apache-2.0
//! The pods that the API server says are on this node, and which of them a sandbox is of. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use redirect::Pod;

use super::object::Entry;
use super::{Key, Known};

/// Namespace and name.
type Name = (String, String);

/// The pods by name; of a list that is being read, those so far are kept aside until it is whole.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pods: HashMap<Name, Stored>,
    list: HashMap<Name, Stored>,
}

#[derive(Debug)]
struct Stored {
    pod: Arc<Pod>,
    terminating: bool,
    addressed: bool,
    mirror_of: Option<String>,
}

/// What the store makes of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    /// It is of this.
    Known(Known),
    /// Nothing of that name.
    Unknown,
    /// Another pod of that name, with this uid.
    OtherUid(String),
    /// Without a uid: one that is being deleted.
    Terminating,
    /// Without a uid: one that had a sandbox already, so that this may be of its successor.
    Doubtful(Arc<Pod>),
}

impl Store {
    /// A new list begins.
    pub(crate) fn begin(&mut self) {
        self.list.clear();
    }

    /// The list has this.
    pub(crate) fn list(&mut self, entry: Entry) {
        insert(&mut self.list, entry);
    }

    /// The list is whole: what is not in it is gone.
    pub(crate) fn end(&mut self) {
        self.pods = std::mem::take(&mut self.list);
    }

    /// A pod is there, or changed.
    pub(crate) fn apply(&mut self, entry: Entry) {
        insert(&mut self.pods, entry);
    }

    /// A pod is gone; its successor of the same name stays.
    pub(crate) fn remove(&mut self, entry: &Entry) {
        let metadata = &entry.pod.metadata;
        let name = (metadata.namespace.clone(), metadata.name.clone());
        if self.pods.get(&name).is_some_and(|stored| stored.pod.metadata.uid == metadata.uid) {
            self.pods.remove(&name);
        }
    }

    /// The uids of all.
    pub(crate) fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.values().filter_map(|stored| stored.pod.metadata.uid.as_deref())
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.pods.len()
    }

    /// Which pod the sandbox of `key` is of.
    pub(crate) fn find(&self, key: Key<'_>) -> Match {
        match self.pods.get(&(key.namespace.to_owned(), key.name.to_owned())) {
            Some(stored) => stored.judge(key),
            None => Match::Unknown,
        }
    }
}

/// Which pod the sandbox of `key` is of, when `entry` is what the API server has at this moment.
pub(crate) fn judge(entry: Entry, key: Key<'_>) -> Match {
    match Stored::from(entry).judge(key) {
        // There is no newer one.
        Match::Doubtful(pod) => Match::Known(Known::Pod(pod)),
        other => other,
    }
}

impl From<Entry> for Stored {
    fn from(entry: Entry) -> Self {
        let Entry { pod, terminating, addressed, mirror_of, .. } = entry;
        Self { pod: Arc::new(pod), terminating, addressed, mirror_of }
    }
}

impl Stored {
    fn judge(&self, key: Key<'_>) -> Match {
        let known = || Match::Known(Known::Pod(Arc::clone(&self.pod)));
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        match key.uid.filter(|uid| !uid.is_empty()) {
            Some(wanted) if wanted == uid => known(),
            Some(wanted) if self.mirror_of.as_deref() == Some(wanted) => Match::Known(Known::Static),
            Some(_) => Match::OtherUid(uid.to_owned()),
            None if self.mirror_of.is_some() => Match::Known(Known::Static),
            None if self.terminating => Match::Terminating,
            None if self.addressed => Match::Doubtful(Arc::clone(&self.pod)),
            None => known(),
        }
    }
}

fn insert(pods: &mut HashMap<Name, Stored>, entry: Entry) {
    let metadata = &entry.pod.metadata;
    pods.insert((metadata.namespace.clone(), metadata.name.clone()), entry.into());
}

#[cfg(test)]
mod tests {
    use redirect::Metadata;

    use super::*;

    fn entry(name: &str, uid: &str) -> Entry {
        Entry {
            pod: Pod {
                metadata: Metadata {
                    name: name.into(),
                    namespace: "n".into(),
                    uid: Some(uid.into()),
                    ..Metadata::default()
                },
                ..Pod::default()
            },
            terminating: false,
            finished: false,
            addressed: false,
            host_network: false,
            started: None,
            last_container: None,
            mirror_of: None,
        }
    }

    fn key<'a>(name: &'a str, uid: Option<&'a str>) -> Key<'a> {
        Key { namespace: "n", name, uid }
    }

    fn uid(found: &Match) -> Option<&str> {
        match found {
            Match::Known(Known::Pod(pod)) | Match::Doubtful(pod) => pod.metadata.uid.as_deref(),
            _ => None,
        }
    }

    #[test]
    fn a_successor_of_the_same_name_never_gets_its_predecessors_settings() {
        let mut store = Store::default();
        store.apply(entry("web-0", "old"));
        assert_eq!(store.find(key("web-0", Some("new"))), Match::OtherUid("old".into()));
        store.apply(entry("web-0", "new"));
        assert_eq!(uid(&store.find(key("web-0", Some("new")))), Some("new"));
        // The deletion of the old one comes late.
        store.remove(&entry("web-0", "old"));
        assert_eq!(uid(&store.find(key("web-0", Some("new")))), Some("new"));
        store.remove(&entry("web-0", "new"));
        assert_eq!((store.find(key("web-0", Some("new"))), store.len()), (Match::Unknown, 0));
    }

    #[test]
    fn without_a_uid_a_terminating_pod_is_never_used_and_one_with_a_sandbox_is_doubtful() {
        let mut store = Store::default();
        store.apply(Entry { terminating: true, addressed: true, ..entry("a", "1") });
        assert_eq!(store.find(key("a", None)), Match::Terminating);
        assert_eq!(store.find(key("a", Some(""))), Match::Terminating);
        assert_eq!(uid(&store.find(key("a", Some("1")))), Some("1"));
        store.apply(Entry { addressed: true, ..entry("a", "1") });
        assert!(matches!(store.find(key("a", None)), Match::Doubtful(_)));
        store.apply(entry("a", "1"));
        assert!(matches!(store.find(key("a", None)), Match::Known(_)));
        // What was asked for just now is the newest.
        let asked = judge(Entry { addressed: true, ..entry("a", "1") }, key("a", None));
        assert!(matches!(asked, Match::Known(_)));
        assert_eq!(judge(Entry { terminating: true, ..entry("a", "1") }, key("a", None)), Match::Terminating);
    }

    #[test]
    fn the_mirror_of_a_static_pod_is_known_by_the_hash_of_its_manifest() {
        let mut store = Store::default();
        store.apply(Entry { mirror_of: Some("hash".into()), ..entry("a", "1") });
        assert_eq!(store.find(key("a", Some("hash"))), Match::Known(Known::Static));
        assert_eq!(store.find(key("a", None)), Match::Known(Known::Static));
        assert_eq!(store.find(key("a", Some("other"))), Match::OtherUid("1".into()));
    }

    #[test]
    fn a_list_replaces_everything_at_its_end_and_nothing_before() {
        let mut store = Store::default();
        store.apply(entry("gone", "1"));
        store.begin();
        store.list(entry("a", "2"));
        assert_eq!(uid(&store.find(key("gone", None))), Some("1"));
        assert_eq!(store.find(key("a", None)), Match::Unknown);
        // Broken off, and begun anew.
        store.begin();
        store.list(entry("b", "3"));
        store.end();
        assert_eq!(store.find(key("gone", None)), Match::Unknown);
        assert_eq!(store.find(key("a", None)), Match::Unknown);
        assert_eq!((uid(&store.find(key("b", None))), store.len()), (Some("3"), 1));
    }
}
