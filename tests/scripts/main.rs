// SPDX-License-Identifier: Apache-2.0
//! What brings Waylay to a cluster: the manifests, the image, and the shell scripts, each under every shell and awk that a
//! node may have.
//!
//! No cluster: `kubectl` is a program of the test that records its calls. Nothing outside a temporary directory is touched.

#![allow(clippy::unwrap_used, reason = "test code")]

mod cleanup;
mod cluster;
mod image;
mod manifests;
mod preflight;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The repository.
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The shells that run the scripts on nodes: Debian's, and that of small systems.
const SHELLS: [&[&str]; 2] = [&["dash"], &["busybox", "sh"]];

/// A directory that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("waylay-scripts-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Write a file, and the directories that it is in.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn program(&self, name: &str, text: &str) -> PathBuf {
        let path = self.write(name, text);
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Everything below `name`: path, mode, and content or target, sorted.
    fn tree(&self, name: &str) -> Vec<(PathBuf, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut todo = vec![self.path(name)];
        while let Some(path) = todo.pop() {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            entries.push((path, metadata.permissions().mode(), content));
        }
        entries.sort();
        entries
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// What it said, if it ended with `code`.
    #[track_caller]
    fn with(&self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        format!("{}{}", self.stdout, self.stderr)
    }
}

fn run(command: &mut Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A script of install-scripts under `shell`. Its PATH begins with `bin`.
fn script(shell: &[&str], name: &str, bin: &Path, arguments: &[&str]) -> Ended {
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    run(Command::new(shell[0])
        .args(&shell[1..])
        .arg(format!("{REPOSITORY}/install-scripts/{name}"))
        .args(arguments)
        .env_remove("KUBECTL")
        .env("PATH", path))
}

fn scripts() -> Vec<String> {
    let directory = fs::read_dir(format!("{REPOSITORY}/install-scripts")).unwrap();
    let mut names: Vec<_> = directory.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["install.sh", "node-cleanup.sh", "preflight.sh", "uninstall.sh"]);
    names
}

#[test]
fn every_script_explains_itself_and_refuses_what_it_does_not_know() {
    let scratch = Scratch::new();
    for (shell, name) in SHELLS.iter().flat_map(|shell| scripts().into_iter().map(move |name| (shell, name)))
    {
        let help = script(shell, &name, &scratch.0, &["--help"]).with(0);
        assert!(help.starts_with(&format!("usage: {name} ")) && help.contains("--dry-run"), "{help}");
        for arguments in [&["--unknown"][..], &["extra"], &["--dry-run", "--namespace"], &["--root"]] {
            let ended = script(shell, &name, &scratch.0, arguments);
            assert!(ended.with(64).contains("see --help"), "{name} {arguments:?}: {ended:?}");
            assert_eq!(ended.stdout, "");
        }
    }
}

#[test]
fn every_script_is_posix_and_clean() {
    let scripts = scripts().into_iter().map(|name| format!("{REPOSITORY}/install-scripts/{name}"));
    run(Command::new("shellcheck").args(["-s", "sh"]).args(scripts)).with(0);
}

/// A directory with `awk` as that program.
fn awk(scratch: &Scratch, name: &str) -> PathBuf {
    let program = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(name)).into_iter().find(|p| p.exists());
    let bin = scratch.path(&format!("awk-{name}"));
    fs::create_dir_all(&bin).unwrap();
    symlink(program.unwrap_or_else(|| panic!("{name} is installed")), bin.join("awk")).unwrap();
    bin
}
