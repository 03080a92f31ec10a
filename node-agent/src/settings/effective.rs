// SPDX-License-Identifier: Apache-2.0
//! What is in effect, where it came from, and what was given in vain: logged once at start and served as `/config`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Settings;
use super::table::{self, Effect, all};
use super::values::Values;

/// The answer of `/config`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Effective {
    /// What the agent works with.
    pub(crate) settings: Settings,
    /// The settings that were given: by which flag or variable.
    pub(crate) given: BTreeMap<&'static str, String>,
    /// Those among them that are accepted and do nothing.
    pub(crate) without_effect: BTreeMap<&'static str, InVain>,
}

/// A setting that was given and does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct InVain {
    /// Its value.
    value: String,
    /// Why it does nothing.
    reason: &'static str,
}

impl Effective {
    /// `settings` were made of `values`.
    pub(crate) fn new(settings: Settings, values: &Values) -> Self {
        let given = all().filter_map(|s| Some((s.name(), values.given(s)?)));
        let in_vain = all().filter_map(|setting| match (setting.effect, values.given(setting)) {
            (Effect::Ignored(reason), Some((_, value))) => {
                Some((setting.name(), InVain { value: value.to_owned(), reason }))
            }
            _ => None,
        });
        Self {
            settings,
            given: given.map(|(name, (source, _))| (name, source.to_string())).collect(),
            without_effect: in_vain.collect(),
        }
    }

    /// As JSON, on one line.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("plain data with text keys is JSON")
    }

    /// Say it, once.
    pub(crate) fn log(&self) {
        tracing::info!(config = %self.json(), "settings");
        if self.settings.ambient_enabled {
            let setting = table::AMBIENT_ENABLED.name();
            tracing::warn!(
                reason = "ambient_not_supported",
                setting,
                "ambient mode is not there yet: sidecars are redirected, and the agent stays not ready until it is off"
            );
        }
    }
}
