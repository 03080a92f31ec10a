// SPDX-License-Identifier: Apache-2.0
//! Killed with SIGKILL after each write, rename, unlink and fsync.

use std::collections::BTreeSet;

use crate::loaders::{Network, containerd, crio, multus};
use crate::world::{OWN, Primary, World, killed, run, same};

/// Configurations that take different steps.
const CASES: &[(Primary, &str)] = &[
    (Primary::List, "chained"),
    (Primary::Conf, "chained"),
    (Primary::Json, "chained"),
    (Primary::LinkToConf, "chained"),
    (Primary::LinkToList, "chained"),
    (Primary::List, "own"),
    (Primary::Conf, "own"),
    (Primary::List, "standalone"),
];

#[test]
fn killed_at_any_step_of_a_first_installation_the_next_one_or_a_removal_ends_it() {
    let reached = every_kill(|case, point, world| {
        let before = world.tree();
        if !killed(&run(world.driver("ensure", case.1).env("WAYLAY_FAULT", point))) {
            return false;
        }
        every_loader_has_a_network(world, case.1, point);
        let half = snapshot(world);
        installs_and_removes(world, case.1, &before, point);

        restore(world, &half);
        removes(world, case.1, &before, point);
        true
    });
    assert!(reached.iter().any(|point| point.starts_with("install:entry:rename")));
}

#[test]
fn killed_at_any_step_of_an_upgrade_after_the_vendor_wrote_the_next_one_ends_it() {
    every_kill(|case, point, world| {
        let before = world.tree();
        assert!(!killed(&run(&mut world.driver("ensure", case.1))), "{case:?}");
        world.upgrade();
        for (path, entry) in before.iter().filter(|(path, _)| path.starts_with(world.root.join("conf"))) {
            if entry.0 & 0o170_000 == 0o100_000 {
                world.overwrite(
                    path.file_name().unwrap().to_str().unwrap(),
                    &String::from_utf8_lossy(&entry.3),
                );
            }
        }
        if !killed(&run(world.driver("ensure", case.1).env("WAYLAY_FAULT", point))) {
            return false;
        }
        every_loader_has_a_network(world, case.1, point);
        assert!(!killed(&run(&mut world.driver("ensure", case.1))));
        is_installed(world, case.1, point);
        let plugin = std::fs::read(world.root.join("bin/istio-cni")).unwrap();
        assert!(plugin == std::fs::read(world.root.join("image/istio-cni")).unwrap(), "{case:?} {point}");
        true
    });
}

#[test]
fn killed_at_any_step_of_a_removal_the_next_one_or_an_installation_ends_it() {
    let reached = every_kill(|case, point, world| {
        let before = world.tree();
        assert!(!killed(&run(&mut world.driver("ensure", case.1))));
        if !killed(&run(world.driver("remove", case.1).env("WAYLAY_FAULT", point))) {
            return false;
        }
        every_loader_has_a_network(world, case.1, point);
        let half = snapshot(world);
        removes(world, case.1, &before, point);

        restore(world, &half);
        installs_and_removes(world, case.1, &before, point);
        true
    });
    assert!(reached.contains("install:strip:rename") && reached.contains("install:delete-binary:rename"));
}

#[test]
fn every_point_is_reached() {
    let reached: BTreeSet<&str> = install::POINTS
        .iter()
        .copied()
        .filter(|point| {
            CASES.iter().any(|case| {
                let world = World::new(case.0);
                world.file("bin/istio-cni", "an older one", 0o755);
                let ensured = killed(&run(world.driver("ensure", case.1).env("WAYLAY_FAULT", point)));
                ensured || killed(&run(world.driver("remove", case.1).env("WAYLAY_FAULT", point)))
            })
        })
        .collect();
    assert_eq!(reached, install::POINTS.iter().copied().collect());
}

/// Run `attempt` for each case, point and repetition that it dies at. Returns the points that were reached.
fn every_kill(attempt: impl Fn(&(Primary, &str), &str, &World) -> bool) -> BTreeSet<&'static str> {
    let mut reached = BTreeSet::new();
    let mut kills = 0;
    for case in CASES {
        for point in install::POINTS {
            for nth in 1.. {
                if !attempt(case, &format!("{point}#{nth}"), &World::new(case.0)) {
                    break;
                }
                reached.insert(*point);
                kills += 1;
            }
        }
    }
    println!("killed {kills} times, at {} of {} points", reached.len(), install::POINTS.len());
    reached
}

fn installs_and_removes(world: &World, mode: &str, before: &crate::world::Tree, what: &str) {
    assert!(!killed(&run(&mut world.driver("ensure", mode))), "{what}");
    is_installed(world, mode, what);
    let installed = world.tree();
    assert!(!killed(&run(&mut world.driver("ensure", mode))), "{what}");
    same(&world.tree(), &installed, what);
    removes(world, mode, before, what);
}

fn removes(world: &World, mode: &str, before: &crate::world::Tree, what: &str) {
    assert!(!killed(&run(&mut world.driver("remove", mode))), "{what}");
    same(&world.tree(), before, &format!("{mode} {what}"));
}

pub(crate) fn every_loader_has_a_network(world: &World, mode: &str, what: &str) {
    for (runtime, loaded) in [("containerd", containerd(&world.root)), ("CRI-O", crio(&world.root))] {
        // In standalone mode, without Multus, the primary network's file comes first.
        let network = loaded.unwrap_or_else(|error| panic!("{runtime}, {mode}, {what}: {error:?}"));
        assert!(["k8s-pod-network", "ovn"].contains(&network.name.as_str()), "{mode} {what}: {network:?}");
    }
    assert!(
        multus(&world.root, "k8s-pod-network").or_else(|_| multus(&world.root, "ovn")).is_ok(),
        "{mode} {what}"
    );
}

pub(crate) fn is_installed(world: &World, mode: &str, what: &str) {
    let networks = if mode == "standalone" {
        vec![multus(&world.root, "istio-cni").unwrap()]
    } else {
        vec![containerd(&world.root).unwrap(), crio(&world.root).unwrap()]
    };
    assert!(networks.iter().all(Network::is_ours), "{mode} {what}: {networks:?}");
    assert_eq!(networks.iter().any(|network| network.file == OWN), mode == "own");
}

pub(crate) fn snapshot(world: &World) -> std::path::PathBuf {
    let copy = world.root.join("copy");
    for dir in ["bin", "conf"] {
        std::fs::create_dir_all(&copy).unwrap();
        assert!(
            run(std::process::Command::new("cp").arg("-a").arg(world.root.join(dir)).arg(&copy))
                .status
                .success()
        );
    }
    copy
}

pub(crate) fn restore(world: &World, copy: &std::path::Path) {
    for dir in ["bin", "conf"] {
        std::fs::remove_dir_all(world.root.join(dir)).unwrap();
        std::fs::rename(copy.join(dir), world.root.join(dir)).unwrap();
    }
}
