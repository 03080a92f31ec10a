// SPDX-License-Identifier: Apache-2.0
//! The settings of what goes onto the node: the plugin's file and its CNI configuration.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mode;
use super::table;
use super::values::{Values, items};
use crate::observability::logs;
use crate::policy::Mode;

/// Name of the copy of the primary's list, unless another is given: it sorts before what vendors write.
const OWN_FILE: &str = "02-istio-cni.conflist";
/// Name of the file for Multus, unless another is given.
const STANDALONE: &str = "YYY-istio-cni.conf";

/// What goes onto the node. Directories are as mounted in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct InstallSettings {
    /// Whether anything is installed.
    pub(crate) enabled: bool,
    /// The plugin's file in the image.
    pub(crate) bin_source: PathBuf,
    /// Directories that it is copied to.
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// Directory of CNI configurations.
    pub(crate) net_dir: PathBuf,
    /// Which file there carries our entry.
    pub(crate) place: Place,
    /// Files of our own get mode 0640 instead of 0600.
    pub(crate) group_read: bool,
    /// What our entry says.
    pub(crate) entry: EntrySettings,
}

/// Which file of the configuration directory carries our entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "mode")]
pub(crate) enum Place {
    /// The primary network's.
    Chained {
        /// Its name; nothing: the one that the runtime loads.
        primary: Option<String>,
    },
    /// A copy of it that sorts before it.
    OwnFile {
        /// Name of the copy.
        name: String,
        /// Name of the primary's file; nothing: the one that the runtime would load without ours.
        primary: Option<String>,
    },
    /// A network of its own, for Multus.
    Standalone {
        /// Name of the file.
        name: String,
    },
}

/// The keys of our entry, for the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct EntrySettings {
    /// `plugin_log_level`.
    pub(crate) plugin_log_level: &'static str,
    /// `cni_agent_run_dir`.
    pub(crate) cni_agent_run_dir: PathBuf,
    /// `ambient_enabled`.
    pub(crate) ambient_enabled: bool,
    /// `exclude_namespaces`.
    pub(crate) exclude_namespaces: Vec<String>,
    /// `pod_namespace`.
    pub(crate) pod_namespace: String,
    /// `agent_deadline_seconds`.
    pub(crate) agent_deadline_seconds: u16,
    /// `observe`.
    pub(crate) observe: bool,
}

/// What counts of the template of the 1.12 era.
#[derive(Default, Deserialize)]
struct Template {
    #[serde(default)]
    kubernetes: Kubernetes,
}

#[derive(Default, Deserialize)]
struct Kubernetes {
    #[serde(default)]
    exclude_namespaces: Vec<String>,
}

impl InstallSettings {
    /// Read them from `values`, which collects what is wrong.
    pub(crate) fn resolve(values: &mut Values) -> Self {
        let deadline = "a whole number of seconds, 1 to 200";
        Self {
            enabled: values.bool(&table::ENABLE_INSTALL),
            bin_source: values.path(&table::BIN_SOURCE),
            bin_dirs: values.paths(&table::BIN_DIRS),
            net_dir: values.path(&table::NET_DIR),
            place: place(values),
            group_read: values.bool(&table::CONF_GROUP_READ),
            entry: EntrySettings {
                plugin_log_level: logs::plugin_level(&values.text(&table::LOG_OUTPUT_LEVEL)),
                cni_agent_run_dir: PathBuf::from(values.text(&table::RUN_DIR)),
                ambient_enabled: values.bool(&table::AMBIENT_ENABLED),
                exclude_namespaces: exclude_namespaces(values),
                pod_namespace: values.text(&table::POD_NAMESPACE),
                agent_deadline_seconds: values.number(&table::AGENT_DEADLINE, deadline, |seconds| {
                    u16::try_from(seconds).ok().filter(|s| (1..=cni::config::DEADLINE_MAX).contains(s))
                }),
                observe: mode(values) == Mode::Observe,
            },
        }
    }
}

fn place(values: &mut Values) -> Place {
    let name = values.file_name(&table::CONF_NAME, &[".conflist", ".conf"]);
    // Looked at in every mode: an error must not hide until the mode is changed.
    let own = values.file_name(&table::OWN_FILE_NAME, &[".conflist"]);
    let (chained, own_file) = (values.bool(&table::CHAINED), values.bool(&table::OWN_FILE));
    match (chained, own_file) {
        // Standalone wins: nothing is chained to that could be copied.
        (false, _) => Place::Standalone { name: name.unwrap_or_else(|| STANDALONE.to_owned()) },
        (true, true) => Place::OwnFile { name: own.unwrap_or_else(|| OWN_FILE.to_owned()), primary: name },
        (true, false) => Place::Chained { primary: name },
    }
}

fn exclude_namespaces(values: &mut Values) -> Vec<String> {
    if values.given(&table::EXCLUDE_NAMESPACES).is_some() {
        return items(&values.text(&table::EXCLUDE_NAMESPACES)).map(str::to_owned).collect();
    }
    values.value(&table::NETWORK_CONFIG, "a JSON object with kubernetes.exclude_namespaces", |text| {
        if text.is_empty() {
            return Some(Vec::new());
        }
        serde_json::from_str(text).ok().map(|Template { kubernetes }| kubernetes.exclude_namespaces)
    })
}
