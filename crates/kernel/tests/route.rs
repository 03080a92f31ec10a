// SPDX-License-Identifier: Apache-2.0
//! Addresses, policy rules and routes, with ip(8) as the witness.

mod common;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use common::{in_netns, route_socket, run};
use kernel::route::{Address, Route};
use ruleset::PolicyRoute;

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>(), "")
}

fn route() -> Route {
    Route::new(route_socket()).expect("a netlink socket")
}

#[test]
fn addresses_come_in_the_kernels_order_with_ipv4_first() {
    in_netns(|| {
        ip("link set lo up");
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("addr add fd00:9::2/64 dev v0 nodad");
        ip("addr add 10.9.0.2/24 dev v0");
        ip("addr add 10.9.0.3 peer 10.9.0.4 dev v1");
        let index = |name| nix::net::if_::if_nametoindex(name).unwrap();
        let (v0, v1) = (index("v0"), index("v1"));
        let mut got = route().addresses().unwrap();
        for address in &mut got {
            assert!(address.age < Duration::from_secs(60), "{address:?}");
            address.age = Duration::ZERO;
        }
        let plain = |addr: &str, interface| Address {
            addr: addr.parse().unwrap(),
            interface,
            host_scope: false,
            link_scope: false,
            unusable: false,
            age: Duration::ZERO,
        };
        let local = |addr: &str| Address { host_scope: true, ..plain(addr, 1) };
        let mut expected = vec![local("127.0.0.1")];
        // The peer's end was made first.
        let mut v4 = [(v0, plain("10.9.0.2", v0)), (v1, plain("10.9.0.3", v1))];
        v4.sort_by_key(|(index, _)| *index);
        expected.extend(v4.map(|(_, address)| address));
        expected.push(local("::1"));
        expected.push(plain("fd00:9::2", v0));
        assert_eq!(got, expected);
    });
}

#[test]
fn a_link_local_address_is_told_apart() {
    in_netns(|| {
        ip("link set lo up");
        ip("addr add fe80::1/64 dev lo");
        let found =
            route().addresses().unwrap().into_iter().find(|a| a.addr.to_string() == "fe80::1").unwrap();
        assert!(found.link_scope && !found.host_scope);
    });
}

#[test]
fn an_address_is_as_old_as_its_interface_is_up() {
    in_netns(|| {
        let age = || {
            let found = route().addresses().unwrap().into_iter().find(|a| a.addr.to_string() == "::1");
            found.map(|address| address.age)
        };
        assert_eq!(age(), None);
        let before = Instant::now();
        ip("link set lo up");
        let after = Instant::now();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(70));
            let (youngest, age, oldest) = (after.elapsed(), age().unwrap(), before.elapsed());
            let error = Duration::from_millis(15);
            assert!(youngest <= age + error && age <= oldest + error, "{youngest:?} {age:?} {oldest:?}");
        }
    });
}

#[test]
fn the_passthrough_address_can_be_bound_and_added_twice() {
    in_netns(|| {
        ip("link set lo up");
        assert!(TcpListener::bind("[::6]:0").is_err());
        route().set_passthrough(true).unwrap();
        TcpListener::bind("[::6]:0").unwrap();
        route().set_passthrough(true).unwrap();
        let found = route().addresses().unwrap().into_iter().filter(|a| a.addr.to_string() == "::6").count();
        assert_eq!(found, 1);
    });
}

#[test]
fn without_ipv6_the_passthrough_address_is_refused_by_name() {
    in_netns(|| {
        ip("link set lo up");
        // The file shows the netns of the thread that opens it.
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let error = route().set_passthrough(true).unwrap_err();
        assert!(error.to_string().starts_with("add address ::6/128 dev lo: "), "{error}");
        assert!(!error.transient());
    });
}

/// All rules and the routes of the table, as ip(8) lists them.
fn state() -> [String; 4] {
    ["-4 -d rule", "-6 -d rule", "-4 -d route show table 133", "-6 -d route show table 133"].map(|what| {
        let text = ip(what);
        // The order of words is ip's own.
        text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
    })
}

#[test]
fn the_policy_route_is_what_ip_would_add_and_is_never_doubled() {
    let wanted = PolicyRoute { mark: 1337, table: 133, ipv4: true, ipv6: true };
    let theirs = in_netns(|| {
        ip("link set lo up");
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add fwmark 1337 lookup 133 priority 1337"));
            ip(&format!("{family} route add local default dev lo table 133"));
        }
        state()
    });
    let ours = in_netns(|| {
        ip("link set lo up");
        route().set_policy_route(&wanted).unwrap();
        let once = state();
        route().set_policy_route(&wanted).unwrap();
        assert_eq!(state(), once);
        once
    });
    assert_eq!(ours, theirs);
}

#[test]
fn without_ipv6_only_the_ipv4_rule_and_route_are_added() {
    in_netns(|| {
        ip("link set lo up");
        let before = ip("-6 rule");
        route().set_policy_route(&PolicyRoute { mark: 7, table: 300, ipv4: true, ipv6: false }).unwrap();
        assert_eq!(ip("-6 rule"), before);
        assert!(ip("-4 rule").contains("1337:\tfrom all fwmark 0x7 lookup 300"), "{}", ip("-4 rule"));
    });
}

#[test]
fn what_is_not_wanted_is_removed_and_nothing_else() {
    let wanted = PolicyRoute { mark: 1337, table: 133, ipv4: true, ipv6: true };
    in_netns(|| {
        ip("link set lo up");
        // Neighbours in every respect: another priority, another mark, another table, another prefix, another address.
        for family in ["-4", "-6"] {
            ip(&format!("{family} rule add fwmark 1337 lookup 133 priority 1338"));
            ip(&format!("{family} rule add fwmark 7 lookup 133 priority 1337"));
            ip(&format!("{family} route add local default dev lo table 134"));
        }
        ip("-4 route add local 10.0.0.0/8 dev lo table 133");
        ip("addr add ::7/128 dev lo");
        let all = || (state(), ip("addr show dev lo"));
        let before = all();
        let mut route = route();
        for _ in 0..2 {
            route.set_passthrough(true).unwrap();
            route.set_policy_route(&wanted).unwrap();
            assert_ne!(all().0, before.0);
            assert_ne!(all().1, before.1);
            for _ in 0..2 {
                route.set_passthrough(false).unwrap();
                route.set_policy_route(&PolicyRoute { ipv4: false, ipv6: false, ..wanted }).unwrap();
                assert_eq!(all(), before);
            }
        }
    });
}
