// SPDX-License-Identifier: Apache-2.0
//! A netns that is programmed again: nothing of the old settings stays, nothing of others goes, and nothing is written
//! where nothing changes.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::os::fd::AsRawFd as _;

use agent_api::netns::Netlink;
use harness::matrix::{Settings, rows};
use harness::netns::Netns;
use kernel::{Applied, PodNetns};
use nix::sys::socket::{MsgFlags, NetlinkAddr, recv, sendto};
use ruleset::{Form, Plan};

/// Changes to the default settings that need all there is: both address families or one, marks, routes, sets.
const SETTINGS: [&str; 6] = [
    "ipv6=true",
    "ipv6=false",
    "mode=TPROXY; ipv6=true; dns=all; drop_invalid=true",
    "mode=TPROXY; ipv6=false",
    "mode=TPROXY; ipv6=drop; in_include=8080,9090",
    "mode=TPROXY; in_include=; out_cidr_exclude=10.96.0.0/16,192.168.0.0/16,2001:db8:96::/48",
];
/// What was there before us, in every respect near to what is ours.
const FOREIGN: &str = "add table inet istio-proxy-nat\n\
                       add chain inet istio-proxy-nat c { type nat hook output priority -100; }\n\
                       add table ip waylay2\n\
                       add set ip waylay2 s { type mark; elements = { 1337 }; }\n";

fn plan(changes: &str, form: Form) -> Plan {
    let settings: Settings = rows()[0].settings.with(changes);
    redirect::compile(&settings.config()).in_form(form)
}

fn pod() -> Netns {
    let pod = Netns::fresh();
    pod.ip("link set lo up\n");
    pod.program("nft", &["-f", "-"], FOREIGN);
    pod
}

fn apply(pod: &Netns, plan: &Plan) -> Applied {
    let open = |netlink: Netlink| pod.run(move || netlink.open().unwrap());
    PodNetns::new(open(Netlink::Netfilter), open(Netlink::Route)).unwrap().apply(plan).unwrap()
}

/// All that could be of ours, as the tools list it.
fn state(pod: &Netns) -> Vec<String> {
    let nft = pod.program("nft", &["list", "ruleset"], "");
    let ip = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "address"];
    let ip = ip.map(|what| pod.program("ip", &what.split(' ').collect::<Vec<_>>(), ""));
    // The kernel adds this route to the address a moment later.
    let settled = |text: String| {
        text.lines().filter(|line| !line.starts_with("local ::6 ")).collect::<Vec<_>>().join("\n")
    };
    [nft].into_iter().chain(ip).map(settled).collect()
}

/// How often the rule sets of the netns were changed (`NFTA_GEN_ID`), by a message of our own.
fn generation(pod: &Netns) -> u32 {
    pod.run(|| {
        let socket = Netlink::Netfilter.open().unwrap();
        // struct nlmsghdr of type NFT_MSG_GETGEN with NLM_F_REQUEST, and struct nfgenmsg.
        let request: [u8; 20] = [20, 0, 0, 0, 16, 10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let kernel = NetlinkAddr::new(0, 0);
        sendto(socket.as_raw_fd(), &request, &kernel, MsgFlags::empty()).unwrap();
        let mut answer = [0; 256];
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert!(len >= 28 && answer[4..6] == [15, 10] && answer[22..24] == [1, 0], "{answer:?}");
        u32::from_be_bytes(answer[24..28].try_into().unwrap())
    })
}

#[test]
fn a_change_leaves_the_same_as_if_the_old_settings_had_never_been() {
    for form in Form::ALL {
        let fresh: Vec<_> = SETTINGS
            .iter()
            .map(|changes| {
                let pod = pod();
                assert_eq!(apply(&pod, &plan(changes, form)), Applied::Created);
                state(&pod)
            })
            .collect();
        let pod = pod();
        apply(&pod, &plan(SETTINGS[0], form));
        // Every ordered pair of settings.
        for old in SETTINGS {
            for (new, expected) in SETTINGS.iter().zip(&fresh).filter(|(new, _)| **new != old) {
                apply(&pod, &plan(old, form));
                assert_eq!(apply(&pod, &plan(new, form)), Applied::Replaced);
                assert_eq!(state(&pod), *expected, "{form:?}: {old} to {new}");
            }
        }
    }
}

#[test]
fn a_change_of_the_form_leaves_nothing_of_the_other() {
    let (one, two) = (plan(SETTINGS[2], Form::Inet), plan(SETTINGS[2], Form::PerFamily));
    let [first, second] = [pod(), pod()];
    apply(&first, &one);
    apply(&second, &two);
    assert_eq!(apply(&first, &two), Applied::Replaced);
    assert_eq!(state(&first), state(&second));
}

#[test]
fn the_same_settings_again_write_nothing() {
    for form in Form::ALL {
        for changes in SETTINGS {
            let pod = pod();
            let plan = plan(changes, form);
            apply(&pod, &plan);
            let (before, state_before) = (generation(&pod), state(&pod));
            assert_eq!(apply(&pod, &plan), Applied::Unchanged, "{form:?}, {changes}");
            assert_eq!((generation(&pod), state(&pod)), (before, state_before), "{form:?}, {changes}");
        }
    }
}

#[test]
fn removal_leaves_the_netns_as_it_was() {
    for form in Form::ALL {
        for changes in SETTINGS {
            let pod = pod();
            let before = state(&pod);
            apply(&pod, &plan(changes, form));
            assert_ne!(state(&pod), before);
            apply(&pod, &redirect::nothing());
            assert_eq!(state(&pod), before, "{form:?}, {changes}");
            assert_eq!(apply(&pod, &redirect::nothing()), Applied::Unchanged);
        }
    }
}
