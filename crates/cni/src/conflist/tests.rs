// SPDX-License-Identifier: Apache-2.0

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::Document;

fn parse<'a>(name: &str, text: &'a str) -> Conf<'a> {
    Conf::parse(name, text).unwrap()
}

fn put(text: &str) -> String {
    parse("a.conflist", text).with_entry(&Entry::default(), &Marks::default())
}

fn take(text: &str) -> Without {
    parse("a.conflist", text).without_entry()
}

const CALICO: &str = "{\n  \"name\": \"k8s-pod-network\",\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    {\n      \
    \"type\": \"calico\", \"mtu\": 1e3, \"z\": 12345678901234567890, \"a\": \"\\u003c\"\n    },\n    {\"type\": \
    \"portmap\", \"snat\": true, \"capabilities\": {\"portMappings\": true}}\n  ],\n \"x\" :[ ]}\n\n";

#[test]
fn the_entry_comes_last_with_the_blanks_of_its_neighbour_and_nothing_else_changes() {
    let entry = Entry::default().render(&Marks::default());
    let expected = CALICO.replace("true}}\n  ]", &format!("true}}}},\n    {entry}\n  ]"));
    assert_eq!(put(CALICO), expected);
    assert_eq!(put(&expected), expected);
    assert_eq!(take(&expected), Without::List(CALICO.to_owned()));
    assert_eq!(take(CALICO), Without::Same);
}

#[test]
fn the_plugin_reads_what_the_entry_says_and_asks_for_the_annotations() {
    let entry = Entry {
        log_level: "debug".into(),
        run_dir: "/run/x".into(),
        ambient_enabled: true,
        exclude_namespaces: vec!["kube-system".into(), "\"<>".into()],
        pod_namespace: "istio-system".into(),
        deadline_seconds: 7,
        observe: true,
    };
    for text in [entry.render(&Marks::default()), entry.standalone()] {
        let options = Document::parse(text.as_bytes()).unwrap().options().unwrap();
        assert_eq!(
            (options.log_level.as_str(), options.run_dir.as_str(), options.ambient_enabled),
            ("debug", "/run/x", true)
        );
        assert_eq!(options.exclude_namespaces, entry.exclude_namespaces);
        assert_eq!((options.pod_namespace.as_str(), options.deadline_seconds), ("istio-system", 7));
        assert!(options.observe);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["capabilities"], json!({"io.kubernetes.cri.pod-annotations": true}));
        assert_eq!((&value["type"], &value["name"]), (&json!("istio-cni"), &json!("istio-cni")));
    }
}

#[test]
fn entries_of_others_and_duplicates_give_way_wherever_they_are() {
    let old = r#"{"type":"istio-cni","name":"istio-cni","log_level":"x","kubernetes":{"kubeconfig":"/x"}}"#;
    let plain = r#"{"name":"n","plugins":[{"type":"a"},{"type":"b"}]}"#;
    let expected = put(plain);
    for with_old in [
        format!(r#"{{"name":"n","plugins":[{old},{{"type":"a"}},{{"type":"b"}}]}}"#),
        format!(r#"{{"name":"n","plugins":[{{"type":"a"}},{old},{{"type":"b"}},{old}]}}"#),
        format!(
            r#"{{"name":"n","plugins":[{old},{old},{{"type":"a"}},{old},{old},{{"type":"b"}},{old},{old}]}}"#
        ),
    ] {
        assert_eq!(put(&with_old), expected);
        assert_eq!(take(&with_old), Without::List(plain.to_owned()), "{with_old}");
    }
}

#[test]
fn an_entry_put_in_the_place_of_earlier_ones_stays_as_it_is() {
    let old = r#"{"type":"istio-cni"}"#;
    for text in [
        format!(r#"{{"name":"n","plugins":[{old}, {{"type":"a"}} ,{old}]}}"#),
        format!("{{\"name\":\"n\",\"plugins\":[\n {old},\n {{\"type\":\"a\"}}]}}"),
        format!(r#"{{"name":"n","plugins":[ {old} , {old}]}}"#),
    ] {
        let once = put(&text);
        assert_eq!(put(&once), once, "{text}");
        assert_eq!(take(&once), take(&text), "{text}");
    }
}

#[test]
fn what_a_runtime_would_not_load_is_told_apart() {
    let not_json = |text| matches!(Conf::parse("a.conflist", text), Err(Unusable::NotJson(_)));
    assert!(
        not_json("garbage") && not_json("[]") && not_json(r#"{"name":"n","plu"#) && not_json("\u{feff}{}")
    );
    let cases = [
        ("a.conflist", "", Unusable::Empty),
        ("a.conf", " \n", Unusable::Empty),
        ("a.conflist", r#"{"plugins":[{"type":"a"}]}"#, Unusable::NoName),
        ("a.conflist", r#"{"name":"","plugins":[{"type":"a"}]}"#, Unusable::NoName),
        ("a.conflist", r#"{"name":7,"plugins":[{"type":"a"}]}"#, Unusable::NoName),
        ("a.conflist", r#"{"name":"n"}"#, Unusable::NoPlugins),
        ("a.conflist", r#"{"name":"n","type":"a"}"#, Unusable::NoPlugins),
        ("a.conflist", r#"{"name":"n","plugins":[]}"#, Unusable::NoPlugins),
        ("a.conflist", r#"{"name":"n","plugins":{}}"#, Unusable::NoPlugins),
        ("a.conflist", r#"{"name":"n","plugins":[{"name":"a"}]}"#, Unusable::NoType),
        ("a.conflist", r#"{"name":"n","plugins":[7]}"#, Unusable::NoType),
        ("a.conf", r#"{"name":"n"}"#, Unusable::NoType),
        ("a.conf", r#"{"name":"n","type":""}"#, Unusable::NoType),
        ("a.json", r#"{"type":"a"}"#, Unusable::NoName),
        ("a.conf", r#"{"name":"n","plugins":[{"type":"a"}]}"#, Unusable::ListInConf),
        ("a.json", r#"{"name":"n","plugins":[{"type":"a"}]}"#, Unusable::ListInConf),
    ];
    for (name, text, expected) in cases {
        assert_eq!(Conf::parse(name, text), Err(expected), "{name}: {text}");
    }
}

#[test]
fn a_single_configuration_becomes_a_list_with_its_name_and_version_and_comes_back() {
    let marks =
        Marks { converted_from: Some("a.conf".into()), link: Some("../x".into()), ..Marks::default() };
    for text in [
        "\n {\"cniVersion\": \"0.4.0\", \"name\": \"ovn\", \"type\": \"ovn\", \"n\": 1.0e2, \"z\":0, \"b\":1}\n\n",
        r#"{"name":"n","type":"a"}"#,
    ] {
        let made = parse("a.conf", text).with_entry(&Entry::default(), &marks);
        let value: Value = serde_json::from_str(&made).unwrap();
        let original: Value = serde_json::from_str(text).unwrap();
        assert_eq!((&value["name"], &value["cniVersion"]), (&original["name"], &original["cniVersion"]));
        assert_eq!(value["plugins"][0], original);
        assert_eq!(value["plugins"][1]["type"], "istio-cni");
        assert_eq!(parse("a.conflist", &made).marks(), Some(&marks));
        let expected = Without::Single { name: "a.conf".into(), text: text.into() };
        assert_eq!(take(&made), expected);
        assert_eq!(parse("a.conflist", &made).with_entry(&Entry::default(), &marks), made);

        // Another one chained into the list since: it stays a list.
        let both = made.replace("{\"name\":\"istio-cni\"", "{\"type\":\"c\"},{\"name\":\"istio-cni\"");
        assert!(
            matches!(take(&both), Without::List(text) if text.contains("\"c\"") && !text.contains("istio-cni"))
        );
    }
}

#[test]
fn a_name_that_would_leave_the_directory_is_not_believed() {
    let marks = |from: &str| {
        let text = format!(
            r#"{{"name":"n","plugins":[{{"type":"a"}},{{"type":"istio-cni","waylay_converted_from":{from}}}]}}"#
        );
        parse("a.conflist", &text).marks().unwrap().converted_from.clone()
    };
    assert_eq!(marks("\"x.conf\"").as_deref(), Some("x.conf"));
    for bad in ["\"../x.conf\"", "\"/etc/x.conf\"", "\"passwd\"", "\"\"", "7"] {
        assert_eq!(marks(bad), None, "{bad}");
    }
}

#[test]
fn what_is_ours_alone_goes_and_is_no_primary_network() {
    let alone = Entry::default().standalone();
    assert_eq!(parse("istio-cni.conf", &alone).without_entry(), Without::Nothing);
    let list = r#"{"name":"istio-cni","plugins":[{"type":"istio-cni"}]}"#;
    assert_eq!(take(list), Without::Nothing);
    let copy = Marks { copy_of: Some("10.conflist".into()), ..Marks::default() };
    let copied = parse("a.conflist", CALICO).with_entry(&Entry::default(), &copy);
    assert_eq!(take(&copied), Without::Nothing);
    let files =
        [("a.conflist", copied.as_str()), ("b.conf", &alone), ("c.conflist", list), ("d.conflist", CALICO)];
    assert_eq!(choose(&candidates(&files), None, None).at, Some(3));
}

fn candidates<'a>(files: &[(&'a str, &'a str)]) -> Vec<Candidate<'a>> {
    files.iter().map(|(name, text)| Candidate { name, conf: Conf::parse(name, text) }).collect()
}

#[test]
fn the_first_usable_file_wins_and_broken_ones_before_it_are_named() {
    let list = r#"{"name":"n","plugins":[{"type":"a"}]}"#;
    let conf = r#"{"name":"n","type":"a"}"#;
    let files = [
        ("00.conflist", ""),
        ("02-own.conflist", list),
        ("05.json", conf),
        ("10.conflist", list),
        ("99.conf", ""),
    ];
    let candidates = candidates(&files);
    let choice = choose(&candidates, None, Some("02-own.conflist"));
    assert_eq!((choice.at, choice.preempted_by), (Some(2), None));
    assert_eq!(choice.broken, [("00.conflist", Unusable::Empty)]);
    let choice = choose(&candidates, Some("10.conf"), Some("02-own.conflist"));
    assert_eq!((choice.at, choice.preempted_by), (Some(3), Some("05.json")));
    assert_eq!(choose(&candidates, Some("11.conf"), None).at, None);
    assert_eq!(choose(&[], None, None), Choice { at: None, broken: vec![], preempted_by: None });
}

#[test]
fn only_the_endings_of_the_runtimes_count() {
    for name in ["a.conf", "a.conflist", "a.json", ".conf", ".a.json"] {
        assert!(is_candidate(name), "{name}");
    }
    for name in
        ["a", "a.conf.waylay-tmp-1", "calico-kubeconfig", "a.CONF", "a.conf~", "10.conflist.cilium_bak"]
    {
        assert!(!is_candidate(name), "{name}");
    }
}

#[test]
fn the_list_takes_the_place_of_the_file_it_is_made_of() {
    assert_eq!(converted_name("10-a.conf", &["20-b.conf"]).as_deref(), Some("10-a.conflist"));
    assert_eq!(converted_name("10-a.json", &["10-b.conf"]).as_deref(), Some("10-a.conflist"));
    // A file of others has the name, or would come before the list.
    assert_eq!(converted_name("10-a.conf", &["10-a.conflist"]).as_deref(), Some("10-a.conf.conflist"));
    assert_eq!(converted_name("10-a.conf", &["10-a.confa.conf"]).as_deref(), Some("10-a.conf.conflist"));
    assert_eq!(converted_name("10-a.conf", &["10-a.conf.conflist", "10-a.conflist"]), None);
}

/// A JSON value with blanks, escapes and numbers that printing anew would change.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("-0.0e+00".to_owned()),
        Just("123456789012345678901234567890".to_owned()),
        Just("\"\\u003c\\/\\\"]},{\"".to_owned()),
        Just("\"istio-cni\"".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec((blank(), inner.clone(), blank()), 1..4).prop_map(|v| format!(
                "[{}]",
                v.iter().map(|(a, b, c)| format!("{a}{b}{c}")).collect::<Vec<_>>().join(",")
            )),
            proptest::collection::vec(("(type|name|plugins|[a-z]{0,2})", blank(), inner), 1..4).prop_map(
                |v| format!(
                    "{{{}}}",
                    v.iter().map(|(k, b, x)| format!("{b}\"{k}\" :{b}{x}")).collect::<Vec<_>>().join(",")
                )
            ),
        ]
    })
}

fn blank() -> impl Strategy<Value = String> {
    "[ \n\r\t]{0,3}"
}

fn plugin() -> impl Strategy<Value = String> {
    (blank(), value(), "(a|portmap|istio-cni2)", blank())
        .prop_map(|(a, x, kind, b)| format!("{{\"x\":{x},{a}\"type\":\"{kind}\"{b}}}"))
}

fn list_text() -> impl Strategy<Value = String> {
    let plugins = proptest::collection::vec((blank(), plugin(), blank()), 1..5);
    (blank(), value(), plugins, blank(), value()).prop_map(|(a, x, plugins, b, y)| {
        let all: Vec<String> = plugins.iter().map(|(a, p, b)| format!("{a}{p}{b}")).collect();
        format!("{a}{{\"x\":{x},\"name\":{b}\"n\",\"plugins\"{a}:{b}[{}]{a},\"y\"\n:{y}}}{b}", all.join(","))
    })
}

proptest! {
    #[test]
    fn taking_the_entry_out_gives_back_every_byte(text in list_text(), old in 0usize..6) {
        let conf = Conf::parse("a.conflist", &text).unwrap();
        prop_assert_eq!(conf.without_entry(), Without::Same);
        let with = conf.with_entry(&Entry::default(), &Marks::default());
        let value: Value = serde_json::from_str(&with).unwrap();
        let plugins = value["plugins"].as_array().unwrap();
        let ours: Vec<usize> = (0..plugins.len()).filter(|at| plugins[*at]["type"] == "istio-cni").collect();
        prop_assert_eq!(ours, [plugins.len() - 1]);
        let again = Conf::parse("a.conflist", &with).unwrap();
        prop_assert_eq!(&again.with_entry(&Entry::default(), &Marks::default()), &with);
        prop_assert_eq!(again.without_entry(), Without::List(text.clone()));

        // An older entry anywhere: the same in the end.
        if let Shape::List { plugins, .. } = &conf.shape {
            let at = plugins[old % plugins.len()].span.start;
            let mut older = text.clone();
            older.insert_str(at, "{\"type\":\"istio-cni\"},");
            let conf = Conf::parse("a.conflist", &older).unwrap();
            let taken = conf.without_entry();
            let Without::List(taken) = taken else { panic!("{taken:?}") };
            let (taken, text): (Value, Value) = (serde_json::from_str(&taken).unwrap(), serde_json::from_str(&text).unwrap());
            prop_assert_eq!(taken, text);
        }
    }

    #[test]
    fn a_conversion_is_undone_to_the_byte(text in (blank(), plugin(), blank()), name in "[a-z]{1,3}\\.(conf|json)") {
        let text = format!("{}{{\"name\":\"n\",{}{}", text.0, &text.1[1..], text.2);
        let marks = Marks { converted_from: Some(name.clone()), ..Marks::default() };
        let Ok(conf) = Conf::parse(&name, &text) else { return Ok(()) };
        let made = conf.with_entry(&Entry::default(), &marks);
        prop_assert_eq!(Conf::parse("a.conflist", &made).unwrap().without_entry(), Without::Single { name, text });
    }

    #[test]
    fn no_text_panics(text in r#"[\[\]{},:" \n]{0,12}("type"|"plugins":\[|"name":"n"|"istio-cni"|\{\}|\\u00|é){0,5}[\]}]{0,4}"#) {
        for name in ["a.conf", "a.conflist"] {
            if let Ok(conf) = Conf::parse(name, &text) {
                let with = conf.with_entry(&Entry::default(), &Marks::default());
                prop_assert!(Conf::parse("a.conflist", &with).is_ok());
                let _ = conf.without_entry();
            }
        }
    }
}
