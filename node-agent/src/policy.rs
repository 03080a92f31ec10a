// SPDX-License-Identifier: Apache-2.0
//! What the settings of this agent say about a pod, whatever the pod says itself. Pure.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt as _};
use redirect::{Ipv6Policy, Pod};
use serde::{Serialize, Serializer};

/// What is done with a pod that is to be redirected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Its traffic goes through its proxy.
    #[default]
    Redirect,
    /// Nothing but a log line and a count: a dry run.
    Observe,
}

/// What is done with a pod whose runtime does not heed the rules of its network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bypass {
    /// It starts, and everybody is told.
    #[default]
    Report,
    /// It does not start.
    Refuse,
}

/// Names of runtime classes; a trailing `*` stands for any ending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct RuntimeClasses(pub(crate) Vec<String>);

/// A label selector that selects something and not everything, or nothing at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Excluded(Option<(String, Selector)>);

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Policy {
    /// Whether rules are written.
    pub(crate) mode: Mode,
    /// What is done with IPv6 that a pod's proxy does not serve, unless the pod says otherwise.
    #[serde(serialize_with = "ipv6")]
    pub(crate) ipv6: Ipv6Policy,
    /// The classes whose runtimes do not heed the rules.
    pub(crate) runtime_classes: RuntimeClasses,
    /// What is done then.
    pub(crate) runtime_class: Bypass,
    /// Pods with these labels are left alone.
    pub(crate) excluded_pods: Excluded,
    /// Pods of namespaces with these labels are left alone.
    pub(crate) excluded_namespaces: Excluded,
}

impl RuntimeClasses {
    /// The pod's class, if it is one of them.
    pub(crate) fn of<'a>(&self, pod: &'a Pod) -> Option<&'a str> {
        let class = pod.spec.runtime_class_name.as_deref().filter(|class| !class.is_empty())?;
        let is_it = |name: &String| match name.strip_suffix('*') {
            Some(beginning) => class.starts_with(beginning),
            None => class == name,
        };
        self.0.iter().any(is_it).then_some(class)
    }
}

impl Excluded {
    /// Read `text`, YAML or JSON of a label selector as Kubernetes has them. Nothing selects nothing here; what would
    /// select everything is refused.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let selector: LabelSelector = serde_saphyr::from_str(text).ok()?;
        let selector = Selector::try_from(selector).ok()?;
        (!selector.selects_all()).then(|| Self(Some((text.to_owned(), selector))))
    }

    /// Whether `labels` are selected.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.as_ref().is_some_and(|(_, selector)| selector.matches(labels))
    }

    /// Whether it can select anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }
}

impl Serialize for Excluded {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_ref().map_or("", |(text, _)| text))
    }
}

fn ipv6<S: Serializer>(policy: &Ipv6Policy, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match policy {
        Ipv6Policy::Auto => "auto",
        Ipv6Policy::Capture => "capture",
        Ipv6Policy::Drop => "drop",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_selector_is_one_of_kubernetes_and_never_selects_everything() {
        let both =
            "{matchLabels: {app: a}, matchExpressions: [{key: tier, operator: NotIn, values: [x, y]}]}";
        let excluded = Excluded::parse(both).unwrap();
        assert!(excluded.matches(&labels(&[("app", "a"), ("tier", "z")])));
        assert!(!excluded.matches(&labels(&[("app", "a"), ("tier", "x")])));
        assert!(!excluded.matches(&labels(&[("tier", "z")])));
        assert!(Excluded::parse(r#"{"matchLabels":{"app":"a"}}"#).unwrap().matches(&labels(&[("app", "a")])));
        let nothing = Excluded::parse("").unwrap();
        assert!(
            nothing.is_empty() && !nothing.matches(&labels(&[])) && !nothing.matches(&labels(&[("a", "b")]))
        );
        for bad in
            ["{}", "app=a", "[1]", "{matchExpressions: [{key: a, operator: Like}]}", "{matchLabels: 1}"]
        {
            assert_eq!(Excluded::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_runtime_class_is_matched_whole_or_by_its_beginning() {
        let classes = RuntimeClasses(["gvisor", "kata*"].map(str::to_owned).into());
        let of = |class: Option<&str>| {
            let mut pod = Pod::default();
            pod.spec.runtime_class_name = class.map(str::to_owned);
            classes.of(&pod).map(str::to_owned)
        };
        assert_eq!(of(Some("gvisor")).as_deref(), Some("gvisor"));
        assert_eq!(of(Some("kata-qemu")).as_deref(), Some("kata-qemu"));
        for other in [None, Some(""), Some("gvisor2"), Some("runc"), Some("akata")] {
            assert_eq!(of(other), None, "{other:?}");
        }
    }
}
