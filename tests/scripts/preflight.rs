// SPDX-License-Identifier: Apache-2.0
//! `preflight.sh` on a node: each finding by its name, from a root directory of the test's, and the real kernel asked by
//! the real agent.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::process::Command;

use harness::node::agent_binary;

use crate::{REPOSITORY, SHELLS, Scratch, run, script};

const MODULES: [&str; 6] = ["nf_tables", "nft_chain_nat", "nft_redir", "nft_ct", "nft_tproxy", "nft_socket"];

/// A node on which nothing is wrong.
fn node(release: &str, modules: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    scratch.write("proc/sys/kernel/osrelease", &format!("{release}\n"));
    let names: Vec<_> = modules.iter().map(|m| format!("kernel/net/netfilter/{m}.ko.xz: x.ko\n")).collect();
    scratch.write(&format!("lib/modules/{release}/modules.dep"), &names.concat());
    scratch.write("etc/cni/net.d/10-net.conflist", "{}");
    scratch.write("opt/cni/bin/bridge", "");
    scratch.write(
        "etc/containerd/config.toml",
        "[plugins.cri.cni]\n  bin_dir = \"/opt/cni/bin\"\n  conf_dir = \"/etc/cni/net.d/\"\n",
    );
    scratch
}

#[track_caller]
fn look(node: &Scratch, code: i32, more: &[&str]) -> String {
    let root = node.0.to_str().unwrap().to_owned();
    let arguments = [&["--root", &root], more].concat();
    let before = node.tree("");
    let [one, two] = SHELLS.map(|shell| script(shell, "preflight.sh", &node.0, &arguments).with(code));
    assert_eq!(one, two);
    assert_eq!(node.tree(""), before, "a preflight changes nothing");
    one
}

#[track_caller]
fn finds(node: &Scratch, code: i32, wanted: &str) {
    let said = look(node, code, &[]);
    assert!(said.lines().any(|line| line.starts_with(wanted)), "{wanted}\n{said}");
}

#[test]
fn a_node_without_trouble_has_neither_errors_nor_warnings() {
    let said = look(&node("6.1.0-37-amd64", &MODULES), 0, &[]);
    assert!(said.ends_with("preflight: 0 errors, 0 warnings\n"), "{said}");
    assert!(said.contains("ok: /etc/cni/net.d/10-net.conflist: the network that pods get"), "{said}");
}

#[test]
fn the_kernels_version_and_modules_are_looked_at() {
    finds(&node("4.18.0-553.el8", &MODULES), 1, "error: node: kernel 4.18.0-553.el8 is older than 4.19");
    finds(&node("5.15.0-1", &MODULES), 0, "warning: node: kernel 5.15.0-1 is older than the oldest that");
    finds(&node("10.0.1", &MODULES), 0, "ok: node: kernel 10.0.1");
    finds(&node("6.1.0", &MODULES[2..]), 1, "error: kernel 6.1.0: missing: nf_tables nft_chain_nat");
    let tproxy = "warning: kernel 6.1.0: missing: nft_tproxy nft_socket; pods with interceptionMode TPROXY";
    finds(&node("6.1.0", &MODULES[..4]), 0, tproxy);

    let built_in = node("6.1.0", &[]);
    let options = ["NF_TABLES", "NFT_NAT", "NFT_REDIR", "NFT_CT", "NFT_TPROXY", "NFT_SOCKET"];
    let config: String = options.iter().map(|option| format!("CONFIG_{option}=y\n")).collect();
    built_in.write("boot/config-6.1.0", &config);
    finds(&built_in, 0, "ok: kernel 6.1.0: nf_tables with NAT");
    built_in.write("boot/config-6.1.0", &config.replace("CONFIG_NFT_NAT=y", "# CONFIG_NFT_NAT is not set"));
    finds(&built_in, 1, "error: kernel 6.1.0: missing: nft_chain_nat");
    fs::remove_dir_all(built_in.path("lib")).unwrap();
    fs::remove_dir_all(built_in.path("boot")).unwrap();
    finds(&built_in, 0, "warning: kernel 6.1.0: neither its modules");
}

#[test]
fn the_runtimes_directories_are_compared_with_ours() {
    let other = node("6.1.0", &MODULES);
    other.write("etc/containerd/config.toml", "  conf_dir = '/etc/other'\n  bin_dirs = ['/a', \"/b\"]\n");
    finds(&other, 1, "error: containerd reads its CNI configuration from /etc/other (");
    finds(&other, 1, "error: containerd looks for CNI plugins in /a /b (");
    let said = look(&other, 0, &["--cni-conf-dir", "/etc/other", "--cni-bin-dir", "/b"]);
    assert!(said.contains("ok: containerd: CNI configuration in /etc/other\n"), "{said}");

    let crio = node("6.1.0", &MODULES);
    fs::remove_dir_all(crio.path("etc/containerd")).unwrap();
    finds(&crio, 0, "warning: no configuration of containerd, CRI-O, k3s or MicroK8s found");
    crio.write("etc/crio/crio.conf.d/00-x", "network_dir = \"/etc/kubernetes/cni/net.d/\"\n");
    finds(&crio, 1, "error: CRI-O reads its CNI configuration from /etc/kubernetes/cni/net.d (");

    let k3s = node("6.1.0", &MODULES);
    fs::remove_dir_all(k3s.path("etc/containerd")).unwrap();
    k3s.write("var/lib/rancher/k3s/agent/etc/cni/net.d/10-flannel.conflist", "{}");
    finds(&k3s, 1, "error: k3s reads its CNI configuration from /var/lib/rancher/k3s/agent/etc/cni/net.d");
    let said = look(&k3s, 0, &["--cni-conf-dir", "/var/lib/rancher/k3s/agent/etc/cni/net.d"]);
    assert!(said.contains("ok: k3s: CNI configuration in"), "{said}");

    for (handler, name) in [("runsc", "gVisor"), ("kata", "Kata")] {
        let sandbox = node("6.1.0", &MODULES);
        sandbox
            .write("etc/containerd/config.toml", &format!("[plugins.cri.containerd.runtimes.{handler}]\n"));
        finds(&sandbox, 0, &format!("warning: this node's runtime has {name}: pods in such a sandbox"));
    }
}

#[test]
fn directories_that_cannot_be_used_and_other_network_software_are_named() {
    let node = node("6.1.0", &MODULES);
    chown(node.path("opt/cni/bin"), Some(997), None).unwrap();
    finds(&node, 0, "warning: /opt/cni/bin: belongs to uid 997: the agent needs CAP_DAC_OVERRIDE too");
    fs::rename(node.path("opt/cni/bin"), node.path("opt/cni/current")).unwrap();
    symlink("current", node.path("opt/cni/bin")).unwrap();
    finds(&node, 0, "warning: /opt/cni/bin: a symbolic link");
    node.write("etc/cni/net.d/05-empty.conf", "");
    finds(&node, 1, "error: /etc/cni/net.d/05-empty.conf: empty");
    fs::remove_file(node.path("etc/cni/net.d/05-empty.conf")).unwrap();
    node.write("etc/cni/net.d/10-net.conflist", "{\"plugins\":[{\"type\":\"istio-cni\"}]}");
    finds(&node, 0, "ok: /etc/cni/net.d/10-net.conflist: has an istio-cni entry already");
    node.write("etc/cni/net.d/05-cilium.conflist", "{}");
    finds(&node, 0, "warning: Cilium: needs cni.exclusive=false");
    node.write("etc/cni/net.d/10-net.conflist.cilium_bak", "{}");
    finds(&node, 1, "error: Cilium: cni-exclusive is on and has renamed 10-net.conflist.cilium_bak");
    fs::remove_dir_all(node.path("etc/cni/net.d")).unwrap();
    finds(&node, 0, "warning: /etc/cni/net.d: no network configured yet");
    node.write("etc/cni/net.d", "");
    finds(&node, 1, "error: /etc/cni/net.d: not a directory");
}

#[test]
fn the_agent_itself_asks_the_running_kernel() {
    let node = node("6.1.0", &MODULES);
    let agent = agent_binary().to_str().unwrap();
    let said = look(&node, 0, &["--agent", agent]);
    assert!(said.contains("accepts every kind of rule (asked by the agent itself)"), "{said}");
    let said = look(&node, 1, &["--agent", "/no/agent"]);
    assert!(said.contains("error: /no/agent: no program"), "{said}");
    // An agent that the kernel refuses.
    let preflight = format!("{REPOSITORY}/install-scripts/preflight.sh");
    let root = node.0.to_str().unwrap();
    let said = run(Command::new("setpriv").args([
        "--bounding-set=-net_admin",
        "sh",
        &preflight,
        "--root",
        root,
        "--agent",
        agent,
    ]))
    .with(1);
    assert!(said.contains("the agent's own probe failed: ") && said.contains("CAP_NET_ADMIN"), "{said}");
    let left = fs::read_dir("/proc").unwrap().filter_map(|process| {
        let line = fs::read(process.unwrap().path().join("environ")).ok()?;
        String::from_utf8_lossy(&line).contains("CNI_ENABLE_INSTALL=false").then_some(())
    });
    assert_eq!(left.count(), 0, "no agent is left running");
}
