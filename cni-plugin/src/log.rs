// SPDX-License-Identifier: Apache-2.0
//! Lines on stderr. Runtimes put them into their own log, and into a failure's text only when stdout has no error object:
//! so nothing here is needed to understand a failure, and what the agent's log has is not said again.

use std::io::Write;

/// How important a line is. A configuration names the least important one that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    /// Nothing is written at this level: `fatal`, `none`.
    Silent,
}

impl Level {
    /// `plugin_log_level`. A word that nobody knows is no reason to lose lines.
    pub(crate) fn parse(word: &str) -> Self {
        match word {
            "debug" => Self::Debug,
            "warn" => Self::Warn,
            "error" | "fatal" | "none" => Self::Silent,
            _ => Self::Info,
        }
    }
}

/// One line, if `threshold` lets it through. A closed stderr is no reason to fail.
pub(crate) fn line(out: &mut dyn Write, threshold: Level, level: Level, text: &str) {
    if level < threshold {
        return;
    }
    let word = match level {
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn | Level::Silent => "warn",
    };
    // One write: other processes may share this stderr.
    let _ = out.write_all(format!("istio-cni: {word}: {text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configured_level_is_the_least_important_one_that_is_written() {
        let written = |configured: &str| {
            [Level::Debug, Level::Info, Level::Warn]
                .into_iter()
                .filter(|level| {
                    let mut out = Vec::new();
                    line(&mut out, Level::parse(configured), *level, "x");
                    !out.is_empty()
                })
                .count()
        };
        for (configured, lines) in [
            ("debug", 3),
            ("info", 2),
            ("", 2),
            ("other", 2),
            ("warn", 1),
            ("error", 0),
            ("fatal", 0),
            ("none", 0),
        ] {
            assert_eq!(written(configured), lines, "{configured:?}");
        }
    }
}
