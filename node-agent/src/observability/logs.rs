// SPDX-License-Identifier: Apache-2.0
//! Log lines on stdout, as text or JSON, and the level of the agent's scope.

use std::io::{self, IsTerminal as _};

use tracing::level_filters::LevelFilter;

use super::lines::ToStdout;

/// The agent's scope in `--log_output_level`.
const SCOPE: &str = "cni-agent";
/// The plugin's.
const PLUGIN_SCOPE: &str = "cni-plugin";

/// A part of `--log_output_level` that says nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("log level {0:?}: use a comma-separated list of scope:level, with debug, info, warn, error or none")]
pub(crate) struct LevelError(String);

/// Start logging; a bad level is logged, not fatal.
pub(crate) fn init(levels: &str, json: bool) {
    let level = level(levels, SCOPE).map(|(level, _)| level);
    let filter = *level.as_ref().unwrap_or(&LevelFilter::INFO);
    let builder = tracing_subscriber::fmt().with_writer(ToStdout).with_max_level(filter).with_target(false);
    if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    } else {
        builder.with_ansi(io::stdout().is_terminal()).init();
    }
    if let Err(error) = level {
        tracing::error!("{error}");
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or_default();
        tracing::error!(place, text, "panic: a defect in the agent");
    }));
}

/// The plugin's level, by the name that its configuration has for it; `info` when `levels` cannot be read.
pub(crate) fn plugin_level(levels: &str) -> &'static str {
    level(levels, PLUGIN_SCOPE).map_or("info", |(_, name)| name)
}

/// The level of `scope`: by its own name, else that of `all`, else the default (a bare level).
fn level(levels: &str, scope: &str) -> Result<(LevelFilter, &'static str), LevelError> {
    let mut found = (0, (LevelFilter::INFO, "info"));
    for item in levels.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (named, name) = item.split_once(':').unwrap_or(("default", item));
        let rank = match named {
            named if named == scope => 3,
            "all" => 2,
            "default" => 1,
            _ => continue,
        };
        let level = match name {
            "debug" => (LevelFilter::DEBUG, "debug"),
            "info" => (LevelFilter::INFO, "info"),
            "warn" => (LevelFilter::WARN, "warn"),
            "error" => (LevelFilter::ERROR, "error"),
            "fatal" => (LevelFilter::ERROR, "fatal"),
            "none" => (LevelFilter::OFF, "none"),
            _ => return Err(LevelError(item.to_owned())),
        };
        if rank >= found.0 {
            found = (rank, level);
        }
    }
    Ok(found.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_scope_beats_all_and_all_beats_the_default() {
        for (text, expected) in [
            ("", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("warn,all:debug", LevelFilter::DEBUG),
            ("cni-agent:error,all:debug", LevelFilter::ERROR),
            ("ambient:debug", LevelFilter::INFO),
            ("default:none", LevelFilter::OFF),
        ] {
            assert_eq!(level(text, SCOPE).map(|found| found.0), Ok(expected), "{text:?}");
        }
        assert_eq!(level("all:loud", SCOPE), Err(LevelError("all:loud".to_owned())));
    }

    #[test]
    fn the_plugin_has_a_scope_of_its_own() {
        for (text, expected) in [
            ("", "info"),
            ("all:debug,cni-plugin:fatal", "fatal"),
            ("cni-agent:debug", "info"),
            ("x:y,debug", "debug"),
        ] {
            assert_eq!(plugin_level(text), expected, "{text:?}");
        }
    }
}
