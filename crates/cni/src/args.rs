// SPDX-License-Identifier: Apache-2.0
//! `CNI_ARGS`: `KEY=VALUE` pairs joined by `;`. Owns the grammar and the keys that name a pod; never decides what is done
//! with that pod.

use crate::error::{Code, Error};
use crate::text::shown;

/// Which pod a call is about, as the runtime says. Empty values mean that the caller is not Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Args {
    /// `K8S_POD_NAME`.
    pub pod_name: String,
    /// `K8S_POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `K8S_POD_UID`, not sent by old runtimes.
    pub pod_uid: String,
    /// `K8S_POD_INFRA_CONTAINER_ID`: the sandbox, equal to `CNI_CONTAINERID`.
    pub infra_container_id: String,
}

impl Args {
    /// Parse the variable. Pairs come in any order, and the last of several equal keys wins: a thin Multus appends keys to
    /// those of its own environment. `IP` and `MAC` are known, because runtimes send them for static addresses, and have
    /// no meaning for a plugin that assigns none.
    ///
    /// # Errors
    /// Code 4: a part without exactly one `=`, `IgnoreUnknown` with another value than a bool, or an unknown key while
    /// `IgnoreUnknown` is not true.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut args = Self::default();
        if text.is_empty() {
            return Ok(args);
        }
        let mut ignore_unknown = false;
        let mut unknown = None;
        for part in text.split(';') {
            let Some((key, value)) = part.split_once('=').filter(|(_, value)| !value.contains('=')) else {
                return Err(invalid(&format!(
                    "CNI_ARGS has the part \"{}\": each part between \";\" must be KEY=VALUE with exactly one \"=\"",
                    shown(part)
                )));
            };
            match key {
                "IgnoreUnknown" => ignore_unknown = parse_bool(value)?,
                "K8S_POD_NAME" => args.pod_name = value.into(),
                "K8S_POD_NAMESPACE" => args.pod_namespace = value.into(),
                "K8S_POD_UID" => args.pod_uid = value.into(),
                "K8S_POD_INFRA_CONTAINER_ID" => args.infra_container_id = value.into(),
                "IP" | "MAC" => {}
                other => unknown = unknown.or(Some(other)),
            }
        }
        match unknown {
            Some(key) if !ignore_unknown => Err(invalid(&format!(
                "CNI_ARGS has the unknown key \"{}\": known are IgnoreUnknown, K8S_POD_NAME, K8S_POD_NAMESPACE, \
                 K8S_POD_UID, K8S_POD_INFRA_CONTAINER_ID, IP, MAC; others need IgnoreUnknown=1",
                shown(key)
            ))),
            _ => Ok(args),
        }
    }
}

fn parse_bool(value: &str) -> Result<bool, Error> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(invalid(&format!(
            "CNI_ARGS has IgnoreUnknown=\"{}\": must be 1, true, 0 or false",
            shown(value)
        ))),
    }
}

fn invalid(msg: &str) -> Error {
    Error::new(Code::InvalidEnvironment, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pairs_of_containerd_are_read_in_any_order() {
        let one = Args::parse(
            "K8S_POD_INFRA_CONTAINER_ID=5269;K8S_POD_UID=1111-2222;IgnoreUnknown=1;K8S_POD_NAMESPACE=dual-stack;\
             K8S_POD_NAME=echo-0",
        );
        let other = Args::parse(
            "K8S_POD_NAME=echo-0;K8S_POD_NAMESPACE=dual-stack;K8S_POD_UID=1111-2222;K8S_POD_INFRA_CONTAINER_ID=5269",
        );
        let expected = Args {
            pod_name: "echo-0".into(),
            pod_namespace: "dual-stack".into(),
            pod_uid: "1111-2222".into(),
            infra_container_id: "5269".into(),
        };
        assert_eq!(one, Ok(expected.clone()));
        assert_eq!(other, Ok(expected));
    }

    #[test]
    fn the_last_of_several_equal_keys_wins() {
        let args =
            Args::parse("IgnoreUnknown=false;X=1;K8S_POD_NAME=a;IgnoreUnknown=1;K8S_POD_NAME=b").unwrap();
        assert_eq!(args.pod_name, "b");
        assert!(Args::parse("IgnoreUnknown=1;X=1;IgnoreUnknown=0").is_err());
    }

    #[test]
    fn ignore_unknown_counts_wherever_it_stands_and_in_any_case() {
        for value in ["1", "true", "TRUE", "tRuE"] {
            assert!(Args::parse(&format!("VENDOR=x;IgnoreUnknown={value}")).is_ok(), "{value}");
            assert!(Args::parse(&format!("IgnoreUnknown={value};VENDOR=x")).is_ok(), "{value}");
        }
    }

    #[test]
    fn an_empty_string_and_empty_values_are_no_pod() {
        assert_eq!(Args::parse(""), Ok(Args::default()));
        assert_eq!(Args::parse("K8S_POD_NAME=;K8S_POD_NAMESPACE="), Ok(Args::default()));
    }

    #[test]
    fn static_addresses_are_known_keys() {
        assert_eq!(Args::parse("IP=10.0.0.1/24;MAC=aa:bb:cc:dd:ee:ff"), Ok(Args::default()));
    }

    #[test]
    fn each_malformed_text_has_code_4_and_its_message() {
        let pair = "each part between \";\" must be KEY=VALUE with exactly one \"=\"";
        let known = "known are IgnoreUnknown, K8S_POD_NAME, K8S_POD_NAMESPACE, K8S_POD_UID, \
                     K8S_POD_INFRA_CONTAINER_ID, IP, MAC; others need IgnoreUnknown=1";
        let cases = [
            ("K8S_POD_NAME", format!("CNI_ARGS has the part \"K8S_POD_NAME\": {pair}")),
            ("K8S_POD_NAME=a;", format!("CNI_ARGS has the part \"\": {pair}")),
            (";", format!("CNI_ARGS has the part \"\": {pair}")),
            ("K8S_POD_NAME=a=b", format!("CNI_ARGS has the part \"K8S_POD_NAME=a=b\": {pair}")),
            (
                "K8S_POD_INFRA_CONTAINER_ID=5269K8S_POD_UID=1111",
                format!("CNI_ARGS has the part \"K8S_POD_INFRA_CONTAINER_ID=5269K8S_POD_UID=1111\": {pair}"),
            ),
            ("IgnoreUnknown=1;a\nb", format!("CNI_ARGS has the part \"a b\": {pair}")),
            ("VENDOR=1;OTHER=2", format!("CNI_ARGS has the unknown key \"VENDOR\": {known}")),
            ("k8s_pod_name=a", format!("CNI_ARGS has the unknown key \"k8s_pod_name\": {known}")),
            ("=a", format!("CNI_ARGS has the unknown key \"\": {known}")),
            (
                "IgnoreUnknown=yes",
                "CNI_ARGS has IgnoreUnknown=\"yes\": must be 1, true, 0 or false".to_owned(),
            ),
            ("IgnoreUnknown=", "CNI_ARGS has IgnoreUnknown=\"\": must be 1, true, 0 or false".to_owned()),
        ];
        for (text, message) in cases {
            let error = Args::parse(text).unwrap_err();
            assert_eq!((error.code(), error.msg()), (4, message.as_str()), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_every_error_is_one_line(text in "\\PC*|[A-Z0-9_=;\\n]{0,40}") {
            if let Err(error) = Args::parse(&text) {
                assert_eq!(error.code(), 4);
                assert!(!error.msg().contains('\n'));
            }
        }
    }
}
