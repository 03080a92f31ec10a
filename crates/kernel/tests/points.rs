// SPDX-License-Identifier: Apache-2.0
//! Which messages an operation sends, seen through the fault points; and what happens when somebody comes between.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions, which may")]

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::tables::{chain, rule, set, table};
use common::{in_netns, listing, netfilter_socket, nft, nftables, route_socket, run};
use kernel::{Applied, Backend as _, Nftables, POINTS};
use ruleset::{Elements, Family, PolicyRoute, Statement, Table};

/// A point, which of the times that it is reached, and what to do then.
type Interference = (&'static str, u32, fn());

thread_local! {
    /// The points that this thread reached.
    static REACHED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    /// Its count goes down.
    static INTERFERE: RefCell<Option<Interference>> = const { RefCell::new(None) };
}

fn watch() {
    kernel::HOOK.get_or_init(|| {
        |name| {
            REACHED.with_borrow_mut(|reached| reached.push(name));
            let action = INTERFERE.with_borrow_mut(|interfere| match interfere {
                Some((point, left, action)) if *point == name => {
                    *left = left.saturating_sub(1);
                    (*left == 0).then_some(*action)
                }
                _ => None,
            });
            if let Some(action) = action {
                INTERFERE.take();
                action();
            }
        }
    });
}

fn reached(f: impl FnOnce()) -> Vec<&'static str> {
    watch();
    REACHED.take();
    f();
    REACHED.take()
}

fn one_rule(port_mark: u32) -> [Table; 1] {
    let rules = vec![rule(vec![], vec![Statement::SetMark(port_mark)])];
    [table(Family::Inet, vec![], vec![chain("only", None, rules)])]
}

#[test]
fn a_first_apply_sends_one_batch_and_reads_nothing() {
    in_netns(|| {
        let seen = reached(|| assert_eq!(nftables().apply(&one_rule(1)).unwrap(), Applied::Created));
        let batch = ["kernel:nf-batch:send:before", "kernel:nf-batch:send:after"];
        assert_eq!(seen[..2], batch);
        assert_eq!(seen.iter().filter(|p| p.contains(":send:")).count(), 2, "{seen:?}");
    });
}

#[test]
fn removing_nothing_sends_no_batch() {
    in_netns(|| {
        let seen = reached(|| nftables().remove().unwrap());
        assert!(!seen.is_empty() && seen.iter().all(|p| p.starts_with("kernel:nf-read:")), "{seen:?}");
    });
}

#[test]
fn every_point_is_named_and_reached() {
    in_netns(|| {
        let seen = reached(|| {
            run("ip", &["link", "set", "lo", "up"], "");
            let mut kernel = nftables();
            kernel.apply(&one_rule(1)).unwrap();
            kernel.apply(&one_rule(1)).unwrap();
            let mut route = kernel::route::Route::new(route_socket()).unwrap();
            route.addresses().unwrap();
            route.set_policy_route(&PolicyRoute { mark: 1337, table: 133, ipv4: true, ipv6: true }).unwrap();
        });
        let seen: BTreeSet<_> = seen.into_iter().collect();
        assert_eq!(seen, POINTS.iter().copied().collect());
    });
}

#[test]
fn a_change_between_reading_and_writing_is_noticed_and_the_decision_made_anew() {
    in_netns(|| {
        watch();
        nftables().apply(&one_rule(1)).unwrap();
        // The first batch is the one that expects an untouched netns; the second replaces what was read.
        let interfere: fn() = || nft("add table inet foreign; delete table inet waylay");
        INTERFERE.set(Some(("kernel:nf-batch:send:before", 2, interfere)));
        let applied = nftables().apply(&one_rule(2)).unwrap();
        assert!(INTERFERE.take().is_none(), "nobody interfered");
        assert_eq!(applied, Applied::Created);
        assert_eq!(nftables().observe().unwrap(), one_rule(2));
        assert_eq!(listing().iter().filter(|object| object.get("table").is_some()).count(), 2);
    });
}

#[test]
fn a_change_while_reading_is_noticed_and_the_reading_done_anew() {
    in_netns(|| {
        watch();
        nftables().apply(&one_rule(1)).unwrap();
        // Between the generation and the list of tables.
        let interfere: fn() = || nft("delete table inet waylay");
        INTERFERE.set(Some(("kernel:nf-read:send:before", 3, interfere)));
        assert_eq!(nftables().observe().unwrap(), []);
        assert!(INTERFERE.take().is_none(), "nobody interfered");
    });
}

#[test]
fn a_change_in_the_middle_of_a_long_list_of_elements_is_noticed() {
    in_netns(|| {
        let marks = set("marks", Elements::Mark((0..20_000).collect()));
        let wanted = [table(Family::Inet, vec![marks], vec![])];
        nftables().apply(&wanted).unwrap();
        // The kernel resizes its hash table after the transaction, and a dump meanwhile has elements twice or not at all.
        let settled = Instant::now() + Duration::from_secs(10);
        while nftables().observe().unwrap() != wanted {
            assert!(Instant::now() < settled, "the set does not settle");
            std::thread::sleep(Duration::from_millis(10));
        }
        let receive = "kernel:nf-read:receive:before";
        let seen = reached(|| assert_eq!(nftables().observe().unwrap(), wanted));
        let receives = u32::try_from(seen.iter().filter(|point| **point == receive).count()).unwrap();
        assert!(receives > 12, "{receives}: the list is not long");
        let interfere: fn() = || nft("add element inet waylay marks { 4294967295 }");
        INTERFERE.set(Some((receive, receives / 2, interfere)));
        let live = nftables().observe().unwrap();
        assert!(INTERFERE.take().is_none(), "nobody interfered");
        assert_eq!(live[0].sets[0].elements, Elements::Mark((0..20_000).chain([u32::MAX]).collect()));
    });
}

#[test]
fn somebody_who_never_stops_is_reported_as_worth_another_try() {
    in_netns(|| {
        watch();
        nftables().apply(&one_rule(1)).unwrap();
        fn again() {
            nft("add table inet foreign; delete table inet foreign");
            INTERFERE.set(Some(("kernel:nf-batch:send:before", 1, again)));
        }
        INTERFERE.set(Some(("kernel:nf-batch:send:before", 1, again)));
        let error = Nftables::new(netfilter_socket()).unwrap().apply(&one_rule(2)).unwrap_err();
        INTERFERE.take();
        assert!(matches!(error, kernel::Error::Interrupted { .. }) && error.transient(), "{error}");
        assert_eq!(nftables().observe().unwrap(), one_rule(1));
    });
}
