// SPDX-License-Identifier: Apache-2.0
//! Names, defaults and errors of all settings, and `docs/SETTINGS.md` against the tables.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::command::{Form, Invocation, command, parse};
use super::install::Place;
use super::table::{Effect, Kind, Setting, all};
use super::*;

/// What the existing chart gives the container, at the values of a default installation.
const CHART: [(&str, &str); 22] = [
    ("CURRENT_AGENT_VERSION", "1.31.0"),
    ("AMBIENT_ENABLED", "false"),
    ("AMBIENT_ENABLEMENT_SELECTOR", "- podSelector:\n    matchLabels: {istio.io/dataplane-mode: ambient}\n"),
    ("AMBIENT_DNS_CAPTURE", "true"),
    ("AMBIENT_IPV6", "true"),
    ("ENABLE_AMBIENT_DETECTION_RETRY", "false"),
    ("CHAINED_CNI_PLUGIN", "true"),
    ("EXCLUDE_NAMESPACES", "kube-system"),
    ("REPAIR_ENABLED", "true"),
    ("REPAIR_REPAIR_PODS", "true"),
    ("REPAIR_INIT_CONTAINER_NAME", "istio-validation"),
    ("NATIVE_NFTABLES", "false"),
    ("REPAIR_NODE_NAME", "node-1"),
    ("REPAIR_RUN_AS_DAEMON", "true"),
    ("REPAIR_SIDECAR_ANNOTATION", "sidecar.istio.io/status"),
    ("ALLOW_SWITCH_TO_HOST_NS", "true"),
    ("NODE_NAME", "node-1"),
    ("GOMEMLIMIT", "8000000000"),
    ("GOMAXPROCS", "2"),
    ("POD_NAME", "istio-cni-node-abcde"),
    ("POD_NAMESPACE", "istio-system"),
    ("OF_A_LATER_RELEASE", "1"),
];

fn invoke(flags: &[&str], env: &[(&str, &str)]) -> Result<Invocation, clap::Error> {
    let arguments = ["install-cni"].iter().chain(flags).map(OsString::from);
    parse(arguments, |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
}

fn values(flags: &[&str], env: &[(&str, &str)]) -> Values {
    match invoke(flags, env).unwrap() {
        Invocation::Run(values) => values,
        other => panic!("{other:?}"),
    }
}

/// With a pod source, unless it is given.
fn resolve(flags: &[&str], env: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    let env = [env, &[("POD_MANIFEST_DIR", "/pods")]].concat();
    Settings::resolve(&mut values(flags, &env))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn install(flags: &[&str], env: &[(&str, &str)]) -> InstallSettings {
    resolve(flags, env).unwrap().install
}

#[test]
fn defaults_are_those_of_the_component_it_replaces() {
    let settings = resolve(&[], &[]).unwrap();
    assert_eq!(settings.run_dir, PathBuf::from(agent_api::path::DEFAULT_RUN_DIR));
    assert_eq!((settings.monitoring_port, settings.health_port), (Some(15014), Some(8000)));
    assert_eq!((settings.bind_address, settings.log_as_json, settings.ambient_enabled), (None, false, false));
    let install = settings.install;
    assert_eq!(install.net_dir, Path::new("/host/etc/cni/net.d"));
    assert_eq!(install.bin_dirs, [Path::new("/host/opt/cni/bin")]);
    assert_eq!(install.bin_source, Path::new("/opt/cni/bin/istio-cni"));
    assert_eq!(install.place, Place::Chained { primary: None });
    assert_eq!((install.enabled, install.group_read), (true, false));
    let entry = install.entry;
    assert_eq!((entry.plugin_log_level, entry.ambient_enabled), ("info", false));
    assert_eq!(entry.agent_deadline_seconds, cni::config::DEADLINE_DEFAULT);
    assert!(entry.exclude_namespaces.is_empty() && entry.pod_namespace.is_empty());
}

#[test]
fn what_the_chart_gives_is_accepted_and_none_of_it_but_the_unknown_goes_unmentioned() {
    let env = [CHART.as_slice(), &[("POD_MANIFEST_DIR", "/pods")]].concat();
    let mut values = values(&["--log_output_level=info", "--log_as_json"], &env);
    let settings = Settings::resolve(&mut values).unwrap();
    assert_eq!(settings.install.entry.exclude_namespaces, ["kube-system"]);
    assert_eq!(settings.install.entry.pod_namespace, "istio-system");
    assert!(settings.log_as_json);
    let effective: serde_json::Value =
        serde_json::from_str(&Effective::new(settings, &values).json()).unwrap();
    let sources: BTreeSet<&str> =
        effective["given"].as_object().unwrap().values().map(|source| source.as_str().unwrap()).collect();
    for (name, _) in CHART {
        assert_eq!(sources.contains(name), name != "OF_A_LATER_RELEASE", "{name}");
    }
    let reason = |name: &str| effective["without_effect"][name]["reason"].as_str();
    assert_eq!(reason("REPAIR_REPAIR_PODS"), Some("no repair of pods yet"));
    assert_eq!(reason("GOMEMLIMIT"), Some("of the Go runtime"));
    assert_eq!(reason("chained-cni-plugin"), None);
}

#[test]
fn a_flag_beats_the_variable_and_the_variable_beats_the_default() {
    let env = [("MONITORING_PORT", "1"), ("CNI_AGENT_RUN_DIR", "/run/env"), ("IPV6_POLICY", "capture")];
    let settings = resolve(&["--monitoring-port=2", "--ipv6-policy", "drop"], &env).unwrap();
    assert_eq!(settings.pods, PodPlace::Directory(PathBuf::from("/pods")));
    assert_eq!(settings.run_dir, PathBuf::from("/run/env"));
    assert_eq!(settings.install.entry.cni_agent_run_dir, PathBuf::from("/run/env"));
    assert_eq!(settings.monitoring_port, Some(2));
    assert_eq!(settings.policy.ipv6, Ipv6Policy::Drop);
    // Also when the flag gives the default.
    assert!(
        install(&["--chained-cni-plugin"], &[("CHAINED_CNI_PLUGIN", "false")]).place
            == Place::Chained { primary: None }
    );
    // Of a flag that is given twice the last counts.
    let twice = resolve(&["--log_output_level=error", "--log_output_level=all:debug"], &[]).unwrap();
    assert_eq!(
        (twice.log_output_level.as_str(), twice.install.entry.plugin_log_level),
        ("all:debug", "debug")
    );
}

#[test]
fn a_variable_that_is_set_but_empty_is_false_zero_or_no_text() {
    let env = [
        ("MONITORING_PORT", ""),
        ("HEALTH_PORT", "-1"),
        ("CHAINED_CNI_PLUGIN", ""),
        ("AMBIENT_ENABLED", " "),
    ];
    let settings = resolve(&[], &env).unwrap();
    assert_eq!(
        (settings.monitoring_port, settings.health_port, settings.ambient_enabled),
        (None, None, false)
    );
    assert_eq!(settings.install.place, Place::Standalone { name: "YYY-istio-cni.conf".to_owned() });
    let zero_seconds = resolve(&[], &[("AGENT_DEADLINE_SECONDS", "")]).unwrap_err();
    assert_eq!(zero_seconds, ["AGENT_DEADLINE_SECONDS \"\": use a whole number of seconds, 1 to 200"]);
}

#[test]
fn all_that_is_wrong_is_said_at_once_by_the_name_that_was_used() {
    let env = [
        ("POD_MANIFEST_DIR", ""),
        ("BIND_ADDRESS", "localhost"),
        ("CHAINED_CNI_PLUGIN", "yes"),
        ("ISTIO_OWNED_CNI_CONF_FILENAME", "02.conf"),
        ("CNI_NETWORK_CONFIG", "{"),
        // Without effect, so that its value does not matter.
        ("HOST_PROBE_SNAT_IP", "here"),
    ];
    let flags = [
        "--health-port=65536",
        "--ipv6-policy=Drop",
        "--cni-agent-run-dir=run",
        "--cni-conf-name=../x.conflist",
        "--monitoring-port=",
        "--mounted-cni-bin-dir=/a,b",
        "--agent-deadline-seconds=201",
    ];
    assert_eq!(
        resolve(&flags, &env).unwrap_err(),
        [
            "no pod source: set --node-name or NODE_NAME to the name of the node (spec.nodeName), or --pod-manifest-dir or POD_MANIFEST_DIR to a directory of Pod manifests",
            "--cni-agent-run-dir \"run\": use an absolute path",
            "--monitoring-port \"\": use a port, at most 65535, or 0 for none",
            "--health-port \"65536\": use a port, at most 65535, or 0 for none",
            "BIND_ADDRESS \"localhost\": use an IP address",
            "--ipv6-policy \"Drop\": use auto, capture or drop",
            "--mounted-cni-bin-dir \"/a,b\": use a comma-separated list of absolute paths",
            "--cni-conf-name \"../x.conflist\": use a file name without a directory, ending in .conflist, or .conf where that is allowed",
            "ISTIO_OWNED_CNI_CONF_FILENAME \"02.conf\": use a file name without a directory, ending in .conflist, or .conf where that is allowed",
            "CHAINED_CNI_PLUGIN \"yes\": use true or false",
            "CNI_NETWORK_CONFIG \"{\": use a JSON object with kubernetes.exclude_namespaces",
            "--agent-deadline-seconds \"201\": use a whole number of seconds, 1 to 200",
        ]
    );
    let long = resolve(&[], &[("MONITORING_PORT", &"9".repeat(1000))]).unwrap_err();
    assert!(long[0].len() < 200, "{long:?}");
}

#[test]
fn a_policy_that_cannot_be_used_is_said_once_with_what_can() {
    let selector =
        "use a label selector with matchLabels or matchExpressions that does not select everything";
    let env = [
        ("MODE", "dry-run"),
        ("RUNTIME_CLASS_POLICY", "deny"),
        ("EXCLUDE_POD_SELECTOR", "app=a"),
        ("EXCLUDE_NAMESPACE_SELECTOR", "{}"),
        ("STOP_DECISION_SECONDS", "26"),
    ];
    assert_eq!(
        resolve(&[], &env).unwrap_err(),
        [
            "MODE \"dry-run\": use redirect or observe".to_owned(),
            "RUNTIME_CLASS_POLICY \"deny\": use report or refuse".to_owned(),
            format!("EXCLUDE_POD_SELECTOR \"app=a\": {selector}"),
            format!("EXCLUDE_NAMESPACE_SELECTOR \"{{}}\": {selector}"),
            "STOP_DECISION_SECONDS \"26\": use a whole number of seconds, 0 to 25".to_owned(),
        ]
    );
}

#[test]
fn both_spellings_of_older_charts_are_read_and_the_template_of_the_oldest() {
    let namespaces = |env: &[(&str, &str)]| install(&[], env).entry.exclude_namespaces;
    let template =
        ("CNI_NETWORK_CONFIG", r#"{"type":"istio-cni","kubernetes":{"exclude_namespaces":["a"],"x":1}}"#);
    assert_eq!(namespaces(&[("EXCLUDED_NAMESPACES", " a, ,b,"), template]), ["a", "b"]);
    assert_eq!(namespaces(&[("EXCLUDED_NAMESPACES", "a"), ("EXCLUDE_NAMESPACES", "b")]), ["b"]);
    assert_eq!(namespaces(&[template]), ["a"]);
    assert!(namespaces(&[("EXCLUDE_NAMESPACES", ""), template]).is_empty());
    assert!(namespaces(&[("CNI_NETWORK_CONFIG", "{}")]).is_empty());
    let own = |name| install(&["--istio-owned-cni-config"], &[(name, "01.conflist")]).place;
    for name in ["ISTIO_OWNED_CNI_CONFIG_FILENAME", "ISTIO_OWNED_CNI_CONF_FILENAME"] {
        assert_eq!(own(name), Place::OwnFile { name: "01.conflist".to_owned(), primary: None });
    }
}

#[test]
fn the_mode_decides_what_the_file_name_means() {
    let place = |flags: &[&str]| install(&[flags, &["--cni-conf-name=x.conf"]].concat(), &[]).place;
    let name = "x.conf".to_owned();
    assert_eq!(place(&[]), Place::Chained { primary: Some(name.clone()) });
    assert_eq!(
        place(&["--istio-owned-cni-config"]),
        Place::OwnFile { name: "02-istio-cni.conflist".to_owned(), primary: Some(name.clone()) }
    );
    let standalone = ["--chained-cni-plugin=false", "--istio-owned-cni-config"];
    assert_eq!(place(&standalone), Place::Standalone { name });
}

#[test]
fn every_flag_is_accepted_and_unknown_ones_are_not() {
    command().debug_assert();
    let mut flags = vec!["--pod-manifest-dir=/pods".to_owned()];
    for setting in all().filter(|s| matches!(s.effect, Effect::Ignored(_)) && !s.flag.is_empty()) {
        flags.push(format!("--{}=1", setting.flag));
    }
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert!(resolve(&flags, &[]).is_ok());
    for unknown in ["--unknown", "run", "--chained-cni-plugin false"] {
        assert!(invoke(&unknown.split(' ').collect::<Vec<_>>(), &[]).is_err(), "{unknown}");
    }
}

#[test]
fn subcommands_take_the_run_directory_from_where_the_agent_takes_it() {
    let env = [("CNI_AGENT_RUN_DIR", "/run/env")];
    for (flags, dir, expected) in [
        (&["status"][..], "/run/env", Form::Text),
        (&["status", "--cni-agent-run-dir=/run/flag", "-o", "json"], "/run/flag", Form::Json),
    ] {
        let Invocation::Status(query) = invoke(flags, &env).unwrap() else { panic!("{flags:?}") };
        assert_eq!((query.run_dir.as_path(), query.form), (Path::new(dir), expected));
    }
    let Invocation::Pods(query) = invoke(&["pods"], &[]).unwrap() else { panic!() };
    assert_eq!(query.run_dir, PathBuf::from(agent_api::path::DEFAULT_RUN_DIR));
    assert!(matches!(invoke(&["version"], &[]).unwrap(), Invocation::Version(Form::Text)));
    let Invocation::Uninstall(mut values) = invoke(&["uninstall", "--mounted-cni-net-dir=/n"], &env).unwrap()
    else {
        panic!()
    };
    assert_eq!(InstallSettings::resolve(&mut values).net_dir, Path::new("/n"));
    let help = command().render_help().to_string();
    assert!(help.contains("status") && help.contains("uninstall") && !help.contains("ctrlz"), "{help}");
}

#[test]
fn names_are_given_once_and_a_flag_has_the_variable_of_its_name() {
    let (mut flags, mut variables) = (BTreeSet::new(), BTreeSet::new());
    for setting in all() {
        assert!(setting.flag.is_empty() || flags.insert(setting.flag), "{setting:?}");
        assert!(setting.variables.iter().all(|name| variables.insert(*name)), "{setting:?}");
        if let (false, [first, ..]) = (setting.flag.is_empty(), setting.variables) {
            assert_eq!(setting.flag.replace('-', "_").to_uppercase(), *first);
        }
    }
}

/// One line of a table of `docs/SETTINGS.md`.
fn row(setting: &Setting) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let flag = if setting.flag.is_empty() { String::new() } else { format!("`--{}`", setting.flag) };
    let variables = setting.variables.iter().map(|name| code(name)).collect::<Vec<_>>().join(", ");
    match setting.effect {
        Effect::Used => {
            let kind = match setting.kind {
                Kind::Bool => "boolean",
                Kind::Number => "number",
                Kind::Text => "text",
            };
            let default = code(setting.default);
            format!("| {flag} | {variables} | {kind} | {default} | {} |", setting.meaning)
        }
        Effect::Ignored(why) => format!("| {flag} | {variables} | {why} |"),
    }
}

#[test]
fn the_documentation_has_every_setting_as_it_is_and_no_other() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/SETTINGS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let documented: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| `") || line.starts_with("|  |")).collect();
    let expected: Vec<String> = all().map(row).collect();
    assert!(documented == expected, "the lines should be:\n{}", expected.join("\n"));
}
