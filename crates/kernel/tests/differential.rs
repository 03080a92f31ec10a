// SPDX-License-Identifier: Apache-2.0
//! What we write, `nft` lists as if it had written it itself, and the kernel gives it back unchanged.

#![allow(clippy::unwrap_used, reason = "test code outside of test functions, which may")]

mod common;

use common::tables::{any_table, everything};
use common::{in_netns, listing, nft, nftables};
use kernel::{Applied, Backend as _, NftJson};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use ruleset::{Family, Field, Match, Table, render};

fn by_nft(table: &Table) -> Vec<serde_json::Value> {
    in_netns(|| {
        nft(&render(table));
        listing()
    })
}

fn by_us(table: &Table) -> Vec<serde_json::Value> {
    in_netns(|| {
        assert_eq!(nftables().apply(std::slice::from_ref(table)).unwrap(), Applied::Created);
        listing()
    })
}

#[test]
fn every_expression_statement_and_set_lists_as_if_nft_had_written_it() {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let table = everything(family);
        ruleset::validate(&table).unwrap();
        let (ours, theirs) = (by_us(&table), by_nft(&table));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{family}");
        }
        assert_eq!(ours.len(), theirs.len());
        assert!(ours.len() > 90, "{family}: {}", ours.len());
    }
}

#[test]
fn everything_is_given_back_by_the_kernel_unchanged() {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let table = everything(family);
        in_netns(|| {
            let mut kernel = nftables();
            kernel.apply(std::slice::from_ref(&table)).unwrap();
            assert_eq!(kernel.observe().unwrap(), [table]);
        });
    }
}

#[test]
fn the_json_back_end_writes_and_reads_the_same() {
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let mut table = everything(family);
        // It neither writes comments of sets nor keeps a match on the protocol behind one on a port.
        table.sets.iter_mut().for_each(|set| set.comment = None);
        let transport = |m: &Match| matches!(m.field, Field::L4Proto | Field::DstPort);
        for chain in &mut table.chains {
            chain.rules.retain(|rule| rule.matches.iter().filter(|m| transport(m)).count() < 2);
        }
        let ours = by_us(&table);
        in_netns(|| {
            let mut json = NftJson::new();
            assert_eq!(json.observe().unwrap(), []);
            assert_eq!(json.apply(std::slice::from_ref(&table)).unwrap(), Applied::Created);
            assert_eq!(listing(), ours);
            assert_eq!(json.observe().unwrap(), std::slice::from_ref(&table));
            assert_eq!(nftables().observe().unwrap(), std::slice::from_ref(&table));
            assert_eq!(json.apply(std::slice::from_ref(&table)).unwrap(), Applied::Unchanged);
            table.chains[1].rules.clear();
            assert_eq!(json.apply(std::slice::from_ref(&table)).unwrap(), Applied::Replaced);
            assert_eq!(json.observe().unwrap(), std::slice::from_ref(&table));
            json.remove().unwrap();
            json.remove().unwrap();
            assert_eq!(listing(), Vec::<serde_json::Value>::new());
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_table_is_given_back_by_the_kernel_unchanged(table in any_table(false)) {
        ruleset::validate(&table).map_err(|e| TestCaseError::fail(e.to_string()))?;
        in_netns(|| {
            let mut kernel = nftables();
            prop_assert_eq!(kernel.apply(std::slice::from_ref(&table)).unwrap(), Applied::Created);
            prop_assert_eq!(kernel.observe().unwrap(), std::slice::from_ref(&table));
            prop_assert_eq!(kernel.apply(std::slice::from_ref(&table)).unwrap(), Applied::Unchanged);
            Ok(())
        })?;
    }

    #[test]
    fn any_table_lists_as_if_nft_had_written_it(table in any_table(true)) {
        let (ours, theirs) = (by_us(&table), by_nft(&table));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(ours.to_string(), theirs.to_string());
        }
        prop_assert_eq!(ours.len(), theirs.len());
    }
}
