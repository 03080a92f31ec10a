// SPDX-License-Identifier: Apache-2.0
//! Every combination of what decides about a pod, as pods of a real injector (`tests/golden/`) with one thing changed after the
//! other, against a second, literal reading of the conditions on the JSON of the pod.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "test code, which prints what it ran")]

use std::collections::{BTreeMap, BTreeSet};

use harness::golden::Golden;
use redirect::{Config, Decision, Metadata, Pod, Reason, SettingError, decide};
use serde::Deserialize as _;
use serde_json::{Value, json};

const PROXY: &str = "istio-proxy";
const LISTS: [&str; 2] = ["initContainers", "containers"];
/// Go's two sets of words, and some of neither.
const TRUE: [&str; 6] = ["1", "t", "T", "TRUE", "true", "True"];
const FALSE: [&str; 6] = ["0", "f", "F", "FALSE", "false", "False"];
const NEITHER: [&str; 5] = ["", "yes", "no", "tRUE", " false"];

/// The list of a pod's spec, made if it is not there.
fn list<'a>(pod: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    let list = &mut pod["spec"][name];
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().unwrap()
}

/// The pod with `istio-init` nowhere and in each list.
fn with_init(pod: &Value) -> Vec<Value> {
    let changed = LISTS.iter().map(|name| {
        let mut pod = pod.clone();
        list(&mut pod, name).insert(0, json!({"name": "istio-init", "image": "proxyv2"}));
        pod
    });
    [pod.clone()].into_iter().chain(changed).collect()
}

/// The proxies of a pod, wherever they are.
fn each_proxy(pod: &mut Value, mut change: impl FnMut(&mut Value)) {
    for name in LISTS {
        list(pod, name).iter_mut().filter(|c| c["name"] == PROXY).for_each(&mut change);
    }
}

/// The pod with its proxy as it is, under another name, in the other list, and in both.
fn with_proxy(pod: &Value) -> Vec<Value> {
    let mut renamed = pod.clone();
    each_proxy(&mut renamed, |proxy| proxy["name"] = json!("istio-proxy2"));
    let moved = LISTS.map(|name| {
        let (mut moved, mut proxies) = (pod.clone(), Vec::new());
        each_proxy(&mut moved, |proxy| proxies.push(proxy.clone()));
        for name in LISTS {
            list(&mut moved, name).retain(|c| c["name"] != PROXY);
        }
        list(&mut moved, name).append(&mut proxies);
        moved
    });
    let mut both = pod.clone();
    let proxy =
        LISTS.iter().flat_map(|name| list(&mut both, name).clone()).find(|c| c["name"] == PROXY).unwrap();
    for name in LISTS {
        list(&mut both, name).retain(|c| c["name"] != PROXY);
        list(&mut both, name).push(proxy.clone());
    }
    [renamed, both].into_iter().chain(moved).collect()
}

/// The pod with each way to write `DISABLE_ENVOY`.
fn with_environment(pod: &Value) -> Vec<Value> {
    let literal = |value: &str| json!({"name": "DISABLE_ENVOY", "value": value});
    let elsewhere =
        json!({"name": "DISABLE_ENVOY", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}});
    let mut ways: Vec<Vec<Value>> =
        TRUE.iter().chain(&FALSE).chain(&NEITHER).map(|word| vec![literal(word)]).collect();
    ways.extend([
        vec![],
        vec![elsewhere.clone()],
        vec![literal("true"), literal("false")],
        vec![literal("false"), literal("true")],
        vec![literal("true"), elsewhere],
    ]);
    let changed = |way: &Vec<Value>| {
        let mut pod = pod.clone();
        each_proxy(&mut pod, |proxy| proxy["env"].as_array_mut().unwrap().extend(way.clone()));
        pod
    };
    ways.iter().map(changed).collect()
}

/// The pod with other arguments of its proxy.
fn with_arguments(pod: &Value) -> Vec<Value> {
    let ways = [
        json!(null),
        json!([]),
        json!(["proxy"]),
        json!(["proxy", ""]),
        json!(["proxy", "sidecar"]),
        json!(["proxy", "router", "--domain", "a"]),
        json!(["proxy", "waypoint"]),
        json!(["router"]),
        json!(["router", "proxy"]),
        json!(["--log_output_level=default:info", "proxy", "router"]),
    ];
    let changed = |way: &Value| {
        let mut pod = pod.clone();
        each_proxy(&mut pod, |proxy| proxy["args"] = way.clone());
        pod
    };
    // Of two proxies the later one counts, if its arguments say something.
    let differing = [["sidecar", "router"], ["router", "sidecar"], ["router", ""]].map(|kinds| {
        let mut pod = pod.clone();
        for (name, kind) in LISTS.into_iter().zip(kinds) {
            let args = if kind.is_empty() { json!(["proxy"]) } else { json!(["proxy", kind]) };
            list(&mut pod, name)
                .iter_mut()
                .filter(|c| c["name"] == PROXY)
                .for_each(|c| c["args"] = args.clone());
        }
        pod
    });
    [pod.clone()].into_iter().chain(differing).chain(ways.iter().map(changed)).collect()
}

/// Every combination of the labels and annotations that decide, and what they say: with all words for the inject label and
/// annotation, or with one of each kind.
fn metadata(pod: &Value, all_words: bool) -> Vec<(Metadata, Option<&'static str>)> {
    let absent_or = |words: &[&str]| -> Vec<Value> {
        [Value::Null].into_iter().chain(words.iter().map(|word| json!(word))).collect()
    };
    let inject = match all_words {
        true => [TRUE.as_slice(), &FALSE, &NEITHER].concat(),
        false => vec!["true", "F", "", "no"],
    };
    let mut all = Vec::new();
    for label in absent_or(&inject) {
        for annotation in absent_or(&inject) {
            for status in absent_or(&["", r#"{"containers":["istio-proxy"]}"#]) {
                for mode in absent_or(&["REDIRECT", "TPROXY", "NONE"]) {
                    let mut metadata = pod["metadata"].clone();
                    for (map, key, value) in [
                        ("labels", "sidecar.istio.io/inject", &label),
                        ("annotations", "sidecar.istio.io/inject", &annotation),
                        ("annotations", "sidecar.istio.io/status", &status),
                        ("annotations", "sidecar.istio.io/interceptionMode", &mode),
                    ] {
                        let map = metadata[map].as_object_mut().unwrap();
                        match value {
                            Value::Null => map.remove(key),
                            value => map.insert(key.to_owned(), value.clone()),
                        };
                    }
                    all.push((Metadata::deserialize(&metadata).unwrap(), by_metadata(&metadata)));
                }
            }
        }
    }
    all
}

/// What a pod's containers say, condition by condition.
fn by_containers(pod: &Value) -> Option<&'static str> {
    let containers: Vec<&Value> =
        LISTS.iter().filter_map(|name| pod["spec"][name].as_array()).flatten().collect();
    let proxies: Vec<&&Value> = containers.iter().filter(|c| c["name"] == PROXY).collect();
    if containers.iter().any(|c| c["name"] == "istio-init") {
        return Some("redirected_by_istio");
    }
    let variables: Vec<&Value> = proxies.iter().filter_map(|c| c["env"].as_array()).flatten().collect();
    let disabled = variables.iter().rfind(|variable| variable["name"] == "DISABLE_ENVOY");
    if disabled.is_some_and(|variable| TRUE.contains(&variable["value"].as_str().unwrap_or(""))) {
        return Some("envoy_disabled");
    }
    if proxies.is_empty() {
        return Some("no_proxy");
    }
    let last = proxies.iter().rfind(|c| c["args"][0] == "proxy" && c["args"][1].is_string());
    match last.map(|c| &c["args"][1]) {
        Some(kind) if kind != "sidecar" => Some("not_sidecar"),
        _ => None,
    }
}

/// What its labels and annotations say.
fn by_metadata(metadata: &Value) -> Option<&'static str> {
    let (labels, annotations) = (&metadata["labels"], &metadata["annotations"]);
    let inject = labels.get("sidecar.istio.io/inject").or_else(|| annotations.get("sidecar.istio.io/inject"));
    if inject.is_some_and(|word| FALSE.contains(&word.as_str().unwrap())) {
        return Some("injection_disabled");
    }
    if annotations.get("sidecar.istio.io/status").is_none() {
        return Some("no_sidecar");
    }
    (annotations.get("sidecar.istio.io/interceptionMode") == Some(&json!("NONE"))).then_some("mode_none")
}

fn code(decision: Decision) -> &'static str {
    match decision {
        Decision::Redirect => "redirect",
        Decision::Pass(reason) => reason.code(),
    }
}

/// Decide about `document` with each metadata, and count the decisions.
fn compare(document: &Value, metadata: &mut [(Metadata, Option<&str>)], seen: &mut BTreeMap<&str, usize>) {
    let (mut pod, spec) = (Pod::deserialize(document).unwrap(), by_containers(document));
    for (metadata, expected) in metadata {
        std::mem::swap(&mut pod.metadata, metadata);
        let (decided, expected) = (code(decide(&pod)), spec.or(*expected).unwrap_or("redirect"));
        assert_eq!(decided, expected, "{document:#} with {:?}", pod.metadata);
        *seen.entry(decided).or_default() += 1;
        std::mem::swap(&mut pod.metadata, metadata);
    }
}

#[test]
fn every_combination_of_what_decides_is_decided_as_the_conditions_read() {
    let mut seen = BTreeMap::new();
    for name in ["web", "native-sidecar"] {
        let document = Golden::load(name).document;
        compare(&document, &mut metadata(&document, true), &mut seen);
        let mut metadata = metadata(&document, false);
        let pods = with_init(&document).into_iter().flat_map(|pod| with_proxy(&pod));
        let pods = pods.flat_map(|pod| with_environment(&pod)).flat_map(|pod| with_arguments(&pod));
        pods.for_each(|document| compare(&document, &mut metadata, &mut seen));
    }
    println!("{} combinations: {seen:?}", seen.values().sum::<usize>());
    let codes: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.code()).chain(["redirect"]).collect();
    assert_eq!(seen.into_keys().collect::<BTreeSet<_>>(), codes);
}

#[test]
fn the_pods_of_an_injector_are_redirected_with_settings_that_can_be_used() {
    for name in [
        "database",
        "dns-capture",
        "dual-stack",
        "ipv6-only",
        "kubevirt",
        "narrow-lists",
        "openshift",
        "tproxy",
    ] {
        let golden = Golden::load(name);
        assert_eq!(decide(&golden.pod), Decision::Redirect, "{name}");
        assert!(Config::from_pod(&golden.pod, &BTreeMap::new()).is_ok(), "{name}");
    }
}

/// Only a pod that gets as far as its settings can have a bad one, and then it names the annotation.
#[test]
fn a_bad_annotation_is_an_error_of_a_pod_that_is_redirected_and_of_no_other() {
    let bad = [
        ("sidecar.istio.io/interceptionMode", "redirect"),
        ("traffic.sidecar.istio.io/includeInboundPorts", "80,http"),
        ("traffic.sidecar.istio.io/excludeInboundPorts", "65536"),
        ("traffic.sidecar.istio.io/includeOutboundPorts", "-1"),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "1-2"),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", "10.0.0.0/33"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "*"),
        ("istio.io/reroute-virtual-interfaces", "a/b"),
    ];
    for (key, value) in bad {
        let mut pod = Golden::load("web").pod;
        pod.metadata.annotations.insert(key.to_owned(), value.to_owned());
        assert_eq!(decide(&pod), Decision::Redirect, "{key}");
        let error: SettingError = Config::from_pod(&pod, &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains(key) && error.to_string().contains(value), "{error}");
        pod.metadata.labels.insert("sidecar.istio.io/inject".into(), "false".into());
        assert_eq!(decide(&pod), Decision::Pass(Reason::InjectionDisabled), "{key}");
    }
}
