// SPDX-License-Identifier: Apache-2.0
//! `node-cleanup.sh`: outside our entry no byte changes, and what it cannot read it leaves alone.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::{Ended, SHELLS, Scratch, awk, script};

const ENTRY: &str = r#"{"name":"istio-cni","type":"istio-cni","plugin_log_level":"info","exclude_namespaces":["a]}\"{","b"],"capabilities":{"io.kubernetes.cri.pod-annotations":true}"#;
const CONF: &str = "root/etc/cni/net.d";

/// What tells our plugin from another istio-cni.
const PLUGIN: &str = "\x7fELF\0\0CNI plugin istio-cni 0.1.0 (Waylay)\0rest\n";

/// Lists of others, each with a mark where our entry goes; what is between the marks is the comma and the blanks that
/// belong to it.
const LISTS: [&str; 9] = [
    "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"plugins\":[{\"type\":\"bridge\"}«,@»]}",
    "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"k8s-pod-network\",\n  \"plugins\": [\n    {\"type\": \"calico\", \"mtu\": 1.50e3},\n    {\"type\": \"portmap\"}«,\n    @»\n  ]\n}\n",
    // The text of others has everything that could mislead a reader.
    "{\"x\":{\"plugins\":[{\"type\":\"istio-cni\"}]},\"plugins\" : [ {\"type\":\"a\",\"s\":\"]}[{,\\\"istio-cni\\\\\",\"e\":[],\"o\":{},\"type2\":\"istio-cni\",\"n\":null}«,@» ] ,\"name\":\"n\"}\r\n",
    "\t{\"plugins\":[\r\n{\"type\":\"a\",\"plugins\":[{\"type\":\"istio-cni\"}]}«,\r\n@»\r\n],\"name\":\"é€😀\"}  \n\n",
    // Not last, and more than one.
    "{\"name\":\"n\",\"plugins\":[«@ , »{\"type\":\"a\"}]}",
    "{\"name\":\"n\",\"plugins\":[{\"type\":\"a\"}«, @» , {\"type\":\"b\"}]}",
    "{\"name\":\"n\",\"plugins\":[«@,»«@, »{\"type\":\"a\"}«,@»«,@»]}",
    "{\"name\":\"n\",\"plugins\":[{\"nested\":{\"type\":\"istio-cni\"},\"type\":\"b\"}«,@»,{\"type\":\"istio-cni-2\"}]}",
    // A value of another type than one expects.
    "{\"type2\":7,\"name\":\"n\",\"plugins\":[{\"type\":\"a\",\"k\":-1.5E-3,\"t\":true}«,@»],\"z\":[1,[2,{}],\"]\"]}",
];

fn with_entry(marked: &str, keys: &str) -> String {
    marked.replace('@', &format!("{ENTRY}{keys}}}")).replace(['«', '»'], "")
}

fn without_entry(marked: &str) -> String {
    let mut parts = marked.split(['«', '»']);
    let mut text = String::new();
    while let Some(part) = parts.next() {
        text += part;
        parts.next();
    }
    text
}

fn clean(scratch: &Scratch, shell: &[&str], bin: &Path, more: &[&str]) -> Ended {
    let root = scratch.path("root");
    script(shell, "node-cleanup.sh", bin, &[&["--root", root.to_str().unwrap()], more].concat())
}

/// With each shell and each awk.
fn everywhere(test: impl Fn(&Scratch, &[&str], &Path)) {
    for shell in SHELLS {
        for name in ["mawk", "busybox"] {
            let scratch = Scratch::new();
            let bin = awk(&scratch, name);
            fs::create_dir_all(scratch.path(CONF)).unwrap();
            test(&scratch, shell, &bin);
        }
    }
}

#[test]
fn taking_the_entry_out_gives_back_every_byte_of_others() {
    everywhere(|scratch, shell, bin| {
        let name = |number| format!("{CONF}/{number:02}-net.conflist");
        for (number, list) in LISTS.iter().enumerate() {
            scratch.write(&name(number), &with_entry(list, ""));
        }
        let path = scratch.path(&name(0));
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        chown(&path, Some(997), Some(998)).unwrap();
        scratch.write("root/opt/cni/bin/istio-cni", PLUGIN);
        scratch.write("root/opt/cni/bin/bridge", "binary");
        clean(scratch, shell, bin, &[]).with(0);
        for (number, list) in LISTS.iter().enumerate() {
            assert_eq!(scratch.read(&name(number)), without_entry(list), "{list}");
        }
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o640, 997, 998));
        let plugins = fs::read_dir(scratch.path("root/opt/cni/bin")).unwrap();
        assert_eq!(plugins.map(|e| e.unwrap().file_name()).collect::<Vec<_>>(), ["bridge"]);
        let before = scratch.tree("root");
        assert_eq!(clean(scratch, shell, bin, &[]).with(0), "");
        assert_eq!(scratch.tree("root"), before, "nothing else is left, and a second time nothing changes");
    });
}

#[test]
fn a_file_that_is_ours_alone_goes_and_one_made_of_another_becomes_that_one_again() {
    everywhere(|scratch, shell, bin| {
        let standalone = ",\n  \"waylay_standalone\": true}\n";
        scratch.write(&format!("{CONF}/YYY-istio-cni.conf"), &format!("{ENTRY}{standalone}"));
        // Written by another istio-cni: not ours to remove.
        let foreign = with_entry("{\"name\":\"n\",\"plugins\":[@]}", "");
        scratch.write(&format!("{CONF}/ZZZ.conflist"), &foreign);
        scratch.write(&format!("{CONF}/ZZZ.conf"), &format!("{ENTRY}}}\n"));
        let copy = ",\"waylay_copy_of\":\"10-net.conflist\"";
        scratch.write(&format!("{CONF}/02-istio-cni.conflist"), &with_entry(LISTS[1], copy));
        scratch.write(&format!("{CONF}/10-net.conflist"), &without_entry(LISTS[1]));
        let single = " {\n  \"cniVersion\": \"0.4.0\", \"name\": \"ovn\", \"type\": \"ovn-k8s\"\n}\n";
        let converted = format!(
            "{{\"cniVersion\":\"0.4.0\",\"name\":\"ovn\",\"plugins\":[{}«,@»\n]}}\n",
            single.trim_end()
        );
        let from = ",\"waylay_converted_from\":\"20-ovn.conf\"";
        scratch.write(&format!("{CONF}/20-ovn.conflist"), &with_entry(&converted, from));
        let link = ",\"waylay_link\":\"/etc/other/30-vendor.conflist\"";
        scratch.write(&format!("{CONF}/30-vendor.conflist"), &with_entry(LISTS[0], link));
        let both = format!("{},\"waylay_link\":\"../ovn.conf\"", from.replace("20", "40"));
        scratch.write(&format!("{CONF}/40-ovn.conflist"), &with_entry(&converted, &both));
        // An interrupted removal, and what a killed agent left.
        scratch.write(&format!("{CONF}/50-ovn.conflist"), &with_entry(&converted, &from.replace("20", "50")));
        scratch.write(&format!("{CONF}/50-ovn.conf"), "its writer was here again");
        scratch.write(&format!("{CONF}/10-net.conflist.waylay-tmp-0123456789abcdef"), "half");
        scratch.write("root/opt/cni/bin/istio-cni.waylay-tmp-0123456789abcdef", "half");
        scratch.write("root/opt/cni/bin/istio-cni", "CNI plugin istio-cni 1.30 of another maker");
        let said = clean(scratch, shell, bin, &[]).with(0);
        assert_eq!(said.matches("and stays").count(), 3, "{said}");
        let plugins = fs::read_dir(scratch.path("root/opt/cni/bin")).unwrap();
        assert_eq!(plugins.map(|e| e.unwrap().file_name()).collect::<Vec<_>>(), ["istio-cni"]);
        let mut left: Vec<_> = fs::read_dir(scratch.path(CONF))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let wanted = ["10-net.conflist", "20-ovn.conf", "30-vendor.conflist", "40-ovn.conf", "50-ovn.conf"];
        assert_eq!(left, [&wanted[..], &["ZZZ.conf", "ZZZ.conflist"]].concat());
        assert_eq!(scratch.read(&format!("{CONF}/50-ovn.conf")), "its writer was here again");
        assert_eq!(scratch.read(&format!("{CONF}/ZZZ.conflist")), foreign);
        assert_eq!(scratch.read(&format!("{CONF}/20-ovn.conf")), single);
        let target = |name: &str| fs::read_link(scratch.path(&format!("{CONF}/{name}"))).unwrap();
        assert_eq!(target("30-vendor.conflist"), Path::new("/etc/other/30-vendor.conflist"));
        assert_eq!(target("40-ovn.conf"), Path::new("../ovn.conf"));
    });
}

#[test]
fn what_cannot_be_read_is_left_alone_and_the_binary_with_it() {
    let entry = format!("{ENTRY}}}");
    let broken = [
        format!("{{\"plugins\":[{{\"type\":\"a\"}},{entry}"),
        format!("{{\"plugins\":[{{\"type\":\"a\"}} {entry}]}}"),
        format!("[{entry}]"),
        format!("{{\"plugins\":[{{\"type\":\"a\"}},{entry}],\"plugins\":[{{\"type\":\"a\"}},{entry}]}}"),
        format!("{{\"plugins\":[{{\"type\":\"a}},{entry}]}}"),
        with_entry(LISTS[0], ",\"waylay_converted_from\":\"../../20-ovn.conf\""),
        with_entry(LISTS[0], ",\"waylay_link\":\"a\\\"b\""),
    ];
    everywhere(|scratch, shell, bin| {
        for text in &broken {
            scratch.write(&format!("{CONF}/10-net.conflist"), text);
            // Another one is cleaned all the same.
            scratch.write(&format!("{CONF}/20-net.conflist"), &with_entry(LISTS[0], ""));
            scratch.write("root/opt/cni/bin/istio-cni", PLUGIN);
            let said = clean(scratch, shell, bin, &[]).with(1);
            assert!(said.contains("10-net.conflist: names istio-cni and is left as it is"), "{said}");
            assert_eq!(&scratch.read(&format!("{CONF}/10-net.conflist")), text);
            assert_eq!(scratch.read(&format!("{CONF}/20-net.conflist")), without_entry(LISTS[0]));
            assert_eq!(scratch.read("root/opt/cni/bin/istio-cni"), PLUGIN);
        }
        let target = scratch.write("root/other.conflist", &with_entry(LISTS[0], ""));
        fs::remove_file(scratch.path(&format!("{CONF}/10-net.conflist"))).unwrap();
        symlink(&target, scratch.path(&format!("{CONF}/10-net.conflist"))).unwrap();
        assert!(clean(scratch, shell, bin, &[]).with(1).contains("a symbolic link"));
        assert_eq!(scratch.read("root/other.conflist"), with_entry(LISTS[0], ""));
    });
}

#[test]
fn garbage_of_others_is_none_of_our_business() {
    everywhere(|scratch, shell, bin| {
        let texts = [
            "",
            "\n",
            "garbage",
            "{",
            "{\"plugins\":7}",
            "{\"plugins\":[7]}",
            "\"",
            "{\"plugins\":[]}",
            "{}",
            "[[[[",
        ];
        for (number, text) in texts.iter().enumerate() {
            scratch.write(&format!("{CONF}/{number}.conflist"), text);
        }
        let before = scratch.tree("root");
        assert_eq!(clean(scratch, shell, bin, &[]).with(0), "");
        assert_eq!(scratch.tree("root"), before);
    });
}

#[test]
fn a_dry_run_and_a_running_agent_change_nothing() {
    let scratch = Scratch::new();
    let bin = awk(&scratch, "mawk");
    scratch.write(&format!("{CONF}/10-net.conflist"), &with_entry(LISTS[0], ""));
    scratch.write("root/opt/cni/bin/istio-cni", PLUGIN);
    let before = scratch.tree("root");
    let said = clean(&scratch, SHELLS[0], &bin, &["--dry-run"]).with(0);
    assert!(said.contains("would take our entry out of") && said.contains("would remove"), "{said}");
    assert_eq!(scratch.tree("root"), before);

    scratch.write("root/proc/77/comm", "install-cni\n");
    let before = scratch.tree("root");
    assert!(clean(&scratch, SHELLS[0], &bin, &[]).with(1).contains("an agent (process install-cni) runs"));
    assert_eq!(scratch.tree("root"), before);
    clean(&scratch, SHELLS[0], &bin, &["--force"]).with(0);
    assert_eq!(scratch.read(&format!("{CONF}/10-net.conflist")), without_entry(LISTS[0]));
}

#[test]
fn other_directories_are_cleaned_where_they_are_named_and_the_sockets_go() {
    everywhere(|scratch, shell, bin| {
        scratch.write("root/k 3s/net.d/10-net.conflist", &with_entry(LISTS[0], ""));
        scratch.write("root/multus/istio-cni.conf", &format!("{ENTRY},\"waylay_standalone\":true}}"));
        scratch.write("root/k 3s/bin/istio-cni", PLUGIN);
        let run = scratch.path("root/var/run/istio-cni");
        fs::create_dir_all(&run).unwrap();
        for name in ["waylay.sock", "waylay.sock.1-2", "waylay-notice.sock"] {
            UnixListener::bind(run.join(name)).unwrap();
        }
        for file in ["since", "sandboxes/a,eth0", ".sandboxes.gone/a,eth0"] {
            scratch.write(&format!("root/var/run/istio-cni/{file}"), "{}");
        }
        let directories =
            ["--cni-conf-dir", "/k 3s/net.d", "--cni-conf-dir", "/multus", "--cni-bin-dir", "/k 3s/bin"];
        clean(scratch, shell, bin, &[&directories[..], &["--keep-binary"]].concat()).with(0);
        assert_eq!(scratch.read("root/k 3s/net.d/10-net.conflist"), without_entry(LISTS[0]));
        assert!(!scratch.path("root/multus/istio-cni.conf").exists() && !run.exists());
        assert!(scratch.path("root/k 3s/bin/istio-cni").exists());
        clean(scratch, shell, bin, &directories).with(0);
        assert!(!scratch.path("root/k 3s/bin/istio-cni").exists());
    });
}
