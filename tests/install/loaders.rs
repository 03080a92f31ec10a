// SPDX-License-Identifier: Apache-2.0
//! How the runtimes load a configuration directory, as far as `deployment.md` describes it: written apart from the code
//! under test, with a JSON parser that builds values.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Sender;

use inotify::{EventMask, Inotify, WatchMask};
use serde_json::Value;

/// A network as a runtime has it in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) file: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) plugins: Vec<String>,
}

impl Network {
    pub(crate) fn is_ours(&self) -> bool {
        self.plugins.last().is_some_and(|last| last == "istio-cni")
            && self.plugins.iter().filter(|plugin| *plugin == "istio-cni").count() == 1
    }
}

/// What a look at a directory that changes meanwhile can end in.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A file vanished or changed between two steps: its event makes the runtime load again.
    Raced,
    Broken(#[allow(dead_code, reason = "a failed test prints it")] String),
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| !entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending)))
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> Result<String, Failure> {
    fs::read_to_string(path).map_err(|error| match error.kind() {
        // A dangling link is broken for good.
        io::ErrorKind::NotFound if fs::symlink_metadata(path).is_err() => Failure::Raced,
        _ => Failure::Broken(format!("{}: {error}", path.display())),
    })
}

fn parse(file: &str, text: &str) -> Result<Network, Failure> {
    let broken = |why: &str| Failure::Broken(format!("{file}: {why}: {text:?}"));
    let value: Value = serde_json::from_str(text).map_err(|error| broken(&error.to_string()))?;
    let string = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let plugins: Vec<String> = if file.ends_with(".conflist") {
        value["plugins"]
            .as_array()
            .ok_or_else(|| broken("no plugins"))?
            .iter()
            .map(|p| string(p, "type"))
            .collect()
    } else {
        vec![string(&value, "type")]
    };
    let network = Network {
        file: file.to_owned(),
        name: string(&value, "name"),
        version: string(&value, "cniVersion"),
        plugins,
    };
    let complete = !network.name.is_empty() && !network.plugins.is_empty();
    if complete && network.plugins.iter().all(|kind| !kind.is_empty()) {
        Ok(network)
    } else {
        Err(broken("incomplete"))
    }
}

/// containerd: the first file, or nothing at all.
pub(crate) fn containerd(root: &Path) -> Result<Network, Failure> {
    again(|| {
        let dir = root.join("conf");
        let first = names(&dir).into_iter().next().ok_or_else(|| Failure::Broken("no file".to_owned()))?;
        parse(&first, &read(&dir.join(&first))?)
    })
}

/// CRI-O: the first file that parses and whose plugins all say that they have its version.
pub(crate) fn crio(root: &Path) -> Result<Network, Failure> {
    again(|| {
        let dir = root.join("conf");
        let mut why = Vec::new();
        for name in names(&dir) {
            let text = read(&dir.join(&name))?;
            let network = match parse(&name, &text) {
                Ok(network) => network,
                Err(error) => {
                    why.push(format!("{error:?}"));
                    continue;
                }
            };
            match network
                .plugins
                .iter()
                .find(|kind| !validates(&root.join("bin").join(kind), &network.version))
            {
                None => return Ok(network),
                // The file is not what it was: its event comes.
                Some(_) if fs::read_to_string(dir.join(&name)).ok() != Some(text) => {
                    return Err(Failure::Raced);
                }
                Some(kind) => why.push(format!("{name}: {kind} does not validate")),
            }
        }
        Err(Failure::Broken(why.join("; ")))
    })
}

fn validates(plugin: &Path, version: &str) -> bool {
    let environment =
        [("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
    let run = || Command::new(plugin).env_clear().envs(environment).stdin(Stdio::null()).output();
    let mut output = run();
    // As libcni does: a child of another thread may hold the file that this test wrote.
    for _ in 0..6 {
        if output.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ExecutableFileBusy) {
            std::thread::sleep(std::time::Duration::from_millis(20));
            output = run();
        }
    }
    let answer = output.ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok());
    answer.is_some_and(|a| {
        a["supportedVersions"].as_array().is_some_and(|all| all.iter().any(|v| v == version))
    })
}

/// Multus, for a NetworkAttachmentDefinition without a spec: the file whose network has this name. One that does not parse
/// ends the search.
pub(crate) fn multus(root: &Path, name: &str) -> Result<Network, Failure> {
    again(|| {
        let dir = root.join("conf");
        for file in names(&dir) {
            let network = parse(&file, &read(&dir.join(&file))?)?;
            if network.name == name {
                return Ok(network);
            }
        }
        Err(Failure::Broken(format!("no network {name}")))
    })
}

fn again(load: impl Fn() -> Result<Network, Failure>) -> Result<Network, Failure> {
    for _ in 0..1000 {
        match load() {
            Err(Failure::Raced) => {}
            done => return done,
        }
    }
    Err(Failure::Raced)
}

/// containerd's memory: loaded at start and after each event that it does not ignore. Ends when the directory goes.
pub(crate) fn containerd_follows(root: PathBuf, loaded: &Sender<Result<Network, Failure>>) {
    let mut inotify = Inotify::init().unwrap();
    inotify.watches().add(root.join("conf"), WatchMask::ALL_EVENTS).unwrap();
    if loaded.send(containerd(&root)).is_err() {
        return;
    }
    let mut buffer = [0; 4096];
    loop {
        let mut load = false;
        for event in inotify.read_events_blocking(&mut buffer).unwrap() {
            if event.mask.intersects(EventMask::IGNORED | EventMask::DELETE_SELF) {
                return;
            }
            // fsnotify's Write, Rename and Remove. It calls IN_CREATE and IN_MOVED_TO Create, and IN_ATTRIB Chmod.
            load |= event.mask.intersects(EventMask::MODIFY | EventMask::MOVED_FROM | EventMask::DELETE);
        }
        if load && loaded.send(containerd(&root)).is_err() {
            return;
        }
    }
}
