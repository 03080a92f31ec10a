// SPDX-License-Identifier: Apache-2.0
//! From a pod and the plugin's environment to a [`Config`]: which text is read where, and the default of each setting.

use std::collections::{BTreeMap, BTreeSet};

use crate::annotations::{
    EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_CIDRS, EXCLUDE_OUTBOUND_PORTS, GrammarError,
    INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_CIDRS, INCLUDE_OUTBOUND_PORTS, INTERCEPTION_MODE, IPV6_POLICY,
    KUBEVIRT_INTERFACES, REROUTE_INTERFACES, parse_cidrs, parse_groups, parse_inbound_ports,
    parse_interfaces, parse_ipv6_policy, parse_loopback, parse_mode, parse_outbound_cidrs, parse_ports,
    shown,
};
use crate::config::{Config, Dns, OwnerGroups, PROXY_ID, Proxy, ports};
use crate::pod::{Pod, parse_bool};

/// Groups whose traffic is captured, or `*`.
const OWNER_GROUPS: &str = "ISTIO_OUTBOUND_OWNER_GROUPS";
/// Groups whose traffic is not, read only with `*`.
const OWNER_GROUPS_EXCLUDE: &str = "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE";
/// IPv4 destinations that count as loopback.
const LOOPBACK_CIDR: &str = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR";

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// The pod's author wrote it.
    #[error("annotation {key}: {value} is refused, {}: use {}", .error.fault, .error.accepted)]
    Annotation {
        /// Annotation key.
        key: &'static str,
        /// Value as shown to people.
        value: String,
        /// What is wrong with it.
        error: GrammarError,
    },
    /// The node's administrator wrote it, in the container runtime's environment.
    #[error(
        "environment variable {key} of the container runtime: {value} is refused, {}: use {}",
        .error.fault, .error.accepted
    )]
    Node {
        /// Variable name.
        key: &'static str,
        /// Value as shown to people.
        value: String,
        /// What is wrong with it.
        error: GrammarError,
    },
}

impl Config {
    /// The settings of `pod`, with `environment` the variables of the plugin's own process. Which families are
    /// captured is not known yet: [`Config::ipv6`] is [`crate::Ipv6::Leave`].
    ///
    /// # Errors
    /// [`SettingError`] for the first value that cannot be used.
    pub fn from_pod(pod: &Pod, environment: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let mut config = Self::default();
        config.read_annotations(pod)?;
        config.read_environment(environment)?;
        config.read_proxy(pod);
        Ok(config)
    }

    /// Present and empty is a value; absent leaves the default.
    fn read_annotations(&mut self, pod: &Pod) -> Result<(), SettingError> {
        set(&mut self.mode, pod, INTERCEPTION_MODE, parse_mode)?;
        set(&mut self.outbound, pod, INCLUDE_OUTBOUND_CIDRS, parse_outbound_cidrs)?;
        set(&mut self.outbound_exclude, pod, EXCLUDE_OUTBOUND_CIDRS, parse_cidrs)?;
        set(&mut self.inbound_exclude, pod, EXCLUDE_INBOUND_PORTS, parse_ports)?;
        self.inbound_exclude.extend(ports::ALWAYS_EXCLUDED);
        set(&mut self.inbound, pod, INCLUDE_INBOUND_PORTS, parse_inbound_ports)?;
        set(&mut self.outbound_ports_exclude, pod, EXCLUDE_OUTBOUND_PORTS, parse_ports)?;
        set(&mut self.outbound_ports, pod, INCLUDE_OUTBOUND_PORTS, parse_ports)?;
        set(&mut self.exclude_interfaces, pod, EXCLUDE_INTERFACES, parse_interfaces)?;
        let reroute = if pod.annotation(REROUTE_INTERFACES).is_some() {
            REROUTE_INTERFACES
        } else {
            KUBEVIRT_INTERFACES
        };
        set(&mut self.reroute_interfaces, pod, reroute, parse_interfaces)?;
        set(&mut self.ipv6_policy, pod, IPV6_POLICY, parse_ipv6_policy)
    }

    fn read_environment(&mut self, environment: &BTreeMap<String, String>) -> Result<(), SettingError> {
        let read = |key: &'static str| environment.get(key).map(String::as_str);
        let groups = |key, text| {
            parse_groups(text).map_err(|error| SettingError::Node { key, value: shown(text), error })
        };
        self.owner_groups = match read(OWNER_GROUPS) {
            Some(include) if include != "*" => OwnerGroups::Only(groups(OWNER_GROUPS, include)?),
            _ => OwnerGroups::AllBut(groups(
                OWNER_GROUPS_EXCLUDE,
                read(OWNER_GROUPS_EXCLUDE).unwrap_or_default(),
            )?),
        };
        // Empty means unset here: no prefix would leave localhost captured.
        if let Some(text) = read(LOOPBACK_CIDR).filter(|text| !text.is_empty()) {
            let node = |error| SettingError::Node { key: LOOPBACK_CIDR, value: shown(text), error };
            self.loopback4 = parse_loopback(text).map_err(node)?;
        }
        Ok(())
    }

    fn read_proxy(&mut self, pod: &Pod) {
        let (uid, gid) = pod.proxy_ids();
        // 0 counts as unset: in TPROXY mode the proxy runs as root and is recognised by its gid.
        let id = |id: Option<u32>| BTreeSet::from([id.filter(|id| *id != 0).unwrap_or(PROXY_ID)]);
        self.proxy = Proxy { uids: id(uid), gids: id(gid) };
        if self.flag(pod, "ISTIO_META_DNS_CAPTURE") {
            // The plugin runs before the pod's resolv.conf is known.
            self.dns = Dns::All;
        }
        self.dual_stack = self.flag(pod, "ISTIO_DUAL_STACK");
        self.drop_invalid = self.flag(pod, "INVALID_DROP");
    }

    /// A boolean variable of the proxy container. Istio's proxy reads the same variable itself and does not fail for a
    /// bad value, so neither do we; empty is what a `valueFrom` reads as.
    fn flag(&mut self, pod: &Pod, name: &str) -> bool {
        let text = pod.proxy_env(name).unwrap_or_default();
        parse_bool(text).unwrap_or_else(|| {
            if !text.is_empty() {
                let value = shown(text);
                self.warnings
                    .push(format!("variable {name} of istio-proxy: {value} is no boolean, counts as false"));
            }
            false
        })
    }
}

fn set<T>(
    field: &mut T,
    pod: &Pod,
    key: &'static str,
    parse: fn(&str) -> Result<T, GrammarError>,
) -> Result<(), SettingError> {
    if let Some(text) = pod.annotation(key) {
        *field = parse(text).map_err(|error| SettingError::Annotation { key, value: shown(text), error })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{InboundPorts, Mode, OutboundCidrs, Prefixes};

    fn pod(annotations: &[(&str, &str)], env: &[(&str, &str)], ids: serde_json::Value) -> Pod {
        let env: Vec<_> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let proxy = json!({"name": "istio-proxy", "env": env, "securityContext": ids});
        let pod = serde_json::from_value(json!({"spec": {"containers": [proxy]}})).unwrap();
        Pod::with_annotations(
            pod,
            annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        )
    }

    fn annotated(annotations: &[(&str, &str)]) -> Result<Config, SettingError> {
        Config::from_pod(&pod(annotations, &[], json!(null)), &BTreeMap::new())
    }

    fn on_node(key: &str, value: &str) -> Result<Config, SettingError> {
        Config::from_pod(&pod(&[], &[], json!(null)), &BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn without_annotations_the_defaults_hold() {
        assert_eq!(annotated(&[]), Ok(Config::default()));
    }

    #[test]
    fn present_and_empty_is_not_absent() {
        let config = annotated(&[
            (INCLUDE_OUTBOUND_CIDRS, ""),
            (INCLUDE_INBOUND_PORTS, ""),
            (EXCLUDE_INBOUND_PORTS, ""),
            (EXCLUDE_OUTBOUND_PORTS, ""),
        ])
        .unwrap();
        assert_eq!(config.outbound, OutboundCidrs::Only(Prefixes::default()));
        assert_eq!(config.inbound, InboundPorts::Only(BTreeSet::new()));
        assert_eq!(config.inbound_exclude, ports::ALWAYS_EXCLUDED.into());
        assert!(config.outbound_ports_exclude.is_empty());
    }

    #[test]
    fn the_new_interface_annotation_hides_the_old_one_also_when_empty() {
        let old = (KUBEVIRT_INTERFACES, "not valid,");
        assert!(annotated(&[old, (REROUTE_INTERFACES, "")]).unwrap().reroute_interfaces.is_empty());
        assert!(annotated(&[old]).is_err());
        assert_eq!(annotated(&[(KUBEVIRT_INTERFACES, "vm0")]).unwrap().reroute_interfaces.len(), 1);
    }

    #[test]
    fn the_first_bad_annotation_is_named_in_one_line() {
        let cases: &[(&str, &str, &str)] = &[
            (INTERCEPTION_MODE, "redirect", "no such mode: use REDIRECT, TPROXY or NONE, in capitals"),
            (INTERCEPTION_MODE, "", "no such mode: use REDIRECT, TPROXY or NONE, in capitals"),
            (INCLUDE_OUTBOUND_CIDRS, "*,10.0.0.0/8", "\"*\" is not a prefix: use \"*\", a comma-separated"),
            (EXCLUDE_OUTBOUND_CIDRS, "*", "\"*\" is not a prefix: use a comma-separated list of prefixes"),
            (
                EXCLUDE_INBOUND_PORTS,
                "*",
                "\"*\" is not a port: use a comma-separated list of ports from 0 to 65535",
            ),
            (INCLUDE_INBOUND_PORTS, "80,", "an item is empty: use \"*\", a comma-separated list of ports"),
            (EXCLUDE_OUTBOUND_PORTS, "a", "\"a\" is not a port: use a comma-separated list of ports"),
            (INCLUDE_OUTBOUND_PORTS, "*", "\"*\" is not a port: use a comma-separated list of ports"),
            (
                EXCLUDE_INTERFACES,
                "eth+",
                "\"eth+\" is not an interface name: use a comma-separated list of interface",
            ),
            (
                REROUTE_INTERFACES,
                "1",
                "\"1\" is not an interface name: use a comma-separated list of interface",
            ),
            (KUBEVIRT_INTERFACES, ",", "an item is empty: use a comma-separated list of interface names"),
            (IPV6_POLICY, "Drop", "no such policy: use auto, capture or drop"),
        ];
        // All annotations after the bad one are bad, too: the first in the order of reading wins.
        for first in 0..cases.len() {
            let (key, value, text) = cases[first];
            let mut all: Vec<_> = cases[first..].iter().map(|(k, v, _)| (*k, *v)).collect();
            if key == KUBEVIRT_INTERFACES {
                all.retain(|(k, _)| *k != REROUTE_INTERFACES);
            }
            all.retain(|(k, v)| *k != key || *v == value);
            let error = annotated(&all).unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotation {key}: {value:?} is refused, {text}")), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn the_proxy_says_who_it_is_and_0_counts_as_unset() {
        let ids = |ids| {
            let proxy = Config::from_pod(&pod(&[], &[], ids), &BTreeMap::new()).unwrap().proxy;
            (proxy.uids.into_iter().next().unwrap(), proxy.gids.into_iter().next().unwrap())
        };
        assert_eq!(ids(json!({"runAsUser": 5000, "runAsGroup": 6000})), (5000, 6000));
        assert_eq!(ids(json!({"runAsUser": 0, "runAsGroup": 1337})), (1337, 1337));
        assert_eq!(ids(json!({"runAsGroup": 7})), (1337, 7));
    }

    #[test]
    fn variables_of_the_proxy_are_go_booleans_and_bad_ones_warn() {
        let env = [("ISTIO_META_DNS_CAPTURE", "T"), ("ISTIO_DUAL_STACK", "yes"), ("INVALID_DROP", "1")];
        let config = Config::from_pod(&pod(&[], &env, json!(null)), &BTreeMap::new()).unwrap();
        assert_eq!((config.dns, config.dual_stack, config.drop_invalid), (Dns::All, false, true));
        assert_eq!(
            config.warnings,
            ["variable ISTIO_DUAL_STACK of istio-proxy: \"yes\" is no boolean, counts as false"]
        );
    }

    #[test]
    fn the_runtimes_environment_is_numeric_and_checked() {
        assert_eq!(on_node(OWNER_GROUPS, "7,8").unwrap().owner_groups, OwnerGroups::Only([7, 8].into()));
        assert_eq!(on_node(OWNER_GROUPS, "").unwrap().owner_groups, OwnerGroups::Only(BTreeSet::new()));
        assert_eq!(on_node(OWNER_GROUPS, "*").unwrap().owner_groups, OwnerGroups::AllBut(BTreeSet::new()));
        assert_eq!(on_node(OWNER_GROUPS_EXCLUDE, "9").unwrap().owner_groups, OwnerGroups::AllBut([9].into()));
        assert_eq!(on_node(LOOPBACK_CIDR, "127.0.0.0/8").unwrap().loopback4.prefix_len(), 8);
        assert_eq!(on_node(LOOPBACK_CIDR, ""), Ok(Config::default()));
        assert_eq!(
            on_node(OWNER_GROUPS_EXCLUDE, "wheel").unwrap_err().to_string(),
            "environment variable ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE of the container runtime: \"wheel\" is refused, \
             \"wheel\" is not a numeric group id: use a comma-separated list of numeric group ids"
        );
        assert!(on_node(LOOPBACK_CIDR, "10.0.0.0/8").is_err());
        assert!(on_node(LOOPBACK_CIDR, "127.0.0.0/7").is_err());
    }

    #[test]
    fn tproxy_is_a_mode() {
        assert_eq!(annotated(&[(INTERCEPTION_MODE, "TPROXY")]).unwrap().mode, Mode::Tproxy);
    }
}
