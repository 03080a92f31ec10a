// SPDX-License-Identifier: Apache-2.0
//! Our entry: the settings that the plugin reads, and what the file around it was before we came.

use serde::{Deserialize, Serialize};

use super::TYPE;
use super::order::is_candidate;
use crate::config::{DEADLINE_DEFAULT, POD_ANNOTATIONS};

/// Version of the file that we write alone. Multus 4 and older runtimes take it, and single configurations ended with 0.4.0.
const ALONE_VERSION: &str = "0.3.1";

/// What the plugin is told: [`crate::Options`], on the writing side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// `plugin_log_level`.
    pub log_level: String,
    /// `cni_agent_run_dir`: the same path for the agent and on the node.
    pub run_dir: String,
    /// `ambient_enabled`.
    pub ambient_enabled: bool,
    /// `exclude_namespaces`.
    pub exclude_namespaces: Vec<String>,
    /// `pod_namespace`: by it the plugin knows the agent's own pod.
    pub pod_namespace: String,
    /// `agent_deadline_seconds`, 1 to 200.
    pub deadline_seconds: u16,
    /// `observe`, written only when it is true.
    pub observe: bool,
}

/// What our entry says about its file, so that removal needs no memory but the file. The plugin skips these keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// The file was made of the single configuration with this name, which is in it byte for byte.
    #[serde(default, rename = "waylay_converted_from", skip_serializing_if = "Option::is_none")]
    pub converted_from: Option<String>,
    /// The file is our copy of the one with this name.
    #[serde(default, rename = "waylay_copy_of", skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
    /// The file, or the single configuration, was a symbolic link with this content.
    #[serde(default, rename = "waylay_link", skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// The file is ours alone.
    #[serde(default, rename = "waylay_standalone", skip_serializing_if = "std::ops::Not::not")]
    pub standalone: bool,
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    name: &'a str,
    r#type: &'a str,
    plugin_log_level: &'a str,
    cni_agent_run_dir: &'a str,
    ambient_enabled: bool,
    exclude_namespaces: &'a [String],
    pod_namespace: &'a str,
    agent_deadline_seconds: u16,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    observe: bool,
    capabilities: std::collections::BTreeMap<&'a str, bool>,
    #[serde(flatten)]
    marks: &'a Marks,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            log_level: "info".to_owned(),
            run_dir: "/var/run/istio-cni".to_owned(),
            ambient_enabled: false,
            exclude_namespaces: Vec::new(),
            pod_namespace: String::new(),
            deadline_seconds: DEADLINE_DEFAULT,
            observe: false,
        }
    }
}

impl Entry {
    /// The entry on one line.
    pub(super) fn render(&self, marks: &Marks) -> String {
        serde_json::to_string(&self.written(None, marks)).unwrap_or_default()
    }

    /// A file that is ours alone: Multus finds it by the network's name.
    #[must_use]
    pub fn standalone(&self) -> String {
        let marks = Marks { standalone: true, ..Marks::default() };
        let text =
            serde_json::to_string_pretty(&self.written(Some(ALONE_VERSION), &marks)).unwrap_or_default();
        text + "\n"
    }

    fn written<'a>(&'a self, version: Option<&'a str>, marks: &'a Marks) -> Written<'a> {
        Written {
            version,
            name: TYPE,
            r#type: TYPE,
            plugin_log_level: &self.log_level,
            cni_agent_run_dir: &self.run_dir,
            ambient_enabled: self.ambient_enabled,
            exclude_namespaces: &self.exclude_namespaces,
            pod_namespace: &self.pod_namespace,
            agent_deadline_seconds: self.deadline_seconds,
            observe: self.observe,
            capabilities: [(POD_ANNOTATIONS, true)].into(),
            marks,
        }
    }
}

impl Marks {
    /// Without what cannot have come from us: names become paths.
    pub(super) fn checked(mut self) -> Self {
        let plain = |name: &String| !name.contains('/') && is_candidate(name);
        self.converted_from = self.converted_from.filter(plain);
        self.copy_of = self.copy_of.filter(plain);
        self.link = self.link.filter(|link| !link.is_empty() && !link.contains('\0'));
        self
    }
}
