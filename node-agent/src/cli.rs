// SPDX-License-Identifier: Apache-2.0
//! Flags and environment variables: parse, then resolve to [`Settings`].
//!
//! A flag `--a-b` and a variable `A_B` set the same thing; the flag wins. Variables that are not listed here are
//! ignored: the chart of another release may set more. Owns defaults; must never open anything.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Parser;
use redirect::{Ipv6Policy, NoPolicy};

/// Port of `/metrics`.
const MONITORING_PORT: u16 = 15014;
/// Port of `/readyz` and `/healthz`.
const HEALTH_PORT: u16 = 8000;

/// What the command line says, before the environment and the defaults.
#[derive(Debug, Default, Parser)]
#[command(
    name = "install-cni",
    version,
    args_override_self = true,
    about = "Waylay node agent: redirects the traffic of pods to their proxies."
)]
pub(crate) struct Flags {
    /// Directory of the sockets that the plugin connects to [env: CNI_AGENT_RUN_DIR] [default: /var/run/istio-cni]
    #[arg(long, value_name = "DIR")]
    cni_agent_run_dir: Option<PathBuf>,
    /// Directory of Pod manifests (YAML or JSON), watched [env: POD_MANIFEST_DIR]
    #[arg(long, value_name = "DIR")]
    pod_manifest_dir: Option<PathBuf>,
    /// Port of /metrics, 0 for none [env: MONITORING_PORT] [default: 15014]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    monitoring_port: Option<i64>,
    /// Port of /readyz and /healthz, 0 for none [env: HEALTH_PORT] [default: 8000]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    health_port: Option<i64>,
    /// Address that both ports are bound to [env: BIND_ADDRESS] [default: all addresses of both families]
    #[arg(long, value_name = "IP")]
    bind_address: Option<IpAddr>,
    /// What is done with IPv6 that a pod's proxy does not serve: auto (leave it alone, as Istio does), capture or drop
    /// [env: IPV6_POLICY] [default: auto]
    #[arg(long, value_name = "POLICY")]
    ipv6_policy: Option<String>,
    /// Comma-separated list of scope:level; ours is cni-agent, then all, then default
    #[arg(long = "log_output_level", value_name = "LEVELS", default_value = "")]
    log_output_level: String,
    /// Write logs as JSON lines
    #[arg(long = "log_as_json", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true")]
    log_as_json: bool,
}

/// What the process is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Directory of the sockets.
    pub(crate) run_dir: PathBuf,
    /// Directory of Pod manifests.
    pub(crate) pod_manifest_dir: PathBuf,
    /// Port of `/metrics`, if wanted.
    pub(crate) monitoring_port: Option<u16>,
    /// Port of `/readyz` and `/healthz`, if wanted.
    pub(crate) health_port: Option<u16>,
    /// Address of both; nothing means all of both families.
    pub(crate) bind_address: Option<IpAddr>,
    /// What is done with IPv6 that a pod's proxy does not serve.
    pub(crate) ipv6_policy: Ipv6Policy,
    /// As given: `scope:level,…`.
    pub(crate) log_output_level: String,
    /// JSON lines instead of text.
    pub(crate) log_as_json: bool,
}

/// A setting that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingsError {
    /// A required one is missing.
    #[error("no pod source: set --pod-manifest-dir or POD_MANIFEST_DIR to a directory of Pod manifests")]
    NoPodSource,
    /// A port above 65535.
    #[error("{name} {value}: a port is at most 65535")]
    Port {
        /// Flag or variable.
        name: &'static str,
        /// Its value.
        value: i64,
    },
    /// An address that is none.
    #[error("BIND_ADDRESS {0:?}: not an IP address")]
    Address(String),
    /// Text that is no policy.
    #[error("IPV6_POLICY {0:?}: use auto, capture or drop")]
    Ipv6Policy(String),
}

impl Flags {
    /// Fill in what the flags leave open from the environment and the defaults.
    ///
    /// # Errors
    /// [`SettingsError`] for the first value that cannot be used.
    pub(crate) fn resolve(self, env: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let path = |flag: Option<PathBuf>, name| {
            flag.or_else(|| env(name).filter(|v| !v.is_empty()).map(PathBuf::from))
        };
        // A variable that is set but empty or unreadable counts as 0, as in the component that this one replaces.
        let number =
            |flag: Option<i64>, name| flag.or_else(|| env(name).map(|v| v.trim().parse().unwrap_or(0)));
        let bind_address = match (self.bind_address, env("BIND_ADDRESS").filter(|v| !v.is_empty())) {
            (Some(address), _) => Some(address),
            (None, Some(text)) => Some(text.parse().map_err(|_| SettingsError::Address(text))?),
            (None, None) => None,
        };
        let ipv6_policy = match self.ipv6_policy.or_else(|| env("IPV6_POLICY")).filter(|v| !v.is_empty()) {
            Some(text) => text.parse().map_err(|NoPolicy| SettingsError::Ipv6Policy(text))?,
            None => Ipv6Policy::default(),
        };
        Ok(Settings {
            ipv6_policy,
            run_dir: path(self.cni_agent_run_dir, "CNI_AGENT_RUN_DIR")
                .unwrap_or_else(|| agent_api::path::DEFAULT_RUN_DIR.into()),
            pod_manifest_dir: path(self.pod_manifest_dir, "POD_MANIFEST_DIR")
                .ok_or(SettingsError::NoPodSource)?,
            monitoring_port: port(
                "monitoring port",
                number(self.monitoring_port, "MONITORING_PORT"),
                MONITORING_PORT,
            )?,
            health_port: port("health port", number(self.health_port, "HEALTH_PORT"), HEALTH_PORT)?,
            bind_address,
            log_output_level: self.log_output_level,
            log_as_json: self.log_as_json,
        })
    }
}

fn port(name: &'static str, value: Option<i64>, default: u16) -> Result<Option<u16>, SettingsError> {
    match value {
        None => Ok(Some(default)),
        Some(value) if value <= 0 => Ok(None),
        Some(value) => u16::try_from(value).map(Some).map_err(|_| SettingsError::Port { name, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(flags: &[&str], env: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let flags = Flags::try_parse_from([&["install-cni"], flags].concat()).unwrap();
        flags.resolve(|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn defaults_are_those_of_the_component_it_replaces() {
        let settings = resolve(&["--pod-manifest-dir", "/pods"], &[("UNKNOWN", "1")]).unwrap();
        assert_eq!(settings.run_dir, PathBuf::from("/var/run/istio-cni"));
        assert_eq!((settings.monitoring_port, settings.health_port), (Some(15014), Some(8000)));
        assert_eq!((settings.bind_address, settings.log_as_json), (None, false));
    }

    #[test]
    fn a_flag_beats_the_variable_and_the_variable_beats_the_default() {
        let env = [("POD_MANIFEST_DIR", "/env"), ("MONITORING_PORT", "1"), ("CNI_AGENT_RUN_DIR", "/run/env")];
        let settings = resolve(&["--monitoring-port=2"], &env).unwrap();
        assert_eq!(settings.pod_manifest_dir, PathBuf::from("/env"));
        assert_eq!(settings.run_dir, PathBuf::from("/run/env"));
        assert_eq!(settings.monitoring_port, Some(2));
        assert_eq!(settings.ipv6_policy, Ipv6Policy::Auto);
        let policy =
            resolve(&["--ipv6-policy=drop"], &[env[0], ("IPV6_POLICY", "capture")]).unwrap().ipv6_policy;
        assert_eq!(policy, Ipv6Policy::Drop);
    }

    #[test]
    fn ports_can_be_switched_off() {
        let env = [("POD_MANIFEST_DIR", "/p"), ("MONITORING_PORT", ""), ("HEALTH_PORT", "-1")];
        let settings = resolve(&[], &env).unwrap();
        assert_eq!((settings.monitoring_port, settings.health_port), (None, None));
    }

    #[test]
    fn unusable_values_are_named() {
        assert_eq!(resolve(&[], &[]), Err(SettingsError::NoPodSource));
        let env = [("POD_MANIFEST_DIR", "/p"), ("BIND_ADDRESS", "localhost")];
        assert_eq!(resolve(&[], &env), Err(SettingsError::Address("localhost".to_owned())));
        let policy = resolve(&["--ipv6-policy=Drop"], &env[..1]);
        assert_eq!(policy, Err(SettingsError::Ipv6Policy("Drop".to_owned())));
        let port = resolve(&["--health-port=65536"], &env[..1]);
        assert_eq!(port, Err(SettingsError::Port { name: "health port", value: 65536 }));
    }

    #[test]
    fn log_flags_are_spelled_as_the_chart_spells_them() {
        for json in ["--log_as_json", "--log_as_json=true"] {
            // Of a flag that is given twice the last counts.
            let flags =
                ["--pod-manifest-dir=/p", "--log_output_level=error", "--log_output_level=all:debug", json];
            let settings = resolve(&flags, &[]).unwrap();
            assert_eq!((settings.log_output_level.as_str(), settings.log_as_json), ("all:debug", true));
        }
    }
}
