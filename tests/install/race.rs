// SPDX-License-Identifier: Apache-2.0
//! The loaders look all the time while another process installs, upgrades, is overwritten and removes.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use install::{Installer, Leaving, Mode};

use crate::loaders::{Failure, Network, containerd, containerd_follows, crio, multus};
use crate::multus::Multus;
use crate::world::{Ending, LIST, OWN, Primary, World, run, same};

/// In all, over the configurations.
const CYCLES: u32 = 1000;
const CASES: &[(Primary, &str)] = &[
    (Primary::List, "chained"),
    (Primary::Conf, "chained"),
    (Primary::Json, "chained"),
    (Primary::List, "own"),
    (Primary::List, "standalone"),
];

type Loader = fn(&Path) -> Result<Network, Failure>;

#[test]
fn in_a_thousand_cycles_no_loader_ever_misses_the_network() {
    for (primary, mode) in CASES {
        let world = World::new(*primary);
        let before = world.tree();
        let ended = AtomicBool::new(false);
        let real_multus = Multus::new(&world.root);
        let name = if matches!(primary, Primary::List) { "k8s-pod-network" } else { "ovn" };
        // Only in this mode there is a file of this name, while we are installed.
        let at_times = (*mode == "standalone").then_some("istio-cni");
        let primary_by_name: Loader = |root| multus(root, "k8s-pod-network").or_else(|_| multus(root, "ovn"));
        let loads = thread::scope(|scope| {
            let loaders: [(&str, Loader); 3] =
                [("containerd", containerd), ("CRI-O", crio), ("Multus", primary_by_name)];
            let look = |(runtime, load): (&'static str, Loader)| {
                let (ended, root) = (&ended, &world.root);
                scope.spawn(move || {
                    let (mut loads, mut with_us) = (0u32, 0u32);
                    while !ended.load(Ordering::Relaxed) {
                        match load(root) {
                            Ok(network) => {
                                assert!(
                                    ["k8s-pod-network", "ovn"].contains(&network.name.as_str()),
                                    "{network:?}"
                                );
                                with_us += u32::from(network.is_ours());
                            }
                            Err(error) => panic!("{runtime}, {mode}: {error:?}"),
                        }
                        loads += 1;
                        // Leaves the processors to who writes.
                        thread::sleep(Duration::from_micros(200));
                    }
                    (runtime, loads, with_us)
                })
            };
            let loaders = loaders.map(look);
            let real = |name: &'static str, at_times| {
                let (ended, multus) = (&ended, &real_multus);
                scope.spawn(move || multus.load_until(ended, name, at_times))
            };
            let real = [Some(real(name, false)), at_times.map(|name| real(name, true))];
            let cycles = CYCLES / u32::try_from(CASES.len()).unwrap();
            let ending = Ending(&ended);
            let output = run(&mut world.driver(&cycles.to_string(), mode));
            drop(ending);
            assert!(output.status.success(), "{mode}: {output:?}");
            let real = real.map(|thread| thread.map(|thread| thread.join().unwrap()));
            println!("{primary:?} {mode}: the real Multus: {real:?}");
            assert!(real.iter().flatten().all(|seen| seen.loads >= 3), "{real:?}");
            loaders.map(|loader| loader.join().unwrap())
        });
        println!("{primary:?} {mode}: loads, and with our entry: {loads:?}");
        assert!(
            loads.iter().all(|(_, loads, with_us)| *loads > 50 && (*with_us > 5 || *mode == "standalone"))
        );
        same(&world.tree(), &before, mode);
    }
}

#[test]
fn containerd_notices_each_change_although_it_ignores_new_names() {
    for (primary, own) in [
        (Primary::List, false),
        (Primary::Conf, false),
        (Primary::Json, false),
        (Primary::LinkToList, false),
        (Primary::List, true),
    ] {
        let world = World::new(primary);
        let (sender, loaded) = mpsc::channel();
        let root = world.root.clone();
        let follower = thread::spawn(move || containerd_follows(root, &sender));
        let until = |ours: bool| loop {
            let network = loaded
                .recv_timeout(Duration::from_secs(10))
                .unwrap_or_else(|_| panic!("{primary:?}: not noticed"));
            if network.unwrap().is_ours() == ours {
                break;
            }
        };
        until(false);
        let mode = if own {
            Mode::OwnFile { name: OWN.to_owned(), primary: None }
        } else {
            Mode::Chained { file: None }
        };
        let installer = Installer::new(world.settings(mode)).unwrap();
        installer.ensure().unwrap();
        until(true);
        if matches!(primary, Primary::List) && !own {
            world.overwrite("10-calico.conflist", LIST);
            until(false);
            installer.ensure().unwrap();
            until(true);
        }
        installer.remove(Leaving::Nothing).unwrap();
        until(false);
        // One more event, and nobody to tell: that ends it.
        drop(loaded);
        std::fs::write(world.root.join("conf/end"), "x").unwrap();
        follower.join().unwrap();
    }
}

#[test]
fn what_a_vendor_writes_at_the_same_moment_is_not_lost() {
    let world = World::new(Primary::List);
    let ended = AtomicBool::new(false);
    let installer = world.chained();
    thread::scope(|scope| {
        let agent = scope.spawn(|| {
            let mut passes = 0u32;
            while !ended.load(Ordering::Relaxed) {
                // Too many changes in a row are told, not forced.
                let _ = installer.ensure();
                passes += 1;
            }
            passes
        });
        let ending = Ending(&ended);
        for number in 0..3000 {
            let mtu = format!("\"mtu\": {number},");
            world.overwrite("10-calico.conflist", &LIST.replace("\"mtu\": 1e3,", &mtu));
            // The agent may be about to put its edit of the previous version there.
            thread::sleep(Duration::from_micros(number % 7 * 50));
            let is_there =
                || std::fs::read_to_string(world.conf("10-calico.conflist")).unwrap().contains(&mtu);
            // It exchanges back within microseconds, if it is let run.
            let give_up = Instant::now() + Duration::from_secs(2);
            let mut found = is_there();
            while !found && Instant::now() < give_up {
                thread::sleep(Duration::from_millis(1));
                found = is_there();
            }
            assert!(found, "write {number} is lost");
        }
        drop(ending);
        println!("{} passes", agent.join().unwrap());
    });
}
