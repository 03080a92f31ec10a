// SPDX-License-Identifier: Apache-2.0
//! A process that installs and removes, for the tests to kill: `install-driver VERB ROOT MODE`. ROOT holds `image`, `bin`
//! and `conf`. With `WAYLAY_FAULT=<point>#<n>` it dies when it reaches that point for the n-th time.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use install::{InstallSettings, Installer, Leaving, Mode, Watch};
use nix::sys::signal::{Signal, raise};

fn main() -> ExitCode {
    assert!(install::fault::HOOK.set(die_here).is_ok());
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, root, mode] = arguments.as_slice() else { panic!("install-driver VERB ROOT MODE") };
    let root = Path::new(root);
    let installer = Installer::new(settings(root, mode)).unwrap();
    let result = match verb.as_str() {
        "ensure" => installer.ensure().map(|report| format!("{report:?}")).map_err(|error| vec![error]),
        "remove" => installer.remove(Leaving::Nothing).map(|changed| format!("{changed:?}")),
        "watch" => {
            let _watch = Watch::start(installer, |health| println!("{health:?}")).unwrap();
            // Until the test closes stdin.
            let _ = std::io::read_to_string(std::io::stdin());
            Ok(String::new())
        }
        cycles => {
            cycle(cycles.parse().unwrap(), root, mode);
            Ok(String::new())
        }
    };
    match result {
        Ok(text) => println!("{text}"),
        Err(errors) => {
            errors.iter().for_each(|error| println!("{error}"));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn settings(root: &Path, mode: &str) -> InstallSettings {
    let mode = match mode {
        "chained" => Mode::Chained { file: None },
        "own" => Mode::OwnFile { name: "02-istio-cni.conflist".to_owned(), primary: None },
        "standalone" => Mode::Standalone { name: "istio-cni.conf".to_owned() },
        named => Mode::Chained { file: Some(named.to_owned()) },
    };
    InstallSettings {
        plugin: root.join("image/istio-cni"),
        bin_dirs: vec![root.join("bin")],
        conf_dir: root.join("conf"),
        mode,
        entry: cni::conflist::Entry::default(),
        file_mode: 0o600,
        downgrade: true,
    }
}

/// Install, upgrade, be overwritten by the vendor, and remove; over and over.
fn cycle(cycles: u32, root: &Path, mode: &str) {
    let releases = [root.join("image/istio-cni"), root.join("image/istio-cni.next")];
    let conf = root.join("conf");
    let read = |path: PathBuf| {
        let (bytes, mode) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().permissions());
        (path, (bytes, mode))
    };
    let vendor: Vec<_> = fs::read_dir(&conf).unwrap().map(|entry| read(entry.unwrap().path())).collect();
    for _ in 0..cycles {
        for plugin in &releases {
            let mut settings = settings(root, mode);
            settings.plugin.clone_from(plugin);
            // A release has other settings, too.
            settings.entry.pod_namespace = plugin.file_name().unwrap().to_string_lossy().into_owned();
            let installer = Installer::new(settings).unwrap();
            installer.ensure().unwrap();
            for (path, bytes) in &vendor {
                // As vendors do that do it well.
                let temporary = path.with_extension("vendor");
                fs::write(&temporary, &bytes.0).unwrap();
                fs::set_permissions(&temporary, bytes.1.clone()).unwrap();
                fs::rename(&temporary, path).unwrap();
            }
            installer.ensure().unwrap();
        }
        Installer::new(settings(root, mode)).unwrap().remove(Leaving::Nothing).unwrap();
    }
}

fn die_here(point: &'static str) {
    static CHOSEN: OnceLock<(String, u32)> = OnceLock::new();
    static REACHED: AtomicU32 = AtomicU32::new(0);
    assert!(install::POINTS.contains(&point), "point {point} is not listed");
    let (chosen, nth) = CHOSEN.get_or_init(|| {
        let text = std::env::var("WAYLAY_FAULT").unwrap_or_default();
        text.split_once('#')
            .map_or((text.clone(), 1), |(point, nth)| (point.to_owned(), nth.parse().unwrap()))
    });
    if chosen == point && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
        raise(Signal::SIGKILL).unwrap();
    }
}
