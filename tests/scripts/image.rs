// SPDX-License-Identifier: Apache-2.0
//! The image: small, from scratch, the same bytes each time, one layout for all architectures.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::node::{agent_binary, plugin_binary};
use serde_json::{Value, json};

use crate::{Ended, REPOSITORY, Scratch, run};

fn write(out: &Path, root: &Path) -> Ended {
    run(Command::new("python3")
        .args(["-B", &format!("{REPOSITORY}/daemonset/image.py")])
        .args([out, root])
        .arg("1.2.3"))
}

fn small_root(scratch: &Scratch, name: &str) -> PathBuf {
    for architecture in ["arm64", "amd64"] {
        let path = |file| format!("{name}/{architecture}/{file}");
        scratch.program(&path("usr/local/bin/install-cni"), architecture);
        scratch.program(&path("opt/cni/bin/istio-cni"), "plugin");
        scratch.write(&path("licenses/NOTICE"), "notice");
    }
    scratch.path(name)
}

/// The blob that `descriptor` names, whose size and digest are as said.
fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(digest);
    let data = fs::read(&path).unwrap();
    assert_eq!(descriptor["size"], data.len());
    assert_eq!(sha256(&path), digest);
    data
}

fn sha256(path: &Path) -> String {
    run(Command::new("sha256sum").arg(path)).with(0).split(' ').next().unwrap().to_owned()
}

fn document(layout: &Path, descriptor: &Value) -> Value {
    serde_json::from_slice(&blob(layout, descriptor)).unwrap()
}

#[test]
fn the_layout_leads_from_the_index_to_the_files_of_each_architecture() {
    let scratch = Scratch::new();
    let layout = scratch.path("image");
    write(&layout, &small_root(&scratch, "root")).with(0);
    let version: Value = serde_json::from_str(&scratch.read("image/oci-layout")).unwrap();
    assert_eq!(version, json!({"imageLayoutVersion": "1.0.0"}));
    let top: Value = serde_json::from_str(&scratch.read("image/index.json")).unwrap();
    let [image] = top["manifests"].as_array().unwrap().as_slice() else { panic!("{top}") };
    assert_eq!(image["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
    let index = document(&layout, image);
    let mut architectures = Vec::new();
    for described in index["manifests"].as_array().unwrap() {
        let architecture = described["platform"]["architecture"].as_str().unwrap();
        architectures.push(architecture);
        let manifest = document(&layout, described);
        let config = document(&layout, &manifest["config"]);
        assert_eq!((&config["architecture"], &config["os"]), (&json!(architecture), &json!("linux")));
        assert_eq!(config["config"]["Cmd"], json!(["install-cni"]));
        assert_eq!(config["config"]["Env"], json!(["PATH=/usr/local/bin:/opt/cni/bin"]));
        assert_eq!(config["config"]["WorkingDir"], "/opt/cni/bin");
        assert_eq!(config["config"]["User"], "0:0");
        let labels = &config["config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0");
        assert_eq!(labels["org.opencontainers.image.version"], "1.2.3");
        let packed = scratch.path("layer.tar.gz");
        fs::write(&packed, blob(&layout, &manifest["layers"][0])).unwrap();
        run(Command::new("gunzip").arg("-f").arg(&packed)).with(0);
        let tar = scratch.path("layer.tar");
        assert_eq!(config["rootfs"]["diff_ids"], json!([format!("sha256:{}", sha256(&tar))]));
        let listed = run(Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(&tar)).with(0);
        let files: Vec<_> = listed
            .lines()
            .map(|l| l.split_whitespace().collect::<Vec<_>>())
            .map(|w| (w[0], w[1], w[5]))
            .collect();
        let entry = |mode, name| (mode, "0/0", name);
        for wanted in [
            entry("-rwxr-xr-x", "opt/cni/bin/istio-cni"),
            entry("-rwxr-xr-x", "usr/local/bin/install-cni"),
            entry("-rw-r--r--", "licenses/NOTICE"),
            entry("drwxr-xr-x", "opt/cni/bin/"),
        ] {
            assert!(files.contains(&wanted), "{wanted:?}: {listed}");
        }
        let text = run(Command::new("tar").args(["-xOf"]).arg(&tar).arg("usr/local/bin/install-cni")).with(0);
        assert_eq!(text, architecture);
    }
    assert_eq!(architectures, ["amd64", "arm64"]);
}

#[test]
fn the_same_input_gives_the_same_bytes_and_a_layout_is_replaced() {
    let scratch = Scratch::new();
    let (one, two) = (scratch.path("one"), scratch.path("two"));
    write(&one, &small_root(&scratch, "root")).with(0);
    // Made in another order and at another time, with other modes.
    let root = scratch.path("again");
    run(Command::new("cp").args(["-r"]).args([scratch.path("root"), root.clone()])).with(0);
    run(Command::new("chmod").args(["-R", "g+w,u-s"]).arg(&root)).with(0);
    run(Command::new("find").arg(&root).args(["-exec", "touch", "-d", "2001-01-01", "{}", "+"])).with(0);
    write(&two, &root).with(0);
    let contents = |name: &str| {
        let tree = scratch.tree(name);
        tree.into_iter()
            .map(|(path, _, data)| (path.file_name().unwrap().to_owned(), data))
            .collect::<Vec<_>>()
    };
    assert_eq!(contents("one")[1..], contents("two")[1..]);
    scratch.write("root/amd64/licenses/NOTICE", "another");
    write(&one, &scratch.path("root")).with(0);
    assert_ne!(contents("one")[1..], contents("two")[1..]);
    assert_eq!(contents("one").len(), contents("two").len(), "nothing of the older layout is left");

    let other = scratch.write("other/file", "precious");
    let refused = write(other.parent().unwrap(), &scratch.path("root")).with(1);
    assert!(refused.contains("exists and is no OCI layout"), "{refused}");
    assert_eq!(scratch.read("other/file"), "precious");
}

#[test]
fn an_architecture_over_the_limit_is_an_error() {
    let scratch = Scratch::new();
    let root = small_root(&scratch, "root");
    for (more, code) in [(0, 0), (1, 1)] {
        let rest = 8_000_000 - "plugin".len() - "notice".len() + more;
        fs::write(root.join("arm64/usr/local/bin/install-cni"), vec![0; rest]).unwrap();
        let said = write(&scratch.path("image"), &root).with(code);
        assert_eq!(said.contains("over the limit: arm64"), code == 1, "{said}");
    }
}

#[test]
fn the_shipped_programs_make_an_image_that_is_small_and_runs_with_nothing_else_in_it() {
    let scratch = Scratch::new();
    let programs = [plugin_binary(), agent_binary()];
    let target = programs[0].ancestors().nth(3).unwrap();
    let root = scratch.path("root");
    let cargo = Path::new(env!("CARGO")).parent().unwrap();
    let path = format!("{}:{}", cargo.display(), std::env::var("PATH").unwrap());
    run(Command::new(format!("{REPOSITORY}/daemonset/stage.sh"))
        .arg(&root)
        .arg("amd64=x86_64-unknown-linux-musl")
        .env("CARGO_TARGET_DIR", target)
        .env("PATH", path))
    .with(0);
    let said = write(&scratch.path("image"), &root).with(0);
    assert!(said.starts_with("image amd64: "), "{said}");
    let notice = scratch.read("root/amd64/licenses/NOTICE");
    for linked in ["\ntokio 1.", "\nhyper 1.", "\nnix 0.", "\nmusl libc ", "Permission is hereby granted"] {
        assert!(notice.contains(linked), "{linked}");
    }
    // Used by tests only, or while compiling.
    for not_linked in ["\nproptest ", "\nnftables ", "\nsyn ", "\nwaylay"] {
        assert!(!notice.contains(not_linked), "{not_linked}");
    }
    let inside = |program: &str, verb: &str| {
        let root = root.join("amd64");
        run(Command::new("/usr/sbin/chroot")
            .arg(root)
            .args([program, verb])
            .env_clear()
            .env("CNI_COMMAND", "VERSION"))
    };
    assert!(inside("/usr/local/bin/install-cni", "--version").with(0).starts_with("install-cni "));
    assert!(inside("/opt/cni/bin/istio-cni", "").with(0).contains("\"1.1.0\""));
}
