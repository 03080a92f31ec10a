// SPDX-License-Identifier: Apache-2.0
//! `docs/REASONS.md` against the code.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every code in backquotes in the first column of a table.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/REASONS.md")).unwrap();
    let cells =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next().map(str::to_owned));
    cells
        .flat_map(|cell| cell.split('`').filter(|code| is_code(code)).map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

fn is_code(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// The codes that the agent can give: the literals of the functions named `reason`, and those it answers with.
fn of_the_agent() -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node-agent/src/plugin_server");
    for name in ["failure.rs", "descriptors.rs", "session.rs"] {
        let source = fs::read_to_string(server.join(name)).unwrap();
        let body = source.split("fn reason(&self)").nth(1).unwrap().split("\n    }\n").next().unwrap();
        codes.extend(body.split('"').skip(1).step_by(2).map(str::to_owned));
    }
    let program = fs::read_to_string(server.join("program.rs")).unwrap();
    codes.extend(program.split('"').skip(1).step_by(2).filter(|text| is_code(text)).map(str::to_owned));
    for name in ["plugin_server/handler.rs", "leave.rs", "app.rs", "install.rs", "pod_source.rs"] {
        codes.extend(named_in(&server.join("..").join(name)));
    }
    codes
}

/// The literals that a decision is made with: `Pass("…")` and the like.
fn named_in(file: &Path) -> Vec<String> {
    let source = fs::read_to_string(file).unwrap();
    let production = source.split("#[cfg(test)]").next().unwrap();
    [
        "Pass(\"",
        "Keep(\"",
        "Uninstall(\"",
        "Unclear(\"",
        "Unauthorized(\"",
        "then_some(\"",
        "uid) = (\"",
        "reason = \"",
    ]
    .into_iter()
    .flat_map(|before| production.split(before).skip(1))
    .map(|after| after.split('"').next().unwrap().to_owned())
    .collect()
}

#[test]
fn every_reason_code_is_documented_and_no_other() {
    let mut codes = of_the_agent();
    codes.extend(agent_api::PassReason::ALL.map(|reason| reason.code().to_owned()));
    codes.extend(redirect::Reason::ALL.map(|reason| reason.code().to_owned()));
    codes.extend(redirect::Ipv6Decision::ALL.map(|decision| decision.code().to_owned()));
    codes.insert("other".to_owned());
    assert_eq!(documented(), codes);
}
