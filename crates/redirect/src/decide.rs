// SPDX-License-Identifier: Apache-2.0
//! Whether a pod is redirected, and the reason why not.

use crate::annotations::{INJECT, INTERCEPTION_MODE, STATUS};
use crate::pod::{Pod, parse_bool};

/// What is done with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its traffic goes through its proxy.
    Redirect,
    /// It is left alone.
    Pass(Reason),
}

/// Why a pod is left alone. The order is the order of the checks: the first that holds is the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It has a container `istio-init`, which programs its own rules.
    RedirectedByIstio,
    /// `DISABLE_ENVOY` of the proxy is true: there is no Envoy to send traffic to.
    EnvoyDisabled,
    /// It has no container `istio-proxy`.
    NoProxy,
    /// The proxy is a gateway or waypoint, which gets its traffic addressed to it.
    NotSidecar,
    /// The inject label or annotation says no.
    InjectionDisabled,
    /// It has no `sidecar.istio.io/status` annotation: nobody injected a sidecar.
    NoSidecar,
    /// Its interception mode is `NONE`: it wants no redirection.
    ModeNone,
}

impl Reason {
    /// All of them, in the order of the checks.
    pub const ALL: [Self; 7] = [
        Self::RedirectedByIstio,
        Self::EnvoyDisabled,
        Self::NoProxy,
        Self::NotSidecar,
        Self::InjectionDisabled,
        Self::NoSidecar,
        Self::ModeNone,
    ];

    /// The reason code, as in logs, metrics and events.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::RedirectedByIstio => "redirected_by_istio",
            Self::EnvoyDisabled => "envoy_disabled",
            Self::NoProxy => "no_proxy",
            Self::NotSidecar => "not_sidecar",
            Self::InjectionDisabled => "injection_disabled",
            Self::NoSidecar => "no_sidecar",
            Self::ModeNone => "mode_none",
        }
    }

    fn holds(self, pod: &Pod) -> bool {
        match self {
            Self::RedirectedByIstio => pod.containers().any(|c| c.name == "istio-init"),
            Self::EnvoyDisabled => pod.proxy_env("DISABLE_ENVOY").and_then(parse_bool) == Some(true),
            Self::NoProxy => pod.proxies().next().is_none(),
            Self::NotSidecar => pod.proxy_type().is_some_and(|kind| kind != "sidecar"),
            Self::InjectionDisabled => {
                // The label replaces the annotation whenever it is there, also when it is empty.
                let label = pod.metadata.labels.get(INJECT).map(String::as_str);
                label.or_else(|| pod.annotation(INJECT)).and_then(parse_bool) == Some(false)
            }
            Self::NoSidecar => pod.annotation(STATUS).is_none(),
            // The injector accepts NONE and writes it back to the pod, so it cannot be an error here.
            Self::ModeNone => pod.annotation(INTERCEPTION_MODE) == Some("NONE"),
        }
    }
}

/// Decide about `pod`. Whether the pod is ours to look at at all (namespace, our own agent) was decided before.
#[must_use]
pub fn decide(pod: &Pod) -> Decision {
    match Reason::ALL.into_iter().find(|reason| reason.holds(pod)) {
        Some(reason) => Decision::Pass(reason),
        None => Decision::Redirect,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn injected() -> Value {
        json!({
            "metadata": {"name": "a", "namespace": "n", "annotations": {"sidecar.istio.io/status": ""}},
            "spec": {"containers": [{"name": "app"}, {"name": "istio-proxy", "args": ["proxy", "sidecar"]}]},
        })
    }

    fn decide_with(change: impl FnOnce(&mut Value)) -> Decision {
        let mut pod = injected();
        change(&mut pod);
        decide(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn an_injected_pod_is_redirected_also_with_a_native_sidecar() {
        assert_eq!(decide_with(|_| ()), Decision::Redirect);
        let native = decide_with(|pod| {
            let proxy = pod["spec"]["containers"].as_array_mut().unwrap().pop().unwrap();
            pod["spec"]["initContainers"] = json!([{"name": "istio-validation"}, proxy]);
        });
        assert_eq!(native, Decision::Redirect);
    }

    #[test]
    fn each_reason_has_a_pod_that_shows_it() {
        type Change = fn(&mut Value);
        let cases: [(Reason, Change); 7] = [
            (Reason::RedirectedByIstio, |p| p["spec"]["initContainers"] = json!([{"name": "istio-init"}])),
            (Reason::EnvoyDisabled, |p| {
                p["spec"]["containers"][1]["env"] = json!([{"name": "DISABLE_ENVOY", "value": "true"}]);
            }),
            (Reason::NoProxy, |p| p["spec"]["containers"][1]["name"] = json!("other")),
            (Reason::NotSidecar, |p| p["spec"]["containers"][1]["args"] = json!(["proxy", "router"])),
            (Reason::InjectionDisabled, |p| {
                p["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "false"});
            }),
            (Reason::NoSidecar, |p| p["metadata"]["annotations"] = json!(null)),
            (Reason::ModeNone, |p| {
                p["metadata"]["annotations"]["sidecar.istio.io/interceptionMode"] = json!("NONE");
            }),
        ];
        assert_eq!(cases.map(|(reason, _)| reason), Reason::ALL);
        for (reason, change) in cases {
            assert_eq!(decide_with(change), Decision::Pass(reason));
        }
    }

    #[test]
    fn what_cannot_be_read_as_no_is_not_a_no() {
        for (label, annotation) in [(Some(""), "false"), (None, "no"), (Some("True"), "false")] {
            let decision = decide_with(|p| {
                p["metadata"]["annotations"]["sidecar.istio.io/inject"] = json!(annotation);
                if let Some(label) = label {
                    p["metadata"]["labels"] = json!({"sidecar.istio.io/inject": label});
                }
            });
            assert_eq!(decision, Decision::Redirect, "label {label:?}, annotation {annotation:?}");
        }
    }

    #[test]
    fn unknown_arguments_and_variables_from_elsewhere_do_not_exclude() {
        let decision = decide_with(|p| {
            p["spec"]["containers"][1]["args"] = json!(["router"]);
            p["spec"]["containers"][1]["env"] =
                json!([{"name": "DISABLE_ENVOY", "valueFrom": {"fieldRef": {}}}]);
        });
        assert_eq!(decision, Decision::Redirect);
    }
}
