// SPDX-License-Identifier: Apache-2.0
//! What was given, by which name, and its text turned into values. Errors are collected, not returned: whoever corrects
//! settings wants to see all of them at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::table::{Kind, Setting, all};

/// Longest part of a bad value that is repeated.
const SHOWN: usize = 80;

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingError {
    /// Neither of the two places that pods are known from.
    #[error(
        "no pod source: set --node-name or NODE_NAME to the name of the node (spec.nodeName), or \
         --pod-manifest-dir or POD_MANIFEST_DIR to a directory of Pod manifests"
    )]
    NoPodSource,
    /// A value that is not accepted.
    #[error("{given} {value:?}: use {accepted}")]
    Value {
        /// Flag or variable, whichever was given.
        given: String,
        /// The beginning of the value.
        value: String,
        /// The accepted form.
        accepted: &'static str,
    },
}

/// By which name a value was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// `--flag`.
    Flag(&'static str),
    /// The variable of this name.
    Variable(&'static str),
}

/// All that was given, and the errors found so far.
#[derive(Debug, Default)]
pub(crate) struct Values {
    given: BTreeMap<&'static str, (Source, String)>,
    errors: Vec<SettingError>,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

impl Values {
    /// What `flag` and, where it says nothing, `env` have for each setting.
    pub(crate) fn gather(
        flag: impl Fn(&str) -> Option<String>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Self {
        let mut given = BTreeMap::new();
        for setting in all() {
            let by_flag = (!setting.flag.is_empty())
                .then(|| Some((Source::Flag(setting.flag), flag(setting.flag)?)))
                .flatten();
            let by_variable =
                || setting.variables.iter().find_map(|name| Some((Source::Variable(name), env(name)?)));
            if let Some(found) = by_flag.or_else(by_variable) {
                given.insert(setting.name(), found);
            }
        }
        Self { given, errors: Vec::new() }
    }

    /// The text and by which name it was given, if at all.
    pub(crate) fn given(&self, setting: &Setting) -> Option<(Source, &str)> {
        self.given.get(setting.name()).map(|(source, text)| (*source, text.as_str()))
    }

    /// The text, or the default.
    pub(crate) fn text(&self, setting: &Setting) -> String {
        self.given(setting).map_or(setting.default, |(_, text)| text).to_owned()
    }

    /// True or false. A variable that is set but empty is false, as it is in the component that this one replaces.
    pub(crate) fn bool(&mut self, setting: &Setting) -> bool {
        self.parsed(setting, "true or false", |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// A whole number that `accept` accepts. A variable that is set but empty is 0, as above.
    pub(crate) fn number<T: Default>(
        &mut self,
        setting: &Setting,
        accepted: &'static str,
        accept: impl Fn(i64) -> Option<T>,
    ) -> T {
        self.parsed(setting, accepted, |text| accept(if text.is_empty() { 0 } else { text.parse().ok()? }))
    }

    /// A port; nothing for 0 or less.
    pub(crate) fn port(&mut self, setting: &Setting) -> Option<u16> {
        self.number(setting, "a port, at most 65535, or 0 for none", |number| {
            if number <= 0 { Some(None) } else { u16::try_from(number).ok().map(Some) }
        })
    }

    /// A directory or file by its whole path.
    pub(crate) fn path(&mut self, setting: &Setting) -> PathBuf {
        self.value(setting, "an absolute path", absolute)
    }

    /// Comma-separated directories.
    pub(crate) fn paths(&mut self, setting: &Setting) -> Vec<PathBuf> {
        self.value(setting, "a comma-separated list of absolute paths", |text| {
            let paths: Vec<_> = items(text).map(absolute).collect::<Option<_>>()?;
            (!paths.is_empty()).then_some(paths)
        })
    }

    /// The name of a file in a directory; nothing when empty.
    pub(crate) fn file_name(&mut self, setting: &Setting, endings: &[&str]) -> Option<String> {
        self.value(
            setting,
            "a file name without a directory, ending in .conflist, or .conf where that is allowed",
            |text| {
                let plain = !text.contains('/')
                    && !text.starts_with('.')
                    && endings.iter().any(|e| text.ends_with(e));
                if text.is_empty() { Some(None) } else { plain.then(|| Some(text.to_owned())) }
            },
        )
    }

    /// Whatever `parse` makes of the text.
    pub(crate) fn value<T: Default>(
        &mut self,
        setting: &Setting,
        accepted: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let text = self.text(setting);
        parse(text.trim()).unwrap_or_else(|| {
            self.refuse(setting, accepted);
            T::default()
        })
    }

    /// The value given for `setting` is not accepted.
    pub(crate) fn refuse(&mut self, setting: &Setting, accepted: &'static str) {
        let (given, text) = match self.given(setting) {
            Some((source, text)) => (source.to_string(), text),
            None => (setting.name().to_owned(), setting.default),
        };
        let value = text.chars().take(SHOWN).collect();
        let error = SettingError::Value { given, value, accepted };
        // Some are read for two purposes.
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Something else is wrong.
    pub(crate) fn fail(&mut self, error: SettingError) {
        self.errors.push(error);
    }

    /// All errors so far, in the order of reading.
    pub(crate) fn errors(&mut self) -> Vec<SettingError> {
        std::mem::take(&mut self.errors)
    }

    /// [`Self::value`] for the kinds for which an empty variable means their zero.
    fn parsed<T: Default>(
        &mut self,
        setting: &Setting,
        accepted: &'static str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let empty =
            matches!(self.given(setting), Some((Source::Variable(_), text)) if text.trim().is_empty());
        self.value(setting, accepted, |text| match setting.kind {
            Kind::Bool if empty => Some(T::default()),
            Kind::Number if text.is_empty() && !empty => None,
            _ => parse(text),
        })
    }
}

/// The items of a comma-separated list, trimmed, without empty ones.
pub(crate) fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn absolute(text: &str) -> Option<PathBuf> {
    Path::new(text).is_absolute().then(|| PathBuf::from(text))
}
