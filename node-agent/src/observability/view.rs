// SPDX-License-Identifier: Apache-2.0
//! All that can be seen of this agent from outside, in one place.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ruleset::Form;
use serde_json::{Value, json};

use super::metrics::Metrics;
use super::readiness::Readiness;
use crate::plugin_server::{Records, rules_form};
use crate::settings::Effective;

/// What the ports and the admin socket answer from.
pub(crate) struct View {
    /// When the process began.
    pub(crate) started: SystemTime,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// What is in the way.
    pub(crate) readiness: Arc<Readiness>,
    /// What became of the sandboxes.
    pub(crate) records: Arc<Mutex<Records>>,
    /// The settings.
    pub(crate) effective: Effective,
}

impl View {
    /// The answer of `/status`.
    pub(crate) fn status(&self) -> Value {
        let form = rules_form().map(|form| match form {
            Form::Inet => "inet",
            Form::PerFamily => "per_family",
        });
        let blockers: Vec<_> = self
            .readiness
            .left()
            .into_iter()
            .map(|(name, reason)| json!({"name": name, "reason": reason}))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "started_unix_ms": unix_ms(self.started),
            "holds_socket": self.metrics.role.get() == 1,
            "rules_form": form,
            "ready": blockers.is_empty(),
            "blockers": blockers,
            "counters": self.counters(),
            "config": self.effective,
        })
    }

    /// The answer of `/pods`, the newest first.
    pub(crate) fn pods(&self) -> Value {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        json!({ "pods": records.recent().rev().collect::<Vec<_>>() })
    }

    /// The samples of the metrics, without histograms' buckets.
    fn counters(&self) -> BTreeMap<String, f64> {
        let text = self.metrics.render();
        let samples = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
        samples
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
