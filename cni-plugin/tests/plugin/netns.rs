// SPDX-License-Identifier: Apache-2.0
//! What `CNI_NETNS` may be. Nothing here reaches an agent: there is none, and each call fails at once.

use std::time::Duration;

use crate::harness::{Caller, FakeAgent, RunDir, TestNetns, done};

const MOUNT: &str = "must be a network namespace; the runtime's mount on it may be missing here";

#[test]
fn a_netns_that_is_none_has_a_code_of_its_own() {
    let dir = RunDir::new();
    let file = dir.0.join("cni-1234");
    std::fs::write(&file, "").unwrap();
    let (file, directory) = (file.display().to_string(), dir.0.display().to_string());
    for (path, code, text) in [
        (
            "/nonexistent/netns",
            102,
            "it does not exist; the runtime has removed the sandbox, or runs in another mount namespace"
                .to_owned(),
        ),
        (file.as_str(), 103, format!("it is not a namespace; {MOUNT}")),
        (directory.as_str(), 103, format!("it is not a namespace; {MOUNT}")),
        ("/dev/null", 103, format!("it is not a namespace; {MOUNT}")),
        ("/proc/self/ns/mnt", 103, format!("it is a namespace, but not a network namespace; {MOUNT}")),
    ] {
        for verb in ["ADD", "CHECK"] {
            let finished = Caller::new(verb, dir.config("")).with("CNI_NETNS", path).run();
            finished.failed_with(code, &format!("CNI_NETNS is \"{path}\": {text}"));
            assert!(finished.took < Duration::from_secs(1), "{finished:?}");
        }
    }
}

#[test]
fn a_path_that_cannot_be_opened_is_code_104() {
    let long = format!("/{}", "n".repeat(5000));
    let finished = Caller::new("ADD", RunDir::new().config("")).with("CNI_NETNS", &long).run();
    finished.failed_with(
        104,
        &format!(
            "CNI_NETNS is \"{long}\": ENAMETOOLONG: File name too long; must be a network namespace that root can open"
        ),
    );
}

#[test]
fn the_plugins_own_netns_is_refused_before_the_agent_hears_of_it() {
    let dir = RunDir::new();
    // The script is not finished by the refused calls: the one with the override is the first that arrives.
    let agent = FakeAgent::start(&dir, vec![done()]);
    for verb in ["ADD", "CHECK"] {
        Caller::new(verb, dir.config("")).with("CNI_NETNS", "/proc/self/ns/net").run().failed_with(
            8,
            "CNI_NETNS is \"/proc/self/ns/net\": the network namespace of the container runtime itself; redirecting that \
             would cut off the node",
        );
    }
    let overridden = Caller::new("ADD", dir.config(""))
        .with("CNI_NETNS", "/proc/self/ns/net")
        .with("CNI_NETNS_OVERRIDE", "TRUE");
    overridden.run().succeeded_with("{\"cniVersion\":\"1.0.0\"}\n");
    assert_eq!(agent.seen().len(), 1);
}

#[test]
fn a_caller_without_privileges_is_told_so() {
    let (dir, netns) = (RunDir::new(), TestNetns::new());
    let finished = Caller::new("ADD", dir.config(""))
        .with("CNI_NETNS", &netns.path())
        .under(&["/usr/bin/setpriv", "--bounding-set", "-sys_admin"])
        .run();
    finished.failed_with(
        104,
        &format!(
            "enter the network namespace \"{}\": EPERM: Operation not permitted; the runtime must run as root",
            netns.path()
        ),
    );
}
