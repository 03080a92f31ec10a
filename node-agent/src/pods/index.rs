// SPDX-License-Identifier: Apache-2.0
//! Which pods there are, by name and by the file that they came from. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use redirect::Pod;

/// Namespace and name.
type Name = (String, String);

/// The pods of all files. When several files have a pod of the same name, the file whose name is last in byte order
/// wins, whenever it was written.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pods: BTreeMap<Name, BTreeMap<String, Arc<Pod>>>,
    files: BTreeMap<String, Vec<Name>>,
}

impl Index {
    /// The pod of that name.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let (_, pod) = self.pods.get(&(namespace.to_owned(), name.to_owned()))?.last_key_value()?;
        Some(Arc::clone(pod))
    }

    /// `file` holds these pods now, and no others.
    pub(crate) fn replace(&mut self, file: &str, pods: Vec<Pod>) {
        self.remove(file);
        let mut names = Vec::with_capacity(pods.len());
        for pod in pods {
            let name = (pod.metadata.namespace.clone(), pod.metadata.name.clone());
            self.pods.entry(name.clone()).or_default().insert(file.to_owned(), Arc::new(pod));
            names.push(name);
        }
        self.files.insert(file.to_owned(), names);
    }

    /// `file` is gone, or cannot be used.
    pub(crate) fn remove(&mut self, file: &str) {
        for name in self.files.remove(file).unwrap_or_default() {
            if let Some(by_file) = self.pods.get_mut(&name) {
                by_file.remove(file);
                if by_file.is_empty() {
                    self.pods.remove(&name);
                }
            }
        }
    }

    /// The files that have pods in the index.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// How many files have pods in the index.
    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, uid: &str) -> Pod {
        let json = serde_json::json!({"metadata": {"name": name, "namespace": "n", "uid": uid}});
        serde_json::from_value(json).unwrap()
    }

    fn uid(index: &Index, name: &str) -> Option<String> {
        index.find("n", name).and_then(|pod| pod.metadata.uid.clone())
    }

    #[test]
    fn a_file_replaces_its_own_pods_only() {
        let mut index = Index::default();
        index.replace("1.yaml", vec![pod("a", "1"), pod("b", "1")]);
        index.replace("2.yaml", vec![pod("c", "2")]);
        index.replace("1.yaml", vec![pod("b", "3")]);
        assert_eq!(
            (uid(&index, "a"), uid(&index, "b"), uid(&index, "c")),
            (None, Some("3".into()), Some("2".into()))
        );
        index.remove("1.yaml");
        assert_eq!((uid(&index, "b"), index.files()), (None, 1));
        assert_eq!(index.pods.len(), 1);
    }

    #[test]
    fn the_last_file_wins_and_the_other_comes_back() {
        let mut index = Index::default();
        index.replace("2.yaml", vec![pod("a", "2")]);
        index.replace("1.yaml", vec![pod("a", "1")]);
        assert_eq!(uid(&index, "a").as_deref(), Some("2"));
        index.remove("2.yaml");
        assert_eq!(uid(&index, "a").as_deref(), Some("1"));
    }
}
