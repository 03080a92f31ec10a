// SPDX-License-Identifier: Apache-2.0
//! What Waylay costs: prints a table, writes `target/bench/report.json` (a list of `{name, value, unit, limit, ok}`) and
//! fails when a figure is over its limit. Needs root.
//!
//! `make bench` is `make image` and `cargo run --locked --release -p waylay-tests --bin bench`. It builds the plugin and the
//! agent as they are shipped, or takes those that `WAYLAY_PLUGIN` and `WAYLAY_AGENT` name. Arguments choose parts: `image`,
//! `rules`, `lists`, `connect`, `start`, `node`, `life`; without any, all.
//!
//! Times depend on the machine and on who else uses it. So each is given as a ratio to what stands beside it in the same
//! round: a process that does nothing (`/bin/true`) for the plugin, `nft -f` for the rules, no or a shorter list for lists.
//! Figures without a limit are
//! for information.

#![allow(clippy::unwrap_used, reason = "a panic is the report: what cannot be measured has failed")]

mod calls;
mod connect;
mod image;
mod life;
mod lists;
mod node;
mod report;
mod rules;
mod start;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::report::Report;

fn main() -> ExitCode {
    let plugin = artefact("WAYLAY_PLUGIN", harness::node::plugin_binary);
    let agent = artefact("WAYLAY_AGENT", harness::node::agent_binary);
    go_first();
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")), PathBuf::from);
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let mut report = Report::default();
    if wanted("image") {
        let size = std::fs::metadata(&plugin).unwrap().len();
        report.limited("plugin binary", size as f64 / 1e3, "kB", 600.0);
        image::measure(&target, &mut report);
    }
    if wanted("rules") {
        rules::measure(&mut report);
    }
    if wanted("lists") {
        lists::measure(&mut report);
    }
    if wanted("connect") {
        connect::measure(&mut report);
    }
    if wanted("start") {
        start::measure(&plugin, &agent, &mut report);
    }
    if wanted("node") {
        node::measure(&plugin, &agent, &mut report);
        node::measure_known(&plugin, &agent, &mut report);
    }
    if wanted("life") {
        life::measure(&plugin, &agent, &mut report);
    }
    report.write(&target.join("bench"));
    if report.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Run before whoever else uses the machine, with all that is started from here: waiting for a processor is not what is
/// measured. A better nice value would not do, as it counts among the processes of one session only (sched(7), "The
/// autogroup feature").
fn go_first() {
    let me = std::process::id().to_string();
    let status = Command::new("chrt").args(["--rr", "--pid", "1", &me]).status().unwrap();
    assert!(status.success(), "chrt, as root");
}

fn artefact(variable: &str, built: fn() -> &'static std::path::Path) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| built().to_owned(), PathBuf::from)
}
