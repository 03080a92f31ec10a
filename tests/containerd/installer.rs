// SPDX-License-Identifier: Apache-2.0
//! The agent installs itself on a node whose runtime starts pods all the time, is rolled, and is removed.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::multus;
use harness::node::{Agent, Programmed, agent_binary, plugin_binary};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::{Lab, Source, bridge};
use crate::load::{attempt, mesh_pod, pods_while};
use crate::pause;
use crate::runtime::Runtime;

type Settings = Vec<(&'static str, String)>;

/// Redirected pods that a run needs to mean something.
const ENOUGH: usize = 5;

/// The runtime notices a file later than we do.
const NOTICED: Duration = Duration::from_millis(200);

/// Paths, kinds with modes, and contents.
type Tree = BTreeMap<PathBuf, (u32, Vec<u8>)>;

pub(crate) fn list(runtime: Runtime) {
    let lab = Lab::with(runtime, |dir, _| write(&dir.join("net.d/10-pods.conflist"), &vendors_list(runtime)));
    scenario(&lab, &[], None);
}

pub(crate) fn single(runtime: Runtime) {
    let mut config = bridge();
    config["name"] = json!("k8s-pod-network");
    config["cniVersion"] = json!("0.4.0");
    let lab = Lab::with(runtime, |dir, _| write(&dir.join("net.d/10-pods.conf"), &config));
    scenario(&lab, &[], None);
}

pub(crate) fn restless_chained(runtime: Runtime) {
    let lab = Lab::with(runtime, |dir, _| write(&dir.join("net.d/10-pods.conflist"), &vendors_list(runtime)));
    scenario(&lab, &[], Some((&vendors_list(runtime), true)));
}

pub(crate) fn restless_own_file(runtime: Runtime) {
    let lab = Lab::with(runtime, |dir, _| write(&dir.join("net.d/10-pods.conflist"), &vendors_list(runtime)));
    scenario(&lab, &[("ISTIO_OWNED_CNI_CONFIG", "true")], Some((&vendors_list(runtime), false)));
}

pub(crate) fn multus_chained(runtime: Runtime) {
    let lab = Lab::with(runtime, |dir, _| write_multus(dir));
    let _api = multus::api(&lab.netns, "");
    scenario(&lab, &[], None);
}

pub(crate) fn multus_standalone(runtime: Runtime) {
    let lab = Lab::with(runtime, |dir, _| write_multus(dir));
    let _api = multus::api(&lab.netns, "default/istio-cni");
    scenario(&lab, &[("CHAINED_CNI_PLUGIN", "false"), ("CNI_CONF_NAME", "istio-cni.conf")], None);
}

fn vendors_list(runtime: Runtime) -> Value {
    json!({"cniVersion": runtime.cni_version(), "name": "k8s-pod-network", "plugins": [bridge()]})
}

/// As Multus' installer leaves it; its other files have no extension that the runtime would take for a configuration's.
fn write_multus(dir: &Path) {
    symlink(multus::binary(), dir.join("bin/multus")).unwrap();
    let list = json!({"cniVersion": "0.4.0", "name": "k8s-pod-network", "plugins": [bridge()]});
    let conf_dir = dir.join("net.d");
    let config = multus::config(&conf_dir.join("multus.kubeconfig"), &conf_dir, &dir.join("bin"), &list);
    write(&conf_dir.join("05-multus.conf"), &config);
}

/// By rename, as careful vendors do.
fn write(path: &Path, config: &Value) {
    let temporary = path.with_extension("vendor");
    fs::write(&temporary, config.to_string()).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// `restless` is what a vendor writes every second, and whether pods of that moment may miss our entry.
fn scenario(lab: &Lab, more: &[(&'static str, &str)], restless: Option<(&Value, bool)>) {
    let settings = settings(lab, more);
    let before = tree(lab);
    let (mut ready, mut windows, mut last) = (Instant::now(), Vec::new(), None);
    let outcome = pods_while(
        |n| attempt(lab, &mesh_pod(&format!("web-{n}"), Source::Both), 20),
        |_| {
            // Some start before there is anything of ours.
            pause(1200);
            let mut older = start(lab, &settings);
            ready = Instant::now() + NOTICED;
            windows = restless.map(|(list, _)| overwrite(lab, list)).unwrap_or_default();
            pause(2000);
            let rolled = Instant::now();
            let newer = start(lab, &settings);
            older.signal(Signal::SIGTERM);
            assert!(older.wait(), "SIGTERM is a success");
            let rolled = rolled..Instant::now();
            pause(2000);
            last = Some(newer);
            vec![rolled]
        },
    );
    let at_risk = restless.is_some_and(|(_, at_risk)| at_risk);
    outcome.assert_redirected_since(ready, if at_risk { &windows } else { &[] }, ENOUGH);

    let outlives = mesh_pod("outlives", Source::Both);
    lab.write_manifest(&outlives);
    let id = lab.run(&outlives).unwrap();
    let mut agent = last.unwrap();
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait());
    let output = Command::new(agent_binary()).arg("uninstall").envs(settings.clone()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(tree(lab), before, "the directories are as before");
    lab.ready().unwrap();
    if settings.contains(&("CHAINED_CNI_PLUGIN", "false".to_owned())) {
        // Multus remembers each pod's plugins: what `node-cleanup.sh --keep-binary` leaves is for them.
        let error = lab.remove(&id).unwrap_err();
        assert!(error.contains("failed to find plugin \"istio-cni\""), "{error}");
        fs::copy(plugin_binary(), lab.dir.join("bin/istio-cni")).unwrap();
        return lab.remove(&id).unwrap();
    }
    lab.remove(&id).unwrap();
    let pod = mesh_pod("afterwards", Source::Both);
    let id = lab.run(&pod).unwrap();
    assert_eq!(lab.look_into(&pod, &id).unwrap().0.programmed(), Programmed::Nothing);
}

fn settings(lab: &Lab, more: &[(&'static str, &str)]) -> Settings {
    let path = |path: &Path| path.display().to_string();
    let mut settings = vec![
        ("CNI_ENABLE_INSTALL", "true".to_owned()),
        ("CNI_BIN_SOURCE", path(plugin_binary())),
        ("MOUNTED_CNI_BIN_DIR", path(&lab.dir.join("bin"))),
        ("MOUNTED_CNI_NET_DIR", path(&lab.dir.join("net.d"))),
    ];
    settings.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    settings
}

/// An agent that is ready.
fn start(lab: &Lab, settings: &Settings) -> Agent {
    let environment: Vec<_> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let before = crate::holder(&lab.node);
    let agent = lab.node.spawn_agent(agent_binary(), &environment);
    // Its ports are open by then.
    crate::wait_until(&lab.node, "the agent does not take the role", || {
        let now = crate::holder(&lab.node);
        now.is_some() && now != before
    });
    crate::wait_until(&lab.node, "the agent does not get ready", || {
        agent.http(8000, "/readyz").starts_with("HTTP/1.1 200")
    });
    agent
}

/// Have a vendor write its list every second, eight times; the times from each until our entry is back.
fn overwrite(lab: &Lab, list: &Value) -> Vec<Range<Instant>> {
    let path = lab.dir.join("net.d/10-pods.conflist");
    let ours = || fs::read_to_string(&path).is_ok_and(|text| text.contains("istio-cni"));
    let own_file = lab.dir.join("net.d/02-istio-cni.conflist").exists();
    let overwritten = |_| {
        let begin = Instant::now();
        write(&path, list);
        if !own_file {
            crate::wait_until(&lab.node, "our entry does not come back", ours);
        }
        let end = Instant::now() + NOTICED;
        std::thread::sleep(Duration::from_secs(1).saturating_sub(begin.elapsed()));
        begin..end
    };
    (0..8).map(overwritten).collect()
}

fn tree(lab: &Lab) -> Tree {
    let files = ["bin", "net.d"].into_iter().flat_map(|sub| fs::read_dir(lab.dir.join(sub)).unwrap());
    let read = |path: PathBuf| {
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode();
        let link = fs::read_link(&path).map(|to| to.into_os_string().into_encoded_bytes());
        let content = link.unwrap_or_else(|_| fs::read(&path).unwrap());
        (path, (mode, content))
    };
    files.map(|file| read(file.unwrap().path())).collect()
}
