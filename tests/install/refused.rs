// SPDX-License-Identifier: Apache-2.0
//! What the system refuses: an error of one line that names path, cause and remedy, and nothing of others lost.

use std::process::Command;

use install::{Installer, Mode};

use crate::crash::is_installed;
use crate::world::{LIST, Primary, World, run, same};

/// Run the driver in a mount namespace of its own, after `prepare`; it must fail with one line, which is returned.
fn refused(world: &World, verb: &str, prepare: &str) -> String {
    let driver = world.driver(verb, "chained");
    let output = run(Command::new("unshare")
        .args([
            "--mount",
            "--propagation=private",
            "sh",
            "-euc",
            &format!("cd \"$2\"; {prepare}; exec \"$0\" \"$1\" \"$2\" \"$3\""),
        ])
        .arg(driver.get_program())
        .args(driver.get_args()));
    assert_eq!(output.status.code(), Some(1), "{prepare}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

#[test]
fn read_only_directories_are_named_with_the_remedy() {
    for (dir, file) in [("bin", "istio-cni"), ("conf", "10-calico.conflist")] {
        let world = World::new(Primary::List);
        let text =
            refused(&world, "ensure", &format!("mount --bind {dir} {dir}; mount -o remount,bind,ro {dir}"));
        let path = world.root.join(dir).join(file);
        assert!(text.starts_with(&format!("write {}", path.display())), "{text}");
        assert!(text.ends_with(": read-only file system; mount it writable, or configure the directory that the runtime uses on this platform"), "{text}");
    }
}

#[test]
fn a_full_disk_leaves_no_half_written_plugin_or_file() {
    let world = World::new(Primary::List);
    let full = "mount -t tmpfs -o size=100k none bin";
    let text = refused(&world, "ensure", &format!("{full}; trap 'ls -A bin >&2' EXIT"));
    assert!(text.ends_with("no space left on device; free space on the node's disk"), "{text}");
    let left = "mount -t tmpfs -o size=100k none conf; echo '{\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}]}' >conf/a.conflist; \
                head -c 200k /dev/zero >conf/filler 2>/dev/null || true; \"$0\" \"$1\" \"$2\" \"$3\" >out || true; ls -A conf >names; cat conf/a.conflist >text";
    let text = refused(&world, "ensure", left);
    assert!(text.contains("no space left on device"), "{text}");
    assert_eq!(std::fs::read_to_string(world.root.join("names")).unwrap(), "a.conflist\nfiller\n");
    assert_eq!(
        std::fs::read_to_string(world.root.join("text")).unwrap(),
        "{\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}]}\n"
    );
}

#[test]
fn a_directory_of_another_user_is_named_with_the_capability() {
    let world = World::new(Primary::List);
    std::os::unix::fs::chown(world.root.join("bin"), Some(997), Some(997)).unwrap();
    let driver = world.driver("ensure", "chained");
    let drop =
        ["--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search", "--"];
    let output = run(Command::new("setpriv").args(drop).arg(driver.get_program()).args(driver.get_args()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains(
            "permission denied; the directory belongs to another user: give the container DAC_OVERRIDE"
        ),
        "{text}"
    );
    // With it, as the chart gives it, it works, and the directory stays theirs.
    world.chained().ensure().unwrap();
    is_installed(&world, "chained", "");
}

#[test]
fn an_immutable_file_is_named_and_nothing_else_is_touched() {
    let world = World::new(Primary::List);
    let path = world.conf("10-calico.conflist");
    let attribute = |flag: &str| run(Command::new("chattr").arg(flag).arg(&path));
    let set = attribute("+i");
    assert!(
        set.status.success(),
        "the temporary directory must be on a file system with attributes: {set:?}"
    );
    let error = world.chained().ensure();
    let cleared = attribute("-i");
    assert!(cleared.status.success(), "{cleared:?}");
    let text = error.unwrap_err().to_string();
    assert_eq!(
        text,
        format!(
            "replace {}: operation not permitted; see lsattr for an immutable file or directory, and the security module's log",
            path.display()
        )
    );
    let names: Vec<_> =
        std::fs::read_dir(world.root.join("conf")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["10-calico.conflist"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), LIST);
}

#[test]
fn what_is_missing_or_in_the_way_is_named() {
    let world = World::new(Primary::Nothing);
    let text = world.chained().ensure().unwrap_err().to_string();
    let conf = world.root.join("conf");
    assert_eq!(
        text,
        format!(
            "look in {}: no network configuration yet; install the primary network's CNI plugin, or check the directory",
            conf.display()
        )
    );

    let mut settings = world.settings(Mode::Chained { file: Some("10-x.conf".to_owned()) });
    let text = Installer::new(settings.clone()).unwrap().ensure().unwrap_err().to_string();
    assert!(text.contains("no usable 10-x.conf yet"), "{text}");

    settings.conf_dir = world.root.join("none");
    let text = Installer::new(settings.clone()).unwrap().ensure().unwrap_err().to_string();
    assert!(
        text.ends_with("none: no such file or directory; check the mount and the configured path"),
        "{text}"
    );

    settings.plugin = world.root.join("image/none");
    let text = Installer::new(settings).unwrap().ensure().unwrap_err().to_string();
    assert!(text.starts_with("read the image's plugin "), "{text}");

    let world = World::new(Primary::List);
    std::fs::create_dir(world.root.join("bin/istio-cni")).unwrap();
    let before = world.tree();
    let text = world.chained().ensure().unwrap_err().to_string();
    assert!(text.ends_with("a directory has the file's name: remove it"), "{text}");
    same(&world.tree(), &before, "");
}

#[test]
fn all_contradictions_in_the_settings_are_told_at_once() {
    let world = World::new(Primary::Nothing);
    let mut settings =
        world.settings(Mode::OwnFile { name: "../x.conf".to_owned(), primary: Some("x".to_owned()) });
    settings.bin_dirs.clear();
    let errors = Installer::new(settings).map(|_| ()).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:?}");
}

#[test]
fn without_the_role_nothing_is_written() {
    let world = World::new(Primary::List);
    let before = world.tree();
    let installer = world.chained().while_allowed(|| false);
    assert_eq!(installer.ensure().unwrap_err().kind, install::Kind::NotHolder);
    assert!(installer.remove(install::Leaving::Nothing).is_err());
    same(&world.tree(), &before, "");
    // Lost at any moment in between.
    for allowed in 0.. {
        let asked = std::sync::atomic::AtomicU32::new(0);
        let installer = world
            .chained()
            .while_allowed(move || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < allowed);
        let done = installer.ensure().is_ok();
        assert!(crate::loaders::crio(&world.root).is_ok() && crate::loaders::containerd(&world.root).is_ok());
        assert!(world.tree().keys().all(|path| !path.to_string_lossy().contains("waylay-tmp")));
        if done {
            assert!(allowed >= 4, "{allowed}");
            break;
        }
    }
}

#[test]
fn a_role_lost_while_a_file_is_being_written_keeps_it_from_its_name() {
    let world = World::new(Primary::Conf);
    let before = world.tree();
    // It is lost as soon as there is a temporary file.
    let dirs = ["bin", "conf"].map(|dir| world.root.join(dir));
    let installer = world.chained().while_allowed(move || {
        dirs.iter().all(|dir| {
            std::fs::read_dir(dir)
                .unwrap()
                .all(|entry| !entry.unwrap().file_name().to_string_lossy().contains("waylay-tmp"))
        })
    });
    assert_eq!(installer.ensure().unwrap_err().kind, install::Kind::NotHolder);
    same(&world.tree(), &before, "");
}
