// SPDX-License-Identifier: Apache-2.0
//! What is in the directories after installation and removal.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use install::{Installer, Kind, Leaving, Mode, Notice};
use serde_json::Value;

use crate::crash::is_installed;
use crate::loaders::{containerd, crio, multus};
use crate::world::{LIST, OWN, Primary, World, same};

#[test]
fn removal_leaves_every_byte_and_mode_as_it_was() {
    for (primary, mode) in [
        (Primary::List, "chained"),
        (Primary::Conf, "chained"),
        (Primary::Json, "chained"),
        (Primary::LinkToList, "chained"),
        (Primary::LinkToConf, "chained"),
        (Primary::Many, "chained"),
        (Primary::Many, "own"),
        (Primary::Conf, "own"),
        (Primary::LinkToConf, "own"),
        (Primary::Nothing, "standalone"),
        (Primary::Conf, "10-ovn.conf"),
        (Primary::Conf, "10-ovn.conflist"),
        (Primary::Many, "20-calico.conflist"),
    ] {
        let world = World::new(primary);
        let before = world.tree();
        let installer = installer(&world, mode);
        let report = installer.ensure().unwrap_or_else(|error| panic!("{primary:?} {mode}: {error}"));
        if mode == "20-calico.conflist" {
            assert_eq!(report.notices, [Notice::Preempted(world.conf("10-ovn.conf"))]);
        } else {
            is_installed(&world, mode, &format!("{primary:?}"));
        }
        assert!(report.changed.len() >= 2, "{report:?}");
        let installed = world.tree();
        assert_eq!(
            installer.ensure().unwrap().changed,
            Vec::<std::path::PathBuf>::new(),
            "{primary:?} {mode}"
        );
        same(&world.tree(), &installed, mode);
        installer.remove(Leaving::Nothing).unwrap();
        same(&world.tree(), &before, &format!("{primary:?} {mode}"));
        assert_eq!(installer.remove(Leaving::Nothing).unwrap(), Vec::<std::path::PathBuf>::new());
    }
}

fn installer(world: &World, mode: &str) -> Installer {
    let mode = match mode {
        "chained" => Mode::Chained { file: None },
        "own" => Mode::OwnFile { name: OWN.to_owned(), primary: None },
        "standalone" => Mode::Standalone { name: "istio-cni.conf".to_owned() },
        file => Mode::Chained { file: Some(file.to_owned()) },
    };
    Installer::new(world.settings(mode)).unwrap()
}

#[test]
fn nothing_is_written_when_everything_is_in_place() {
    let world = World::new(Primary::List);
    world.chained().ensure().unwrap();
    let stamp = |path: &std::path::Path| {
        fs::metadata(path).map(|m| (m.ino(), m.mtime_nsec(), m.ctime_nsec())).unwrap()
    };
    let paths = [
        world.conf("10-calico.conflist"),
        world.root.join("bin/istio-cni"),
        world.root.join("conf"),
        world.root.join("bin"),
    ];
    let before = paths.clone().map(|path| stamp(&path));
    for _ in 0..3 {
        world.chained().ensure().unwrap();
    }
    assert_eq!(paths.map(|path| stamp(&path)), before);
}

#[test]
fn an_entry_of_another_istio_cni_is_taken_over_and_gone_after_removal() {
    let world = World::new(Primary::Upstream);
    world.file("bin/istio-cni", "another program", 0o700);
    world.chained().ensure().unwrap();
    is_installed(&world, "chained", "");
    let text = fs::read_to_string(world.conf("10-calico.conflist")).unwrap();
    assert!(text.contains("waylay") || !text.contains("\"/x\""), "{text}");
    world.chained().remove(Leaving::Nothing).unwrap();
    let left = fs::read_to_string(world.conf("10-calico.conflist")).unwrap();
    assert_eq!(left, LIST.replace("true}", "true,\"istio\":0}"));
    assert!(!world.root.join("bin/istio-cni").exists());
}

#[test]
fn the_file_that_the_runtime_loads_now_is_followed_and_the_previous_one_cleaned() {
    let world = World::new(Primary::List);
    let before = world.tree();
    world.chained().ensure().unwrap();
    world.file("conf/05-cilium.conflist", &LIST.replace("k8s-pod-network", "cilium"), 0o600);
    let report = world.chained().ensure().unwrap();
    assert_eq!(report.file, world.conf("05-cilium.conflist"));
    assert_eq!(containerd(&world.root).unwrap().name, "cilium");
    assert!(containerd(&world.root).unwrap().is_ours());
    assert_eq!(fs::read_to_string(world.conf("10-calico.conflist")).unwrap(), LIST);

    fs::remove_file(world.conf("05-cilium.conflist")).unwrap();
    world.chained().ensure().unwrap();
    is_installed(&world, "chained", "");
    world.chained().remove(Leaving::Nothing).unwrap();
    same(&world.tree(), &before, "");
}

#[test]
fn a_primary_network_that_writes_its_single_configuration_again_is_converted_again() {
    let world = World::new(Primary::Conf);
    world.chained().ensure().unwrap();
    world.file(
        "conf/10-ovn.conf",
        "{\"cniVersion\":\"0.3.1\",\"name\":\"ovn2\",\"type\":\"portmap\"}",
        0o600,
    );
    world.chained().ensure().unwrap();
    let network = crio(&world.root).unwrap();
    assert!(
        network.is_ours() && network.plugins[0] == "portmap" && network.version == "0.3.1",
        "{network:?}"
    );
    assert!(!world.conf("10-ovn.conf").exists());
    world.chained().remove(Leaving::Nothing).unwrap();
    assert!(fs::read_to_string(world.conf("10-ovn.conf")).unwrap().contains("ovn2"));
    assert!(!world.conf("10-ovn.conflist").exists());
}

#[test]
fn a_copy_follows_the_primary_networks_file() {
    let world = World::new(Primary::List);
    let installer = installer(&world, "own");
    installer.ensure().unwrap();
    let copy = fs::read_to_string(world.conf(OWN)).unwrap();
    assert_eq!(fs::metadata(world.conf(OWN)).unwrap().mode() & 0o777, 0o600);
    world.overwrite("10-calico.conflist", &LIST.replace("1e3", "1400"));
    installer.ensure().unwrap();
    assert_eq!(fs::read_to_string(world.conf(OWN)).unwrap(), copy.replace("1e3", "1400"));
    // A file of somebody else under that name stays.
    fs::write(world.conf(OWN), LIST).unwrap();
    let error = installer.ensure().unwrap_err();
    assert_eq!(error.kind, Kind::NotOurs);
    assert_eq!(fs::read_to_string(world.conf(OWN)).unwrap(), LIST);
    installer.remove(Leaving::Nothing).unwrap();
    assert_eq!(fs::read_to_string(world.conf(OWN)).unwrap(), LIST);
}

#[test]
fn from_one_mode_to_another_the_plugin_runs_once() {
    let world = World::new(Primary::Conf);
    let before = world.tree();
    for mode in ["chained", "own", "standalone", "chained", "standalone", "own", "chained"] {
        installer(&world, mode).ensure().unwrap();
        let ours = |name: &str| {
            fs::read_to_string(world.conf(name)).is_ok_and(|text| text.contains("\"istio-cni\""))
        };
        let files = [ours("10-ovn.conflist"), ours(OWN), ours("istio-cni.conf")];
        assert_eq!(files, [mode == "chained", mode == "own", mode == "standalone"], "{mode}");
        is_installed(&world, mode, "");
    }
    installer(&world, "chained").remove(Leaving::Nothing).unwrap();
    same(&world.tree(), &before, "");
}

#[test]
fn multus_finds_the_standalone_file_by_the_networks_name() {
    let world = World::new(Primary::List);
    installer(&world, "standalone").ensure().unwrap();
    let network = multus(&world.root, "istio-cni").unwrap();
    assert_eq!(
        (network.file.as_str(), network.plugins.as_slice()),
        ("istio-cni.conf", &["istio-cni".to_owned()][..])
    );
    let value: Value = serde_json::from_slice(&fs::read(world.conf("istio-cni.conf")).unwrap()).unwrap();
    assert_eq!(value["capabilities"]["io.kubernetes.cri.pod-annotations"], true);
    assert_eq!(containerd(&world.root).unwrap().plugins, ["bridge", "portmap"]);
}

#[test]
fn the_plugin_of_a_newer_release_stays_unless_a_downgrade_is_wanted() {
    let world = World::new(Primary::List);
    world.chained().ensure().unwrap();
    let plugin = world.root.join("bin/istio-cni");
    let newer = fs::read(world.root.join("image/istio-cni.next")).unwrap();
    fs::write(world.root.join("bin/new"), &newer).unwrap();
    fs::rename(world.root.join("bin/new"), &plugin).unwrap();
    let report = world.chained().ensure().unwrap();
    assert_eq!(report.notices, [Notice::NewerPlugin(plugin.clone(), "0.2.0".to_owned())]);
    assert!(fs::read(&plugin).unwrap() == newer);
    let mut settings = world.settings(Mode::Chained { file: None });
    settings.downgrade = true;
    Installer::new(settings).unwrap().ensure().unwrap();
    assert!(fs::read(&plugin).unwrap() == fs::read(world.root.join("image/istio-cni")).unwrap());
    // Half of one, and one that cannot be executed, are mended.
    fs::write(&plugin, &newer[..1000]).unwrap();
    world.chained().ensure().unwrap();
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o600)).unwrap();
    world.chained().ensure().unwrap();
    assert_eq!(fs::metadata(&plugin).unwrap().mode() & 0o777, 0o755);
    assert!(fs::read(&plugin).unwrap() == fs::read(world.root.join("image/istio-cni")).unwrap());
}

#[test]
fn a_plugin_that_is_being_executed_is_replaced() {
    let world = World::new(Primary::List);
    world.chained().ensure().unwrap();
    let plugin = world.root.join("bin/istio-cni");
    let mut running = std::process::Command::new(&plugin)
        .envs([("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "a"), ("CNI_IFNAME", "eth0"), ("CNI_PATH", "/x")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    world.upgrade();
    world.chained().ensure().unwrap();
    assert!(fs::read(&plugin).unwrap() == fs::read(world.root.join("image/istio-cni")).unwrap());
    assert!(running.try_wait().unwrap().is_none(), "it waits for its stdin");
    drop(running.stdin.take());
    running.wait().unwrap();
}

#[test]
fn the_plugin_can_be_left_for_the_pods_that_outlive_us() {
    let world = World::new(Primary::List);
    world.chained().ensure().unwrap();
    world.chained().remove(Leaving::Plugin).unwrap();
    assert_eq!(fs::read_to_string(world.conf("10-calico.conflist")).unwrap(), LIST);
    assert!(world.root.join("bin/istio-cni").exists());
}

#[test]
fn directories_behind_symbolic_links_are_used_as_they_are() {
    let world = World::new(Primary::List);
    for dir in ["bin", "conf"] {
        fs::create_dir_all(world.root.join("current")).unwrap();
        fs::rename(world.root.join(dir), world.root.join("current").join(dir)).unwrap();
        symlink(format!("current/{dir}"), world.root.join(dir)).unwrap();
    }
    world.chained().ensure().unwrap();
    is_installed(&world, "chained", "");
    assert!(fs::symlink_metadata(world.root.join("conf")).unwrap().is_symlink());
}

#[test]
fn what_a_link_leads_to_stays_and_is_followed() {
    let world = World::new(Primary::LinkToList);
    world.chained().ensure().unwrap();
    assert_eq!(fs::read_to_string(world.root.join("elsewhere/list")).unwrap(), LIST);
    world.file("elsewhere/list", &LIST.replace("1e3", "1400"), 0o600);
    world.chained().ensure().unwrap();
    assert!(fs::read_to_string(world.conf("10-linked.conflist")).unwrap().contains("1400"));
    is_installed(&world, "chained", "");
    world.chained().remove(Leaving::Nothing).unwrap();
    assert_eq!(
        fs::read_link(world.conf("10-linked.conflist")).unwrap().to_str().unwrap(),
        "../elsewhere/list"
    );
}

#[test]
fn a_file_in_the_making_is_waited_for_and_what_is_broken_for_good_passed_over_and_named() {
    let world = World::new(Primary::List);
    world.file("conf/05-cilium.conflist", &LIST[..40], 0o600);
    let error = world.chained().ensure().unwrap_err();
    assert_eq!((error.kind, &error.path), (Kind::BeingWritten, &world.conf("05-cilium.conflist")));
    assert_eq!(fs::read_to_string(world.conf("10-calico.conflist")).unwrap(), LIST);
    assert!(world.root.join("bin/istio-cni").exists(), "the plugin does not wait");

    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    fs::File::options().write(true).open(&error.path).unwrap().set_modified(long_ago).unwrap();
    let report = world.chained().ensure().unwrap();
    assert_eq!(report.file, world.conf("10-calico.conflist"));
    assert!(matches!(&report.notices[..], [Notice::Broken(path, _)] if *path == error.path), "{report:?}");
    assert!(crio(&world.root).unwrap().is_ours());
    assert_eq!(fs::read_to_string(&error.path).unwrap(), LIST[..40]);
}
