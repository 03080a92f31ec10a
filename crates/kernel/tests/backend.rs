// SPDX-License-Identifier: Apache-2.0
//! Create, keep, replace, remove; refusals; sizes. Each test in a netns of its own.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions, which may")]

mod common;

use std::os::fd::AsRawFd as _;

use common::tables::{chain, everything, is, prefix4, rule, set, table};
use common::{generation, in_netns, listing, netfilter_socket, nft, nftables};
use kernel::{Applied, Backend as _, Error, Nftables};
use nix::errno::Errno;
use nix::sys::socket::{NetlinkAddr, connect};
use ruleset::{ChainType, Elements, Family, Field, Fingerprint, Hook, L4, Match, Operand, Statement, Table};
use serde_json::Value;

const NAT_OUT: Option<(ChainType, Hook, i32)> = Some((ChainType::Nat, Hook::Output, -100));

fn tcp() -> Match {
    is(Field::L4Proto, Operand::Protocol(L4::Tcp))
}

/// A small table whose fingerprint, so that its content, depends on `port`.
fn redirecting(family: Family, port: u16) -> Table {
    let rules = vec![
        rule(vec![is(Field::SkUid, Operand::Number(1337))], vec![Statement::Accept]),
        rule(vec![tcp(), is(Field::DstPort, Operand::Set("ports".into()))], vec![Statement::Redirect(15001)]),
    ];
    let ports = set("ports", Elements::Port(vec![port, 443]));
    Fingerprint::seal(table(family, vec![ports], vec![chain("nat_output", NAT_OUT, rules)]))
}

#[test]
fn applying_the_same_twice_writes_nothing() {
    in_netns(|| {
        let wanted = [redirecting(Family::Inet, 80)];
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Created);
        let before = generation();
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Unchanged);
        assert_eq!(generation(), before);
        let live = nftables().observe().unwrap();
        assert!(Fingerprint::verify(&live[0]).is_ok());
    });
}

#[test]
fn a_changed_set_element_replaces_the_table_in_one_transaction() {
    in_netns(|| {
        nftables().apply(&[redirecting(Family::Inet, 80)]).unwrap();
        let before = generation();
        let wanted = [redirecting(Family::Inet, 81)];
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Replaced);
        assert_eq!(generation(), before + 1);
        assert_eq!(nftables().observe().unwrap(), wanted);
    });
}

#[test]
fn a_table_for_both_families_gives_way_to_one_for_each() {
    in_netns(|| {
        nftables().apply(&[redirecting(Family::Inet, 80)]).unwrap();
        let wanted = [redirecting(Family::Ip, 80), redirecting(Family::Ip6, 80)];
        let before = generation();
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Replaced);
        assert_eq!(generation(), before + 1);
        assert_eq!(nftables().observe().unwrap(), wanted);
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Unchanged);
        assert_eq!(nftables().apply(&[redirecting(Family::Inet, 80)]).unwrap(), Applied::Replaced);
    });
}

#[test]
fn tables_of_others_stay_as_they_are() {
    in_netns(|| {
        nft("table inet foreign { set s { type mark; }; chain waylay { meta mark @s accept; }; }\n\
             table ip waylay_too { chain c { type nat hook output priority -100; ip daddr 10.0.0.1 accept; }; }\n\
             table arp waylay { chain c { }; }\n");
        let foreign = listing();
        let wanted = [redirecting(Family::Inet, 80)];
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Created);
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Unchanged);
        assert_eq!(nftables().apply(&[redirecting(Family::Inet, 81)]).unwrap(), Applied::Replaced);
        let both = listing();
        assert!(both.len() > foreign.len() && foreign.iter().all(|object| both.contains(object)));
        nftables().remove().unwrap();
        assert_eq!(listing(), foreign);
    });
}

#[test]
fn removing_leaves_nothing_and_removing_nothing_changes_nothing() {
    in_netns(|| {
        let untouched = generation();
        nftables().remove().unwrap();
        assert_eq!(nftables().apply(&[]).unwrap(), Applied::Unchanged);
        assert_eq!(nftables().observe().unwrap(), []);
        assert_eq!(generation(), untouched);
        nftables().apply(&[redirecting(Family::Ip, 80), redirecting(Family::Ip6, 80)]).unwrap();
        nftables().remove().unwrap();
        assert_eq!(listing(), Vec::<Value>::new());
        nftables().apply(&[redirecting(Family::Inet, 80)]).unwrap();
        assert_eq!(nftables().apply(&[]).unwrap(), Applied::Replaced);
        assert_eq!(listing(), Vec::<Value>::new());
    });
}

#[test]
fn the_first_refused_rule_is_named_with_its_text() {
    in_netns(|| {
        // Legal by shape, but the kernel has tproxy in prerouting only.
        let bad = |port| rule(vec![tcp()], vec![Statement::Tproxy(port)]);
        let good = rule(vec![], vec![Statement::Accept]);
        let base = Some((ChainType::Filter, Hook::Output, 0));
        let rules = vec![good.clone(), good.clone(), bad(1), good.clone(), bad(2), good];
        let wanted =
            table(Family::Inet, vec![], vec![chain("first", None, vec![]), chain("out", base, rules)]);
        let error = nftables().apply(&[wanted]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "add rule 2 of chain inet waylay out: meta l4proto tcp tproxy to :1 comment \"test.reason\": \
             EOPNOTSUPP: Operation not supported on transport endpoint"
        );
        assert!(!error.transient());
        assert_eq!(listing(), Vec::<Value>::new());
    });
}

#[test]
fn a_probe_takes_what_the_kernel_takes_and_changes_nothing() {
    in_netns(|| {
        nft("table ip other { chain c { type filter hook output priority 0; }; }");
        let (before, generation_before) = (listing(), generation());
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            nftables().probe(&[everything(family)]).unwrap();
        }
        assert_eq!((listing(), generation()), (before, generation_before));
    });
}

#[test]
fn a_probe_names_what_the_kernel_does_not_take() {
    in_netns(|| {
        // NAT comes after connection tracking, at -200: as a chain type that an older kernel lacks, it is refused.
        let base = Some((ChainType::Nat, Hook::Output, -300));
        let wanted = table(Family::Inet, vec![], vec![chain("early", base, vec![])]);
        match nftables().probe(&[wanted]) {
            Err(Error::Refused { what, errno, .. }) => {
                assert_eq!((what.as_str(), errno), ("add chain inet waylay early", Errno::EOPNOTSUPP));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(listing(), Vec::<Value>::new());
    });
}

#[test]
fn a_refused_chain_is_named_and_not_the_rules_that_fail_with_it() {
    in_netns(|| {
        // NAT comes after connection tracking, at -200.
        let base = Some((ChainType::Nat, Hook::Output, -300));
        let rules = vec![rule(vec![], vec![Statement::Accept]); 3];
        let wanted = table(Family::Inet, vec![], vec![chain("early", base, rules)]);
        match nftables().apply(&[wanted]) {
            Err(Error::Refused { what, .. }) => assert_eq!(what, "add chain inet waylay early"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn what_others_did_to_our_table_is_seen_and_undone() {
    let wanted = [redirecting(Family::Inet, 80)];
    for (change, object) in [
        (
            "add rule inet waylay nat_output counter comment \"x\"",
            "rule 2 of chain nat_output of table inet waylay",
        ),
        (
            "add rule inet waylay nat_output meta mark 1-3 accept comment \"x\"",
            "rule 2 of chain nat_output of table inet waylay",
        ),
        (
            "add rule inet waylay nat_output tcp dport 80 redirect to :1-2 comment \"x\"",
            "rule 2 of chain nat_output of table inet waylay",
        ),
        (
            "add rule inet waylay nat_output tcp dport 80 redirect to :1 random comment \"x\"",
            "rule 2 of chain nat_output of table inet waylay",
        ),
        (
            "add rule inet waylay nat_output ct original zone set 1 comment \"x\"",
            "rule 2 of chain nat_output of table inet waylay",
        ),
        ("add table inet waylay { flags dormant; }", "flags of table inet waylay"),
        ("add counter inet waylay c", "objects of table inet waylay"),
        ("add chain inet waylay c { type filter hook input priority 0; }", "a chain of table inet waylay"),
        ("add chain inet waylay nat_output { policy drop; }", "a chain of table inet waylay"),
        ("add set inet waylay s { type mark; timeout 1s; }", "a set of table inet waylay"),
        ("add set inet waylay s { type ether_addr; }", "a set of table inet waylay"),
    ] {
        in_netns(|| {
            nftables().apply(&wanted).unwrap();
            nft(change);
            match nftables().observe() {
                Err(Error::Decode { object: found, .. }) => assert_eq!(found, object, "{change}"),
                other => panic!("{change}: {other:?}"),
            }
            assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Replaced, "{change}");
            assert_eq!(nftables().observe().unwrap(), wanted, "{change}");
        });
    }
}

#[test]
fn what_others_took_from_our_table_is_seen_and_put_back() {
    let wanted = [redirecting(Family::Inet, 80)];
    for change in [
        "flush chain inet waylay nat_output",
        "flush set inet waylay ports",
        "add element inet waylay ports { 444 }",
        "add chain inet waylay more",
        "add rule inet waylay nat_output oif lo accept comment \"x\"",
        "delete set inet waylay fingerprint",
    ] {
        in_netns(|| {
            nftables().apply(&wanted).unwrap();
            nft(change);
            let live = nftables().observe().unwrap();
            assert_ne!(live, wanted, "{change}");
            assert!(Fingerprint::verify(&live[0]).is_err(), "{change}");
            assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Replaced, "{change}");
            assert_eq!(nftables().observe().unwrap(), wanted, "{change}");
        });
    }
}

#[test]
fn tables_that_must_not_be_written_are_refused_before_anything_is_sent() {
    in_netns(|| {
        let untouched = generation();
        let mut other = redirecting(Family::Inet, 80);
        other.name = String::from("nat");
        assert!(matches!(nftables().apply(&[other]), Err(Error::NotOurs { name }) if name == "nat"));
        let mut illegal = redirecting(Family::Inet, 80);
        illegal.sets.clear();
        assert!(matches!(nftables().apply(&[illegal]), Err(Error::Invalid { .. })));
        let mut huge = redirecting(Family::Inet, 80);
        huge.chains[0].rules[0].matches = vec![is(Field::SkUid, Operand::Number(1)); 2000];
        match nftables().apply(&[huge]) {
            Err(Error::TooLarge { what }) => {
                assert!(what.starts_with("add rule 0 of chain inet waylay nat_output"))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(generation(), untouched);
    });
}

#[test]
fn elements_count_as_the_same_in_any_order() {
    in_netns(|| {
        let with = |ports| {
            let ports = set("ports", Elements::Port(ports));
            [table(Family::Inet, vec![ports], vec![])]
        };
        nftables().apply(&with(vec![443, 80, 80])).unwrap();
        assert_eq!(nftables().observe().unwrap(), with(vec![80, 443]));
        assert_eq!(nftables().apply(&with(vec![443, 80, 80])).unwrap(), Applied::Unchanged);
    });
}

#[test]
fn ten_thousand_prefixes_of_each_family_fit() {
    in_netns(|| {
        // Every other /24 and /48, so that none merge.
        let v4 = (0u32..10_000).map(|n| prefix4((n << 9 | 0x0a00_0000).to_be_bytes(), 24)).collect();
        let v6 = (0u128..10_000).map(|n| ruleset::Prefix::new(0xfd << 120 | n << 81, 48).unwrap()).collect();
        let ports = set("ports", Elements::Port((0..10_000).map(|n| n * 2).collect()));
        let sets = vec![set("v4", Elements::Ipv4(v4)), set("v6", Elements::Ipv6(v6)), ports];
        assert_eq!(sets.iter().map(|s| s.elements.len()).sum::<usize>(), 30_000);
        let matches = vec![is(Field::Ip4Dst, Operand::Set("v4".into()))];
        let rules = vec![rule(matches, vec![Statement::Accept])];
        let wanted = [table(Family::Inet, sets, vec![chain("out", NAT_OUT, rules)])];
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Created);
        // The kernel resizes its hash table after the transaction, and a dump meanwhile has elements twice or not at all.
        let settled = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while nftables().observe().unwrap() != wanted && std::time::Instant::now() < settled {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(nftables().observe().unwrap(), wanted);
        assert_eq!(nftables().apply(&wanted).unwrap(), Applied::Unchanged);
        assert_eq!(listing().len(), 6);
    });
}

#[test]
fn answers_to_an_earlier_owner_of_the_socket_are_not_taken_for_ours() {
    in_netns(|| {
        let socket = netfilter_socket();
        let mut first = Nftables::new(socket.try_clone().unwrap()).unwrap();
        first.apply(&[redirecting(Family::Inet, 80)]).unwrap();
        // A question whose answer nobody read: NFT_MSG_GETTABLE as a dump.
        let question: [u8; 20] = [20, 0, 0, 0, 1, 10, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        nix::unistd::write(&socket, &question).unwrap();
        // And it was left connected to another process.
        connect(socket.as_raw_fd(), &NetlinkAddr::new(1, 0)).unwrap();
        let mut second = Nftables::new(socket.try_clone().unwrap()).unwrap();
        // Another one while we are at it: NFT_MSG_GETGEN with NLM_F_ACK.
        let question: [u8; 20] = [20, 0, 0, 0, 16, 10, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        nix::unistd::write(&socket, &question).unwrap();
        assert_eq!(second.observe().unwrap(), [redirecting(Family::Inet, 80)]);
        assert_eq!(second.apply(&[redirecting(Family::Inet, 81)]).unwrap(), Applied::Replaced);
    });
}

/// The effective user of this thread alone: glibc's function would change all threads.
#[allow(unsafe_code, reason = "no safe call changes one thread's credentials")]
fn set_thread_euid(euid: u32) {
    // SAFETY: setresuid(2) takes three numbers and touches no memory; -1 leaves the real and saved one.
    let result = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, euid, -1) };
    assert_eq!(result, 0);
}

#[test]
fn the_kernel_refuses_a_socket_that_was_opened_without_net_admin() {
    in_netns(|| {
        set_thread_euid(65534);
        let (nf, route) = (netfilter_socket(), common::route_socket());
        set_thread_euid(0);
        match Nftables::new(nf).unwrap().apply(&[redirecting(Family::Inet, 80)]) {
            Err(error @ Error::Refused { errno: Errno::EPERM, .. }) => assert!(!error.transient()),
            other => panic!("{other:?}"),
        }
        match kernel::route::Route::new(route).unwrap().set_passthrough(true) {
            Err(Error::Refused { errno: Errno::EPERM, .. }) => {}
            other => panic!("{other:?}"),
        }
        // As root from the start it works, so the socket's origin made the difference.
        assert_eq!(nftables().apply(&[redirecting(Family::Inet, 80)]).unwrap(), Applied::Created);
    });
}

#[test]
fn what_is_no_netlink_socket_is_refused() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Nftables::new(file.into()), Err(Error::Setup { errno: Errno::ENOTSOCK })));
}

#[test]
fn everything_can_be_applied_and_removed_on_one_socket() {
    in_netns(|| {
        let mut kernel = nftables();
        for family in [Family::Inet, Family::Ip, Family::Ip6] {
            let wanted = [everything(family)];
            let first = kernel.apply(&wanted).unwrap();
            assert_eq!(first, if family == Family::Inet { Applied::Created } else { Applied::Replaced });
            assert_eq!(kernel.apply(&wanted).unwrap(), Applied::Unchanged);
        }
        kernel.remove().unwrap();
        assert_eq!(kernel.observe().unwrap(), []);
    });
}
