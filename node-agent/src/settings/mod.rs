// SPDX-License-Identifier: Apache-2.0
//! Flags and environment variables: parse, then resolve to [`Settings`].
//!
//! A flag `--a-b` and a variable `A_B` set the same thing; the flag wins. Names, defaults and meanings are in [`table`];
//! whatever the existing chart gives the container is in there, and what is not is ignored: the chart of another release
//! may set more. Must never open anything.

pub(crate) mod command;
mod effective;
mod ignored;
mod install;
mod table;
#[cfg(test)]
mod tests;
mod values;

use std::net::IpAddr;
use std::path::PathBuf;

use redirect::Ipv6Policy;
use serde::Serialize;

pub(crate) use effective::Effective;
pub(crate) use install::{InstallSettings, Place};
pub(crate) use values::{SettingError, Values};

use crate::policy::{Bypass, Excluded, Mode, Policy, RuntimeClasses};
use values::items;

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Settings {
    /// Directory of the sockets.
    pub(crate) run_dir: PathBuf,
    /// Where pods are known from.
    pub(crate) pods: PodPlace,
    /// Port of `/metrics`, if wanted.
    pub(crate) monitoring_port: Option<u16>,
    /// Port of `/readyz` and `/healthz`, if wanted.
    pub(crate) health_port: Option<u16>,
    /// Address of both; nothing means all of both families.
    pub(crate) bind_address: Option<IpAddr>,
    /// What is said about pods, whatever they say themselves.
    pub(crate) policy: Policy,
    /// When a stop is an uninstall.
    pub(crate) leave: LeaveSettings,
    /// The agent's own pod, in the namespace of its DaemonSet; empty: events about the node go nowhere.
    pub(crate) pod_name: String,
    /// Whether ambient mode is asked for.
    pub(crate) ambient_enabled: bool,
    /// As given: `scope:level,…`.
    pub(crate) log_output_level: String,
    /// JSON lines instead of text.
    pub(crate) log_as_json: bool,
    /// What goes onto the node.
    pub(crate) install: InstallSettings,
}

/// When a stop is an uninstall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LeaveSettings {
    /// The agent's own DaemonSet.
    pub(crate) daemonset: String,
    /// Its namespace; empty: nobody is asked.
    pub(crate) namespace: String,
    /// How long the API server may be asked.
    pub(crate) seconds: u64,
}

/// Where pods are known from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodPlace {
    /// A directory of manifests.
    Directory(PathBuf),
    /// The Kubernetes API: the pods of this node.
    Node(String),
}

impl Settings {
    /// Make settings of what was given.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(crate) fn resolve(values: &mut Values) -> Result<Self, Vec<SettingError>> {
        let [directory, mut node, repaired] =
            [&table::POD_MANIFEST_DIR, &table::NODE_NAME, &table::REPAIR_NODE_NAME].map(|s| values.text(s));
        if node.is_empty() {
            node = repaired;
        }
        if directory.is_empty() && node.is_empty() {
            values.fail(SettingError::NoPodSource);
        }
        let pods = match directory.is_empty() {
            true => PodPlace::Node(node),
            false => PodPlace::Directory(PathBuf::from(directory)),
        };
        let settings = Self {
            run_dir: values.path(&table::RUN_DIR),
            pods,
            monitoring_port: values.port(&table::MONITORING_PORT),
            health_port: values.port(&table::HEALTH_PORT),
            bind_address: values.value(&table::BIND_ADDRESS, "an IP address", |text| {
                if text.is_empty() { Some(None) } else { text.parse().ok().map(Some) }
            }),
            policy: policy(values),
            leave: LeaveSettings {
                daemonset: values.text(&table::DAEMONSET_NAME),
                namespace: values.text(&table::POD_NAMESPACE),
                seconds: values.number(
                    &table::STOP_SECONDS,
                    "a whole number of seconds, 0 to 25",
                    |seconds| u64::try_from(seconds).ok().filter(|seconds| *seconds <= 25),
                ),
            },
            pod_name: values.text(&table::POD_NAME),
            ambient_enabled: values.bool(&table::AMBIENT_ENABLED),
            log_output_level: values.text(&table::LOG_OUTPUT_LEVEL),
            log_as_json: values.bool(&table::LOG_AS_JSON),
            install: InstallSettings::resolve(values),
        };
        match values.errors() {
            errors if errors.is_empty() => Ok(settings),
            errors => Err(errors),
        }
    }
}

fn policy(values: &mut Values) -> Policy {
    let selector = "a label selector with matchLabels or matchExpressions that does not select everything";
    Policy {
        mode: mode(values),
        ipv6: values.value(&table::IPV6_POLICY, "auto, capture or drop", |text| {
            if text.is_empty() { Some(Ipv6Policy::default()) } else { text.parse().ok() }
        }),
        runtime_classes: RuntimeClasses(
            items(&values.text(&table::RUNTIME_CLASSES)).map(str::to_owned).collect(),
        ),
        runtime_class: values.value(&table::RUNTIME_CLASS_POLICY, "report or refuse", |text| match text {
            "report" | "" => Some(Bypass::Report),
            "refuse" => Some(Bypass::Refuse),
            _ => None,
        }),
        excluded_pods: values.value(&table::EXCLUDE_POD_SELECTOR, selector, Excluded::parse),
        excluded_namespaces: values.value(&table::EXCLUDE_NAMESPACE_SELECTOR, selector, Excluded::parse),
    }
}

fn mode(values: &mut Values) -> Mode {
    values.value(&table::MODE, "redirect or observe", |text| match text {
        "redirect" | "" => Some(Mode::Redirect),
        "observe" => Some(Mode::Observe),
        _ => None,
    })
}
