// SPDX-License-Identifier: Apache-2.0
//! Settings and the rules they compile to, as text under `tests/golden/`.
//!
//! After a wanted change: `UPDATE_GOLDEN=1 cargo test -p redirect --test golden`, and review the diff as code.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::path::Path;

use redirect::annotations::{parse_cidrs, parse_inbound_ports, parse_outbound_cidrs, parse_ports};
use redirect::{Config, Dns, Ipv6, Mode, OwnerGroups, compile};

fn cases() -> Vec<(&'static str, Config)> {
    let default = Config::default();
    let dual = Config { ipv6: Ipv6::Capture, ..Config::default() };
    vec![
        ("default_ipv4", default),
        ("default_dual_stack", dual.clone()),
        (
            "lists",
            Config {
                inbound: parse_inbound_ports("8080,9090,15008").unwrap(),
                outbound: parse_outbound_cidrs("10.96.0.0/12,192.168.0.0/16,2001:db8:96::/48").unwrap(),
                outbound_exclude: parse_cidrs("10.96.5.0/24,10.96.6.0/24,10.96.8.0/24").unwrap(),
                outbound_ports: parse_ports("3306,5432").unwrap(),
                ..dual.clone()
            },
        ),
        (
            "nothing_captured",
            Config {
                inbound: parse_inbound_ports("").unwrap(),
                outbound: parse_outbound_cidrs("").unwrap(),
                outbound_ports_exclude: parse_ports("").unwrap(),
                ..dual.clone()
            },
        ),
        (
            "loopback_included",
            Config { outbound: parse_outbound_cidrs("127.0.0.0/8").unwrap(), ..dual.clone() },
        ),
        (
            "tproxy_dns",
            Config {
                mode: Mode::Tproxy,
                dns: Dns::All,
                drop_invalid: true,
                owner_groups: OwnerGroups::AllBut([2000, 2001].into()),
                ..dual.clone()
            },
        ),
        (
            "dns_nameservers",
            Config {
                dns: Dns::Nameservers(
                    ["203.0.113.10", "127.0.0.53", "2001:db8:1::10"].map(|a| a.parse().unwrap()).into(),
                ),
                ..dual.clone()
            },
        ),
        ("ipv6_dropped", Config { ipv6: Ipv6::Drop, dns: Dns::All, ..dual.clone() }),
        ("ipv6_dropped_tproxy", Config { ipv6: Ipv6::Drop, mode: Mode::Tproxy, ..dual }),
    ]
}

fn compiled(config: &Config) -> String {
    let plan = compile(config);
    let tables: String = plan.tables.iter().map(ruleset::render).collect();
    format!("{tables}# passthrough_ipv6 {}\n# policy_route {:?}\n", plan.passthrough_ipv6, plan.policy_route)
}

#[test]
fn settings_compile_to_the_reviewed_rules() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for (name, config) in cases() {
        let path = dir.join(format!("{name}.nft"));
        let text = compiled(&config);
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text, "{name}");
    }
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), cases().len(), "a golden file without a case");
}

#[test]
fn every_compiled_table_is_legal_and_carries_its_fingerprint() {
    for (name, config) in cases() {
        for table in compile(&config).tables {
            assert_eq!(ruleset::validate(&table), Ok(()), "{name}");
            assert!(ruleset::Fingerprint::verify(&table).is_ok(), "{name}");
        }
    }
}

#[test]
fn default_settings_need_at_most_20_rules_and_tproxy_with_dns_45() {
    let rules = |wanted: &str| {
        let (_, config) = cases().into_iter().find(|(name, _)| *name == wanted).unwrap();
        compile(&config).tables.iter().flat_map(|t| &t.chains).map(|c| c.rules.len()).sum::<usize>()
    };
    assert!(rules("default_dual_stack") <= 20);
    assert!(rules("tproxy_dns") <= 45);
}
