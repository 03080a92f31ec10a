// SPDX-License-Identifier: Apache-2.0
//! Text of a manifest file to pods. Pure.

use redirect::Pod;
use serde::Deserialize as _;
use serde_json::Value;

/// Why a file's text has no pods.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Not UTF-8, so neither YAML nor JSON.
    #[error("not UTF-8")]
    Utf8,
    /// Not YAML.
    #[error("not YAML: {0}")]
    Yaml(String),
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A document whose fields are not those of a Pod.
    #[error("document {number}: not a Pod: {error}")]
    NotPod {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// A document without `kind`.
    #[error("document {0}: no kind")]
    NoKind(usize),
    /// A pod without a name.
    #[error("document {0}: no metadata.name")]
    NoName(usize),
    /// A defect of ours, found by this file.
    #[error("the parser panicked")]
    Parser,
    /// No document is a Pod.
    #[error("no Pod in it")]
    Empty,
}

/// The spelling of a file, by its name's ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One or more YAML documents.
    Yaml,
    /// One JSON document.
    Json,
}

impl Form {
    /// The form of a file of this name; nothing when it is no manifest. A leading dot means temporary or hidden.
    pub(crate) fn of(name: &str) -> Option<Self> {
        match name.rsplit_once('.') {
            Some((stem, _)) if stem.is_empty() || stem.starts_with('.') => None,
            Some((_, "yaml" | "yml")) => Some(Self::Yaml),
            Some((_, "json")) => Some(Self::Json),
            _ => None,
        }
    }
}

/// The pods in `bytes`; objects of other kinds are left out. A file is used as a whole or not at all.
///
/// # Errors
/// [`ManifestError`] for the first document that cannot be used.
pub(crate) fn parse(form: Form, bytes: &[u8]) -> Result<Vec<Pod>, ManifestError> {
    let documents: Vec<Value> = match form {
        Form::Json => vec![serde_json::from_slice(bytes)?],
        Form::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|_| ManifestError::Utf8)?;
            // The error quotes lines of the file; one line is enough for a log.
            // Booleans as in YAML 1.2: `n` and `on` are names, as for the API server's own parser.
            let options = serde_saphyr::options! { strict_booleans: true };
            serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
                ManifestError::Yaml(error.to_string().lines().next().unwrap_or_default().to_owned())
            })?
        }
    };
    let mut pods = Vec::new();
    for (number, document) in (1..).zip(documents) {
        if document.is_null() {
            continue;
        }
        match document.get("kind").and_then(Value::as_str) {
            None => return Err(ManifestError::NoKind(number)),
            Some("Pod") => pods.push(pod(number, &document)?),
            Some(_) => {}
        }
    }
    if pods.is_empty() { Err(ManifestError::Empty) } else { Ok(pods) }
}

fn pod(number: usize, document: &Value) -> Result<Pod, ManifestError> {
    let mut pod = Pod::deserialize(document).map_err(|error| ManifestError::NotPod { number, error })?;
    if pod.metadata.name.is_empty() {
        return Err(ManifestError::NoName(number));
    }
    if pod.metadata.namespace.is_empty() {
        "default".clone_into(&mut pod.metadata.namespace);
    }
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Result<Vec<String>, String> {
        match parse(Form::Yaml, text.as_bytes()) {
            Ok(pods) => Ok(pods
                .into_iter()
                .map(|p| format!("{}/{}", p.metadata.namespace, p.metadata.name))
                .collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn every_pod_of_a_multi_document_file_counts_and_other_kinds_do_not() {
        let text = "kind: Pod\nmetadata: {name: a}\n---\nkind: Service\nmetadata: {name: s}\n---\n---\nkind: Pod\n\
                    metadata:\n  name: b\n  namespace: n\n  annotations:\n    k: 'true'\n";
        assert_eq!(yaml(text).unwrap(), ["default/a", "n/b"]);
    }

    #[test]
    fn json_is_read_as_json() {
        let text =
            br#"{"kind":"Pod","metadata":{"name":"a","uid":"u"},"spec":{"containers":[{"name":"c"}]}}"#;
        let pods = parse(Form::Json, text).unwrap();
        assert_eq!(pods[0].metadata.uid.as_deref(), Some("u"));
        assert!(matches!(parse(Form::Json, b"{\"kind\":"), Err(ManifestError::Json(_))));
    }

    #[test]
    fn unusable_files_say_why() {
        for (text, expected) in [
            ("", "no Pod in it"),
            ("kind: Service\n", "no Pod in it"),
            ("metadata: {name: a}\n", "document 1: no kind"),
            ("kind: Pod\n", "document 1: no metadata.name"),
            ("kind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: [1]\n", "document 2: not a Pod"),
            ("kind: [\n", "not YAML: "),
        ] {
            let error = yaml(text).unwrap_err();
            assert!(error.starts_with(expected) && !error.contains('\n'), "{text:?}: {error}");
        }
        assert!(matches!(parse(Form::Yaml, &[0xff]), Err(ManifestError::Utf8)));
    }

    #[test]
    fn the_name_says_what_is_a_manifest() {
        assert_eq!(Form::of("a.yaml"), Some(Form::Yaml));
        assert_eq!(Form::of("a.b.yml"), Some(Form::Yaml));
        assert_eq!(Form::of("a.json"), Some(Form::Json));
        for name in ["a", "a.txt", "a.yaml~", "a.yaml.swp", ".a.yaml", ".yaml", "..data"] {
            assert_eq!(Form::of(name), None, "{name}");
        }
    }
}
