// SPDX-License-Identifier: Apache-2.0
//! Network namespaces of a test's own, sockets in them, the `nft` program as a witness, and tables to try.
//!
//! Every test that uses this needs root; without it, it fails.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "test code outside of test functions, which may")]

pub(crate) mod tables;

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::{Command, Stdio};

use kernel::Nftables;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use serde_json::Value;

/// Run `f` in a fresh netns, on a thread that ends with it: no other test ever sees the namespace.
pub(crate) fn in_netns<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a netns of our own needs root");
            f()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn netlink(protocol: SockProtocol) -> OwnedFd {
    socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap()
}

/// A socket for nf_tables in the netns of this thread.
pub(crate) fn netfilter_socket() -> OwnedFd {
    netlink(SockProtocol::NetlinkNetFilter)
}

/// A socket for routing in the netns of this thread.
pub(crate) fn route_socket() -> OwnedFd {
    netlink(SockProtocol::NetlinkRoute)
}

/// Our back end in the netns of this thread.
pub(crate) fn nftables() -> Nftables {
    Nftables::new(netfilter_socket()).unwrap()
}

/// Run `program` in the netns of this thread and give back what it prints; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

/// `nft -f`.
pub(crate) fn nft(text: &str) {
    run("nft", &["-f", "-"], text);
}

/// The rule sets of the netns as `nft` lists them, without what differs from run to run.
pub(crate) fn listing() -> Vec<Value> {
    let document: Value = serde_json::from_str(&run("nft", &["-j", "list", "ruleset"], "")).unwrap();
    let mut objects: Vec<Value> = document["nftables"].as_array().unwrap().clone();
    objects.retain(|object| object.get("metainfo").is_none());
    for object in &mut objects {
        for body in object.as_object_mut().unwrap().values_mut() {
            body.as_object_mut().unwrap().remove("handle");
            // The kernel keeps the elements of plain sets in no order.
            if let Some(elements) = body.get_mut("elem").and_then(Value::as_array_mut) {
                elements.sort_by_key(ToString::to_string);
            }
        }
    }
    objects
}

/// How often the rule sets of the netns were changed (`NFTA_GEN_ID`), asked for without any code of the crate.
pub(crate) fn generation() -> u32 {
    let fd = netfilter_socket();
    // struct nlmsghdr of type NFT_MSG_GETGEN with NLM_F_REQUEST, and struct nfgenmsg.
    let request: [u8; 20] = [20, 0, 0, 0, 16, 10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let kernel = NetlinkAddr::new(0, 0);
    sendto(fd.as_raw_fd(), &request, &kernel, MsgFlags::empty()).unwrap();
    let mut answer = [0; 256];
    let len = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    assert!(len >= 28 && answer[4..6] == [15, 10] && answer[22..24] == [1, 0], "{answer:?}");
    u32::from_be_bytes(answer[24..28].try_into().unwrap())
}
