// SPDX-License-Identifier: Apache-2.0
//! What may not grow unnoticed: the crates that the plugin links, and the list of codes that users read.

use std::process::Command;

use cni::Code;

/// Everything the plugin links. A new name here is a decision: the binary is started for every pod.
const CRATES: &[&str] = &[
    "agent-api",
    "bitflags",
    "cfg-if",
    "cni",
    "cni-plugin",
    "itoa",
    "libc",
    "memchr",
    "memoffset",
    "nix",
    "serde",
    "serde_core",
    "serde_json",
    "thiserror",
    "zmij",
];

#[test]
fn the_plugin_links_these_crates_and_no_others() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "-p", "cni-plugin", "-e", "normal,no-proc-macro", "--prefix", "none"])
        .args([
            "--target",
            "x86_64-unknown-linux-musl",
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, CRATES);
}

#[test]
fn the_documented_codes_are_those_of_the_code() {
    let text = include_str!("../../../docs/ERRORS.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| Code"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let documented: Vec<(String, String, String)> =
        rows.iter().map(|row| (row[0].into(), row[1].into(), row[2].into())).collect();
    let expected: Vec<(String, String, String)> = Code::ALL
        .iter()
        .map(|(code, meaning)| (code.number().to_string(), format!("{code:?}"), String::from(*meaning)))
        .collect();
    assert_eq!(documented, expected);
    assert!(rows.iter().all(|row| row.len() == 4 && !row[3].is_empty()), "each row says what to look at");
}
