// SPDX-License-Identifier: Apache-2.0
//! The network configuration on stdin. Owns the keys that the plugin understands and what they accept; never drops or
//! rewrites a key, and tolerates every key that it does not know.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::error::{Code, Error};
use crate::text::{is_identifier, shown};
use crate::version::Version;

/// Deadline of an ADD in seconds when the configuration names none. Long enough for the agent to be replaced.
pub const DEADLINE_DEFAULT: u16 = 60;
/// Longest deadline in seconds: kubelet gives a sandbox 240 s, and the plugins before us need some of them.
pub const DEADLINE_MAX: u16 = 200;
/// The capability that hands over a pod's annotations, and the key below `runtimeConfig`.
pub const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The document, split into its keys; the values are the text as received.
#[derive(Debug)]
pub struct Document<'a> {
    keys: BTreeMap<String, &'a RawValue>,
    /// The version of the configuration, and so of the result.
    pub version: Version,
}

/// Our own keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// `exclude_namespaces`: pods in these are let pass. Exact names.
    pub exclude_namespaces: Vec<String>,
    /// `pod_namespace`: where the agent's own pod lives.
    pub pod_namespace: String,
    /// `ambient_enabled`: a pod without a sidecar may be of interest to the agent.
    pub ambient_enabled: bool,
    /// `cni_agent_run_dir`: the directory of the agent's socket; empty means the default.
    pub run_dir: String,
    /// `plugin_log_level`: `debug`, `info`, `warn`, `error`, `fatal` or `none`; empty means `info`.
    pub log_level: String,
    /// `agent_deadline_seconds`: how long an ADD waits for the agent, 1 to 200 s.
    pub deadline_seconds: u16,
    /// `observe`: the agent decides and writes nothing, so no pod waits for it or fails by it.
    pub observe: bool,
    /// The pod's annotations, if the runtime handed them over. `None` and an empty map are different things: only with a
    /// map is an annotation that is not in it known to be absent.
    pub annotations: Option<BTreeMap<String, String>>,
}

/// An attachment that the runtime still knows, for GC.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// The sandbox.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface.
    pub ifname: String,
}

impl<'a> Document<'a> {
    /// Split the document and check `name` and `cniVersion`, in this order.
    ///
    /// # Errors
    /// Code 6: not a JSON object, or one of the two has another type. Code 7: `name` is missing or not valid. Code 1:
    /// `cniVersion` is none of the seven.
    pub fn parse(stdin: &'a [u8]) -> Result<Self, Error> {
        let keys: BTreeMap<String, &RawValue> = serde_json::from_slice(stdin).map_err(|error| {
            let hint = if stdin.is_empty() { "stdin is empty" } else { "what came is something else" };
            Error::new(
                Code::Decode,
                &format!(
                    "network config on stdin must be a JSON object and {hint}: {}",
                    shown(&error.to_string())
                ),
            )
        })?;
        let name = head(&keys, "name")?;
        if !is_identifier(&name) {
            return Err(Error::new(
                Code::InvalidConfig,
                &format!(
                    "network config has name \"{}\": must begin with a letter or digit, then letters, digits, \"_\", \
                     \".\", \"-\"",
                    shown(&name)
                ),
            ));
        }
        let spelling = head(&keys, "cniVersion")?;
        // SPEC, "Version considerations": no version at all is the oldest one.
        let version = if spelling.is_empty() { Some(Version::V0_1_0) } else { Version::parse(&spelling) };
        let Some(version) = version else {
            return Err(Error::new(
                Code::IncompatibleVersion,
                &format!(
                    "network config has cniVersion \"{}\": must be one of {}",
                    shown(&spelling),
                    Version::list()
                ),
            ));
        };
        Ok(Self { keys, version })
    }

    /// The text of `prevResult` as received, byte for byte. `null` is none.
    #[must_use]
    pub fn prev_result(&self) -> Option<&'a str> {
        self.raw("prevResult")
    }

    /// `cni_agent_run_dir` for a verb that must not fail for a bad value: then it is empty.
    #[must_use]
    pub fn run_dir_or_default(&self) -> String {
        self.value("cni_agent_run_dir", "a string").ok().flatten().unwrap_or_default()
    }

    /// What GC may keep: `cni.dev/valid-attachments`, or `cni.dev/attachments` as one release of libcni spelled it. `None`
    /// when there is neither.
    ///
    /// # Errors
    /// Code 7: not an array of objects with `containerID` and `ifname`.
    pub fn valid_attachments(&self) -> Result<Option<Vec<Attachment>>, Error> {
        let form = "an array of objects with containerID and ifname";
        match self.value("cni.dev/valid-attachments", form)? {
            Some(attachments) => Ok(Some(attachments)),
            None => self.value("cni.dev/attachments", form),
        }
    }

    /// Our own keys, with their defaults. `null` is the same as absent.
    ///
    /// # Errors
    /// Code 7: a key has a value that is not accepted; the message names key, value and the accepted form.
    pub fn options(&self) -> Result<Options, Error> {
        let deadline_form = "a whole number of seconds, 1 to 200";
        let deadline = self.value("agent_deadline_seconds", deadline_form)?.unwrap_or(DEADLINE_DEFAULT);
        if !(1..=DEADLINE_MAX).contains(&deadline) {
            return Err(not_accepted("agent_deadline_seconds", &deadline.to_string(), deadline_form));
        }
        Ok(Options {
            exclude_namespaces: self.value("exclude_namespaces", "an array of strings")?.unwrap_or_default(),
            pod_namespace: self.value("pod_namespace", "a string")?.unwrap_or_default(),
            ambient_enabled: self.value("ambient_enabled", "true or false")?.unwrap_or_default(),
            run_dir: self.value("cni_agent_run_dir", "a string")?.unwrap_or_default(),
            log_level: self.value("plugin_log_level", "a string")?.unwrap_or_default(),
            deadline_seconds: deadline,
            observe: self.value("observe", "true or false")?.unwrap_or_default(),
            annotations: self.annotations()?,
        })
    }

    fn annotations(&self) -> Result<Option<BTreeMap<String, String>>, Error> {
        let Some(text) = self.raw("runtimeConfig") else { return Ok(None) };
        let form = "an object";
        let all: BTreeMap<String, &RawValue> =
            serde_json::from_str(text).map_err(|_| not_accepted("runtimeConfig", text, form))?;
        let Some(text) = all.get(POD_ANNOTATIONS).map(|raw| raw.get()) else { return Ok(None) };
        serde_json::from_str(text).map_err(|_| {
            not_accepted("runtimeConfig[\"io.kubernetes.cri.pod-annotations\"]", text, "an object of strings")
        })
    }

    fn raw(&self, key: &str) -> Option<&'a str> {
        self.keys.get(key).map(|raw| raw.get()).filter(|text| *text != "null")
    }

    fn value<T: DeserializeOwned>(&self, key: &str, form: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.raw(key) else { return Ok(None) };
        serde_json::from_str(text).map(Some).map_err(|_| not_accepted(key, text, form))
    }
}

/// A string that every verb needs; absent and `null` are empty.
fn head(keys: &BTreeMap<String, &RawValue>, key: &str) -> Result<String, Error> {
    let Some(raw) = keys.get(key) else { return Ok(String::new()) };
    serde_json::from_str::<Option<String>>(raw.get()).map(Option::unwrap_or_default).map_err(|_| {
        Error::new(Code::Decode, &format!("network config has {key} {}: must be a string", shown(raw.get())))
    })
}

fn not_accepted(key: &str, value: &str, form: &str) -> Error {
    Error::new(
        Code::InvalidConfig,
        &format!(
            "network config has {key} {}: must be {form}; correct the istio-cni entry of the node's CNI configuration",
            shown(value)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document<'_>, Error> {
        Document::parse(text.as_bytes())
    }

    fn options(extra: &str) -> Result<Options, Error> {
        parse(&format!(r#"{{"name":"n","cniVersion":"1.0.0",{extra}}}"#))?.options()
    }

    #[test]
    fn each_bad_head_has_its_code_and_text() {
        let id = "must begin with a letter or digit, then letters, digits, \"_\", \".\", \"-\"";
        let versions = "must be one of 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0";
        let something = "network config on stdin must be a JSON object and what came is something else";
        let cases = [
            (
                "",
                6,
                "network config on stdin must be a JSON object and stdin is empty: EOF while parsing a value at line 1 \
                 column 0"
                    .to_owned(),
            ),
            ("garbage", 6, format!("{something}: expected value at line 1 column 1")),
            ("[]", 6, format!("{something}: invalid type: sequence, expected a map at line 1 column 0")),
            ("null", 6, format!("{something}: invalid type: null, expected a map at line 1 column 4")),
            ("{\"name\":\"n\"", 6, format!("{something}: EOF while parsing an object at line 1 column 11")),
            ("{\"name\":\"n\"} x", 6, format!("{something}: trailing characters at line 1 column 14")),
            (r#"{"name":7}"#, 6, "network config has name 7: must be a string".to_owned()),
            (
                r#"{"name":"n","cniVersion":1.1}"#,
                6,
                "network config has cniVersion 1.1: must be a string".to_owned(),
            ),
            ("{}", 7, format!("network config has name \"\": {id}")),
            (r#"{"name":null}"#, 7, format!("network config has name \"\": {id}")),
            (r#"{"name":"a b","cniVersion":"9"}"#, 7, format!("network config has name \"a b\": {id}")),
            (r#"{"name":"_n"}"#, 7, format!("network config has name \"_n\": {id}")),
            (
                r#"{"name":"n","cniVersion":"9.9.9"}"#,
                1,
                format!("network config has cniVersion \"9.9.9\": {versions}"),
            ),
            (r#"{"name":"n","cniVersion":"1.1"}"#, 1, format!("network config has cniVersion \"1.1\": {versions}")),
        ];
        for (text, code, message) in cases {
            let error = parse(text).unwrap_err();
            assert_eq!((error.code(), error.msg()), (code, message.as_str()), "{text}");
        }
    }

    #[test]
    fn no_version_is_the_oldest_one() {
        for text in
            [r#"{"name":"n"}"#, r#"{"name":"n","cniVersion":""}"#, r#"{"name":"n","cniVersion":null}"#]
        {
            assert_eq!(parse(text).unwrap().version, Version::V0_1_0);
        }
    }

    #[test]
    fn the_last_of_two_equal_keys_wins_as_in_other_implementations() {
        assert_eq!(
            parse(r#"{"name":"n","cniVersion":"x","cniVersion":"1.0.0"}"#).unwrap().version,
            Version::V1_0_0
        );
    }

    #[test]
    fn defaults_apply_when_nothing_is_said_and_for_null() {
        let expected = Options {
            exclude_namespaces: vec![],
            pod_namespace: String::new(),
            ambient_enabled: false,
            run_dir: String::new(),
            log_level: String::new(),
            deadline_seconds: 60,
            observe: false,
            annotations: None,
        };
        assert_eq!(options(r#""type":"istio-cni""#), Ok(expected.clone()));
        let nulls = r#""exclude_namespaces":null,"pod_namespace":null,"ambient_enabled":null,"agent_deadline_seconds":null,
            "observe":null,"runtimeConfig":null,"plugin_log_level":null,"cni_agent_run_dir":null"#;
        assert_eq!(options(nulls), Ok(expected));
    }

    #[test]
    fn every_key_of_ours_is_read() {
        let options = options(
            r#""exclude_namespaces":["kube-system","a"],"pod_namespace":"istio-system","ambient_enabled":true,
               "cni_agent_run_dir":"/run/x","plugin_log_level":"debug","agent_deadline_seconds":200,"observe":true,
               "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a/b":"c"},"portMappings":[1]}"#,
        );
        let expected = Options {
            exclude_namespaces: vec!["kube-system".into(), "a".into()],
            pod_namespace: "istio-system".into(),
            ambient_enabled: true,
            run_dir: "/run/x".into(),
            log_level: "debug".into(),
            deadline_seconds: 200,
            observe: true,
            annotations: Some(BTreeMap::from([("a/b".into(), "c".into())])),
        };
        assert_eq!(options, Ok(expected));
    }

    #[test]
    fn an_empty_map_of_annotations_is_not_a_missing_one() {
        let with = |value: &str| options(&format!(r#""runtimeConfig":{value}"#)).unwrap().annotations;
        assert_eq!(with(r#"{"io.kubernetes.cri.pod-annotations":{}}"#), Some(BTreeMap::new()));
        assert_eq!(with(r#"{"io.kubernetes.cri.pod-annotations":null}"#), None);
        assert_eq!(with(r#"{"other":{}}"#), None);
    }

    #[test]
    fn each_key_of_a_wrong_type_is_named_with_its_value_and_the_accepted_form() {
        let seconds = "a whole number of seconds, 1 to 200";
        let annotations = "runtimeConfig[\"io.kubernetes.cri.pod-annotations\"]";
        let cases = [
            (r#""exclude_namespaces":"a""#, "exclude_namespaces \"a\"", "an array of strings"),
            (r#""exclude_namespaces":[1]"#, "exclude_namespaces [1]", "an array of strings"),
            (r#""pod_namespace":7"#, "pod_namespace 7", "a string"),
            (r#""ambient_enabled":"true""#, "ambient_enabled \"true\"", "true or false"),
            (r#""observe":"yes""#, "observe \"yes\"", "true or false"),
            (r#""cni_agent_run_dir":[]"#, "cni_agent_run_dir []", "a string"),
            (r#""plugin_log_level":{}"#, "plugin_log_level {}", "a string"),
            (r#""agent_deadline_seconds":0"#, "agent_deadline_seconds 0", seconds),
            (r#""agent_deadline_seconds":201"#, "agent_deadline_seconds 201", seconds),
            (r#""agent_deadline_seconds":-1"#, "agent_deadline_seconds -1", seconds),
            (r#""agent_deadline_seconds":1.5"#, "agent_deadline_seconds 1.5", seconds),
            (r#""agent_deadline_seconds":"60""#, "agent_deadline_seconds \"60\"", seconds),
            (r#""runtimeConfig":[]"#, "runtimeConfig []", "an object"),
            (
                r#""runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":1}}"#,
                &format!("{annotations} {{\"a\":1}}"),
                "an object of strings",
            ),
        ];
        for (text, named, form) in cases {
            let error = options(text).unwrap_err();
            let message = format!(
                "network config has {named}: must be {form}; correct the istio-cni entry of the node's CNI configuration"
            );
            assert_eq!((error.code(), error.msg()), (7, message.as_str()), "{text}");
        }
    }

    #[test]
    fn a_long_value_is_shortened_in_the_message() {
        let error = options(&format!(r#""pod_namespace":[{}1]"#, "1,\n".repeat(1000))).unwrap_err();
        assert!(error.msg().len() < 200 && error.msg().contains("..."), "{}", error.msg());
    }

    #[test]
    fn prev_result_is_kept_byte_for_byte() {
        let prev = "{ \"cniVersion\" : \"1.0.0\",\n\t\"x\":1.0e+0, \"\\u0061\":[ ] }";
        let text = format!(r#"{{"name":"n","prevResult":  {prev}  ,"z":1}}"#);
        assert_eq!(parse(&text).unwrap().prev_result(), Some(prev));
        assert_eq!(parse(r#"{"name":"n","prevResult":null}"#).unwrap().prev_result(), None);
        assert_eq!(parse(r#"{"name":"n"}"#).unwrap().prev_result(), None);
    }

    #[test]
    fn a_bad_run_dir_does_not_stop_a_verb_that_must_not_fail() {
        assert_eq!(parse(r#"{"name":"n","cni_agent_run_dir":7}"#).unwrap().run_dir_or_default(), "");
        assert_eq!(parse(r#"{"name":"n","cni_agent_run_dir":"/x"}"#).unwrap().run_dir_or_default(), "/x");
    }

    #[test]
    fn gc_reads_the_long_key_and_falls_back_to_the_short_one() {
        let attachments = |text: &str| parse(text).unwrap().valid_attachments();
        let one = |id: &str| Ok(Some(vec![Attachment { container_id: id.into(), ifname: "eth0".into() }]));
        assert_eq!(
            attachments(
                r#"{"name":"n","cni.dev/attachments":[{"containerID":"short","ifname":"eth0"}],
                    "cni.dev/valid-attachments":[{"containerID":"long","ifname":"eth0"}]}"#
            ),
            one("long")
        );
        assert_eq!(
            attachments(r#"{"name":"n","cni.dev/attachments":[{"containerID":"short","ifname":"eth0"}]}"#),
            one("short")
        );
        assert_eq!(attachments(r#"{"name":"n","cni.dev/valid-attachments":[]}"#), Ok(Some(vec![])));
        assert_eq!(attachments(r#"{"name":"n"}"#), Ok(None));
        let error = attachments(r#"{"name":"n","cni.dev/valid-attachments":[1]}"#).unwrap_err();
        assert_eq!(
            (error.code(), error.msg()),
            (
                7,
                "network config has cni.dev/valid-attachments [1]: must be an array of objects with containerID and \
                 ifname; correct the istio-cni entry of the node's CNI configuration"
            )
        );
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            read_all(&bytes);
        }

        #[test]
        fn no_text_that_looks_like_a_config_panics(
            text in r#"\{"name":"n"(,"(cniVersion|prevResult|exclude_namespaces|runtimeConfig|agent_deadline_seconds|cni.dev/attachments)":(null|1|-1|1e99|"1.0.0"|\[\]|\{\}|"\\ud800"|\[\{\}\])){0,4}\}"#
        ) {
            read_all(text.as_bytes());
        }
    }

    fn read_all(bytes: &[u8]) {
        match Document::parse(bytes) {
            Ok(document) => {
                let _ = document.options();
                let _ = document.valid_attachments();
                let _ = document.run_dir_or_default();
                let _ = crate::result::printed(document.version, document.prev_result());
            }
            Err(error) => assert!([1, 6, 7].contains(&error.code()) && !error.msg().contains('\n')),
        }
    }
}
