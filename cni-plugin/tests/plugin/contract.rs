// SPDX-License-Identifier: Apache-2.0
//! The process contract: verbs, versions, order of checks, codes and texts, without an agent.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cni::Version;

use crate::harness::{Caller, PLUGIN, RunDir, finish};

const IDENTIFIER: &str = "must begin with a letter or digit, then letters, digits, \"_\", \".\", \"-\"";
const VERSIONS: &str = "0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";

/// An ADD that is passed without the agent whatever else the configuration says.
fn passed_add(config: String) -> Caller {
    Caller::new("ADD", config).without("CNI_ARGS")
}

#[test]
fn without_a_command_it_says_what_it_is_on_stderr() {
    let finished = Caller::new("", "").run();
    finished.succeeded_with("");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        finished.stderr,
        format!("CNI plugin istio-cni {version} (Waylay)\nCNI versions served: {VERSIONS}\n")
    );
}

#[test]
fn version_answers_the_validation_call_of_runtimes() {
    for (_, version) in Version::ALL {
        let finished = Caller::new("VERSION", format!(r#"{{"cniVersion":"{version}"}}"#))
            .with("CNI_NETNS", "dummy")
            .with("CNI_IFNAME", "dummy")
            .with("CNI_PATH", "dummy")
            .with("CNI_CONTAINERID", "")
            .with("CNI_ARGS", "")
            .run();
        let list = VERSIONS.replace(", ", "\",\"");
        finished.succeeded_with(&format!(
            "{{\"cniVersion\":\"{version}\",\"supportedVersions\":[\"{list}\"]}}\n"
        ));
        assert_eq!(finished.stderr, "");
    }
}

#[test]
fn version_does_not_wait_for_a_question_that_never_comes() {
    let mut child = Command::new(PLUGIN)
        .env_clear()
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _open_for_ever = child.stdin.take().unwrap();
    let finished = finish((child, Instant::now()));
    assert!(finished.stdout.starts_with("{\"cniVersion\":\"1.1.0\","), "{finished:?}");
    assert!(finished.status == 0 && finished.took < Duration::from_secs(5), "{finished:?}");
}

#[test]
fn every_verb_serves_every_version_that_has_it() {
    let dir = RunDir::new();
    for (version, spelling) in Version::ALL {
        let config = dir.config_of(spelling, "");
        let dns = if ["0.3.0", "0.3.1", "0.4.0"].contains(&spelling) { ",\"dns\":{}" } else { "" };
        passed_add(config.clone()).run().succeeded_with(&format!("{{\"cniVersion\":\"{spelling}\"{dns}}}\n"));
        Caller::new("DEL", config.clone()).run().succeeded_with("");
        for (verb, oldest) in
            [("CHECK", Version::V0_4_0), ("GC", Version::V1_1_0), ("STATUS", Version::V1_1_0)]
        {
            let finished = Caller::new(verb, config.clone()).without("CNI_ARGS").run();
            if version >= oldest {
                finished.succeeded_with("");
            } else {
                let oldest = oldest.as_str();
                finished.failed_with(
                    1,
                    &format!("network config has cniVersion \"{spelling}\": {verb} needs {oldest} or newer"),
                );
            }
        }
    }
}

#[test]
fn the_previous_result_is_printed_as_received_in_every_format() {
    let dir = RunDir::new();
    for (version, prev) in [
        ("0.2.0", r#"{"cniVersion":"0.2.0", "ip4":{"ip":"10.0.0.2/24"},"unknown":1.50}"#),
        ("0.3.1", r#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}], "dns":{}}"#),
        ("1.0.0", "{\n  \"cniVersion\": \"1.0.0\",\n  \"interfaces\": [],\n  \"routes\": []\n}"),
        (
            "1.1.0",
            r#"{"interfaces":[{"name":"eth0","mtu":1500,"socketPath":"/s","pciID":"0"}],"cniVersion":"1.1.0"}"#,
        ),
    ] {
        let config = dir.config_of(version, &format!(r#","prevResult":{prev}"#));
        passed_add(config).run().succeeded_with(&format!("{prev}\n"));
    }
}

#[test]
fn each_bad_environment_is_code_4() {
    let all = "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH";
    let add = || Caller::new("ADD", "garbage");
    let cases = [
        (
            Caller::new("add", ""),
            "CNI_COMMAND is \"add\": must be one of ADD, DEL, CHECK, GC, STATUS, VERSION".to_owned(),
        ),
        (
            add().without("CNI_CONTAINERID").without("CNI_PATH").with("CNI_IFNAME", ""),
            format!(
                "CNI_CONTAINERID, CNI_IFNAME, CNI_PATH not set: ADD needs {all}; the runtime's call is incomplete"
            ),
        ),
        (
            Caller::new("STATUS", "").without("CNI_PATH"),
            "CNI_PATH not set: STATUS needs CNI_PATH; the runtime's call is incomplete".to_owned(),
        ),
        (add().with("CNI_CONTAINERID", "../x"), format!("CNI_CONTAINERID is \"../x\": {IDENTIFIER}")),
        (
            add().with("CNI_IFNAME", "eth0:1"),
            "CNI_IFNAME is \"eth0:1\": must have 1 to 15 bytes without \"/\", \":\" or blanks, and not be \".\" or \"..\""
                .to_owned(),
        ),
    ];
    for (caller, message) in cases {
        caller.run().failed_with(4, &message);
    }
}

#[test]
fn each_bad_stdin_has_its_code() {
    let something = "network config on stdin must be a JSON object and what came is something else";
    let versions = format!("must be one of {VERSIONS}");
    let cases: [(&[u8], u32, String); 8] = [
        (
            b"",
            6,
            "network config on stdin must be a JSON object and stdin is empty: EOF while parsing a value at line 1 column 0"
                .into(),
        ),
        (b"garbage", 6, format!("{something}: expected value at line 1 column 1")),
        (b"\xff\xfe{}", 6, format!("{something}: expected value at line 1 column 1")),
        (b"{\"name\":\"n\"}}", 6, format!("{something}: trailing characters at line 1 column 13")),
        (b"{}", 7, format!("network config has name \"\": {IDENTIFIER}")),
        (b"{\"name\":\"a/b\"}", 7, format!("network config has name \"a/b\": {IDENTIFIER}")),
        (
            b"{\"name\":\"n\",\"cniVersion\":\"1.2.0\"}",
            1,
            format!("network config has cniVersion \"1.2.0\": {versions}"),
        ),
        (
            b"{\"name\":\"n\",\"cniVersion\":\"1.0\"}",
            1,
            format!("network config has cniVersion \"1.0\": {versions}"),
        ),
    ];
    for (stdin, code, message) in cases {
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS"] {
            Caller::new(verb, stdin).run().failed_with(code, &message);
        }
    }
}

#[test]
fn an_endless_stdin_is_not_read_forever() {
    Caller::new("ADD", vec![b' '; (8 << 20) + 4096])
        .run()
        .failed_with(5, "read the network config from stdin: it is larger than 8 MiB");
}

#[test]
fn an_undecodable_previous_result_is_code_6() {
    let dir = RunDir::new();
    let see = "see the plugin before istio-cni in the list";
    let format = "must be a version with the result format of cniVersion \"1.0.0\"";
    for (prev, message) in [
        ("7", format!("prevResult is 7: must be an object; {see}")),
        ("{}", format!("prevResult has cniVersion that is missing: {format}; {see}")),
        (r#"{"cniVersion":"0.3.1"}"#, format!("prevResult has cniVersion \"0.3.1\": {format}; {see}")),
        (r#"{"cniVersion":"1.0.0","ips":7}"#, format!("prevResult has ips 7: must be an array; {see}")),
    ] {
        let config = dir.config(&format!(r#","prevResult":{prev}"#));
        passed_add(config.clone()).run().failed_with(6, &message);
        Caller::new("DEL", config).run().succeeded_with("");
    }
}

#[test]
fn each_bad_value_of_a_key_is_code_7_for_add_and_check() {
    let dir = RunDir::new();
    for (key, value, form) in [
        ("exclude_namespaces", "\"kube-system\"", "an array of strings"),
        ("pod_namespace", "1", "a string"),
        ("ambient_enabled", "\"yes\"", "true or false"),
        ("plugin_log_level", "3", "a string"),
        ("agent_deadline_seconds", "240", "a whole number of seconds, 1 to 200"),
        ("runtimeConfig", "[]", "an object"),
    ] {
        let config = dir.config(&format!(",\"{key}\":{value}"));
        let message = format!(
            "network config has {key} {value}: must be {form}; correct the istio-cni entry of the node's CNI configuration"
        );
        for verb in ["ADD", "CHECK"] {
            Caller::new(verb, config.clone()).run().failed_with(7, &message);
        }
        Caller::new("DEL", config).run().succeeded_with("");
    }
}

#[test]
fn each_malformed_args_is_code_4_and_never_stops_a_del() {
    let dir = RunDir::new();
    let pair = "each part between \";\" must be KEY=VALUE with exactly one \"=\"";
    let known = "known are IgnoreUnknown, K8S_POD_NAME, K8S_POD_NAMESPACE, K8S_POD_UID, K8S_POD_INFRA_CONTAINER_ID, IP, \
                 MAC; others need IgnoreUnknown=1";
    for (args, message) in [
        ("K8S_POD_NAME", format!("CNI_ARGS has the part \"K8S_POD_NAME\": {pair}")),
        ("IgnoreUnknown=1;", format!("CNI_ARGS has the part \"\": {pair}")),
        (
            "K8S_POD_INFRA_CONTAINER_ID=xK8S_POD_UID=y",
            format!("CNI_ARGS has the part \"K8S_POD_INFRA_CONTAINER_ID=xK8S_POD_UID=y\": {pair}"),
        ),
        ("VENDOR=1", format!("CNI_ARGS has the unknown key \"VENDOR\": {known}")),
        ("IgnoreUnknown=2", "CNI_ARGS has IgnoreUnknown=\"2\": must be 1, true, 0 or false".into()),
    ] {
        for verb in ["ADD", "CHECK"] {
            Caller::new(verb, dir.config("")).with("CNI_ARGS", args).run().failed_with(4, &message);
        }
        Caller::new("DEL", dir.config("")).with("CNI_ARGS", args).run().succeeded_with("");
    }
}

#[test]
fn duplicate_and_unordered_args_are_what_runtimes_send() {
    let dir = RunDir::new();
    let args = "K8S_POD_UID=u;VENDOR=x;IgnoreUnknown=true;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a;IgnoreUnknown=1;\
                K8S_POD_NAMESPACE=kube-system;IP=10.0.0.1;MAC=aa:bb:cc:dd:ee:ff";
    let config = dir.config(r#","exclude_namespaces":["kube-system"]"#);
    Caller::new("ADD", config).with("CNI_ARGS", args).run().succeeded_with("{\"cniVersion\":\"1.0.0\"}\n");
}

#[test]
fn del_succeeds_with_nothing_there_and_prints_nothing() {
    let dir = RunDir::new();
    for netns in ["", "/nonexistent", "/dev/null", "/proc/self/ns/net"] {
        let finished = Caller::new("DEL", dir.config("")).with("CNI_NETNS", netns).run();
        finished.succeeded_with("");
        assert_eq!(finished.stderr, "");
    }
}

#[test]
fn gc_takes_both_spellings_and_an_empty_list_and_reports_a_bad_one() {
    let dir = RunDir::new();
    let one = r#"[{"containerID":"c","ifname":"eth0"}]"#;
    for more in [
        String::new(),
        r#","cni.dev/valid-attachments":[]"#.into(),
        format!(r#","cni.dev/valid-attachments":{one}"#),
        format!(r#","cni.dev/attachments":{one}"#),
    ] {
        Caller::new("GC", dir.config_of("1.1.0", &more)).run().succeeded_with("");
    }
    Caller::new("GC", dir.config_of("1.1.0", r#","cni.dev/attachments":[7]"#)).run().failed_with(
        7,
        "network config has cni.dev/attachments [7]: must be an array of objects with containerID and ifname; correct the \
         istio-cni entry of the node's CNI configuration",
    );
}

#[test]
fn status_does_not_need_the_agent() {
    let finished =
        Caller::new("STATUS", r#"{"name":"n","cniVersion":"1.1.0","cni_agent_run_dir":"/nonexistent"}"#)
            .run();
    finished.succeeded_with("");
    assert!(finished.took < Duration::from_secs(1), "{finished:?}");
}

#[test]
fn a_panic_is_an_error_object_of_one_line() {
    let finished = Caller::new("ADD", "{}").with("WAYLAY_FAULT", "plugin:panic").run();
    assert_eq!(finished.status, 1, "{finished:?}");
    let version = env!("CARGO_PKG_VERSION");
    let start = format!("{{\"code\":100,\"msg\":\"istio-cni {version}: panicked at cni-plugin/src/main.rs:");
    assert!(finished.stdout.starts_with(&start), "{finished:?}");
    assert!(
        finished.stdout.ends_with(": asked for by a test; this is a defect, please report it\"}\n"),
        "{finished:?}"
    );
}
