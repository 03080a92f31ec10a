// SPDX-License-Identifier: Apache-2.0
//! Cgroups of a lab's pods: what no namespace takes along.

use std::fs;
use std::path::{Path, PathBuf};

/// Those of a test are below this name, its pid and a number.
const NAME: &str = "waylay-test";

/// The cgroup directories of one lab, in every hierarchy; removed when dropped.
pub(crate) struct Cgroup(String);

impl Cgroup {
    /// The `n`-th of this process.
    pub(crate) fn new(n: u32) -> Self {
        // A test that was killed could not remove its own.
        for path in cgroups() {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let pid = name.strip_prefix(NAME).and_then(|rest| rest.split('-').nth(1));
            if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
                remove_tree(&path);
            }
        }
        Self(format!("{NAME}-{}-{n}", std::process::id()))
    }

    /// As a runtime wants it.
    pub(crate) fn parent(&self) -> String {
        format!("/{}", self.0)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in cgroups().into_iter().filter(|path| path.ends_with(&self.0)) {
            remove_tree(&path);
        }
    }
}

/// Those directories of the first and second level that may be ours.
fn cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().map_while(Result::ok);
        entries
            .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
            .map(|entry| entry.path())
            .collect()
    };
    let first = below(root);
    let second: Vec<_> = first.iter().flat_map(|dir| below(dir)).collect();
    let ours = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(NAME));
    first.into_iter().chain(second).filter(ours).collect()
}

/// Only empty cgroups can be removed; those of a test that has failed are empty a moment after their processes died.
fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().map_while(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    for _ in 0..200 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    eprintln!("{}: cannot be removed", path.display());
}
