// SPDX-License-Identifier: Apache-2.0
//! The agent and `install-cni uninstall` themselves, killed with SIGKILL after each write, rename, unlink and fsync. What
//! else can be on the node then is the matter of [`crate::crash`], which kills the installer without an agent around it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::node::{Agent, Node, agent_binary, faulty_agent_binary};
use nix::sys::signal::Signal;

use crate::crash::{every_loader_has_a_network, is_installed, restore, snapshot};
use crate::world::{Primary, Tree, World, killed, run, same};

const MODE: &str = "chained";

/// What an agent dies at, and what was there before.
type Deaths = &'static [(Primary, &'static str, &'static [&'static str])];

/// Writing a new file, one in the place of another, and removing one.
const NEW: &[&str] = &["half", "write", "sync", "rename", "dirsync"];
const INSTEAD: &[&str] = &["half", "write", "sync", "rename", "unlink", "dirsync"];
const GONE: &[&str] = &["rename", "unlink", "dirsync"];

const INSTALL: Deaths = &[
    (Primary::List, "binary", NEW),
    (Primary::List, "entry", INSTEAD),
    (Primary::Conf, "entry", &["rename"]),
    (Primary::Conf, "delete", GONE),
];
const UPDATE: Deaths = &[(Primary::List, "binary", INSTEAD), (Primary::List, "entry", INSTEAD)];
const REMOVE: Deaths = &[
    (Primary::List, "strip", INSTEAD),
    (Primary::List, "delete-binary", GONE),
    (Primary::Conf, "strip", &["rename"]),
    (Primary::Conf, "delete", GONE),
];

/// A node whose directories are those of a [`World`].
struct Host {
    node: Node,
    world: World,
    before: Tree,
}

impl Host {
    fn new(primary: Primary) -> Self {
        let world = World::new(primary);
        let before = world.tree();
        Self { node: Node::new(), world, before }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.world.root.join(name).display().to_string();
        vec![
            ("CNI_ENABLE_INSTALL", "true".to_owned()),
            ("CNI_BIN_SOURCE", path("image/istio-cni")),
            ("MOUNTED_CNI_BIN_DIR", path("bin")),
            ("MOUNTED_CNI_NET_DIR", path("conf")),
        ]
    }

    /// An agent whose entry says `namespace`; it dies at `fault`.
    fn agent(&self, namespace: &str, fault: Option<&str>) -> Agent {
        let mut settings = self.settings();
        settings.push(("EXCLUDE_NAMESPACES", namespace.to_owned()));
        settings.extend(fault.map(|point| ("WAYLAY_FAULT", point.to_owned())));
        let settings: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.node.spawn_agent(if fault.is_some() { faulty_agent_binary() } else { agent_binary() }, &settings)
    }

    fn uninstall(&self, fault: Option<&str>) -> bool {
        let binary = if fault.is_some() { faulty_agent_binary() } else { agent_binary() };
        let mut command = Command::new(binary);
        killed(&run(command.arg("uninstall").envs(self.settings()).envs(fault.map(|f| ("WAYLAY_FAULT", f)))))
    }

    /// The next start: everything is in place, of the image's release and with the entry that says `namespace`.
    fn installs(&self, namespace: &str, what: &str) {
        let mut agent = self.agent(namespace, None);
        self.node.wait_for_agent();
        let give_up = Instant::now() + Duration::from_secs(10);
        while !agent.http(8000, "/readyz").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < give_up, "{what}: {}", fs::read_to_string(self.node.log()).unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
        agent.signal(Signal::SIGTERM);
        assert!(agent.wait(), "{what}");
        is_installed(&self.world, MODE, what);
        let read = |name: &str| fs::read(self.world.root.join(name)).unwrap();
        assert!(read("bin/istio-cni") == read("image/istio-cni"), "{what}: an older plugin");
        let mut conf = fs::read_dir(self.world.root.join("conf")).unwrap();
        let ours = |path| fs::read_to_string(path).is_ok_and(|text| text.contains(namespace));
        assert!(conf.any(|entry| ours(entry.unwrap().path())), "{what}: no entry of {namespace}");
    }

    fn is_clean(&self, what: &str) {
        same(&self.world.tree(), &self.before, what);
    }

    /// From this state, a start and an uninstall, an uninstall alone, and `node-cleanup.sh` end in what was there before.
    fn ends_well(&self, namespace: &str, what: &str) {
        every_loader_has_a_network(&self.world, MODE, what);
        let half = snapshot(&self.world);
        let keep = || {
            restore(&self.world, &half);
            snapshot(&self.world);
        };
        self.installs(namespace, what);
        assert!(!self.uninstall(None));
        self.is_clean(&format!("{what}, start and uninstall"));

        keep();
        assert!(!self.uninstall(None));
        self.is_clean(&format!("{what}, uninstall"));

        restore(&self.world, &half);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../install-scripts/node-cleanup.sh");
        // Agents of other tests run.
        let arguments =
            ["--cni-conf-dir", "/conf", "--cni-bin-dir", "/bin", "--run-dir", "/run", "--force", "--root"];
        let output = run(Command::new("sh").arg(script).args(arguments).arg(&self.world.root));
        assert!(output.status.success(), "{what}: {output:?}");
        self.is_clean(&format!("{what}, node-cleanup.sh"));
    }
}

/// Each death on a node of its own.
fn every_death(deaths: Deaths, die: impl Fn(&Host, &str)) {
    let (begin, mut count) = (Instant::now(), 0);
    for (primary, operation, steps) in deaths {
        for step in *steps {
            let point = format!("install:{operation}:{step}");
            assert!(install::POINTS.contains(&point.as_str()), "{point}");
            die(&Host::new(*primary), &point);
            count += 1;
        }
    }
    println!("killed {count} times in {:?}", begin.elapsed());
}

#[test]
fn every_point_is_one_that_the_agent_dies_at() {
    let tried: BTreeSet<String> = [INSTALL, UPDATE, REMOVE]
        .concat()
        .iter()
        .flat_map(|(_, operation, steps)| steps.iter().map(move |step| format!("install:{operation}:{step}")))
        .collect();
    assert_eq!(tried, install::POINTS.iter().map(ToString::to_string).collect());
}

#[test]
fn an_agent_killed_at_any_step_of_its_installation_leaves_what_the_next_one_ends() {
    every_death(INSTALL, |host, point| {
        assert!(host.agent("of-the-first", Some(point)).killed(), "{point}");
        host.ends_well("of-the-next", point);
    });
}

#[test]
fn an_agent_killed_at_any_step_of_an_update_leaves_what_the_next_one_ends() {
    every_death(UPDATE, |host, point| {
        host.installs("of-the-older", point);
        host.world.upgrade();
        assert!(host.agent("of-the-newer", Some(point)).killed(), "{point}");
        is_installed(&host.world, MODE, point);
        host.ends_well("of-the-next", point);
    });
}

#[test]
fn an_uninstall_killed_at_any_step_leaves_what_the_next_one_ends() {
    every_death(REMOVE, |host, point| {
        host.installs("of-the-first", point);
        assert!(host.uninstall(Some(point)), "{point}");
        host.ends_well("of-the-next", point);
    });
}
