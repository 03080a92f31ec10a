// SPDX-License-Identifier: Apache-2.0
//! The files in a runtime's configuration directory, as text: what one is, our entry put into it and taken out again.
//!
//! Owns where our entry begins and ends. It cuts and joins text at the places that the JSON parser names, and never
//! prints anything of others anew: outside our entry every byte stays, and taking the entry out gives back what was
//! there before. Never opens a file.

mod entry;
mod order;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use entry::{Entry, Marks};
pub use order::{Candidate, Choice, choose, converted_name, is_candidate, is_list};

/// The type of our entry, and so the name of our binary; also the network's name in standalone mode.
pub const TYPE: &str = "istio-cni";

/// What keeps a file from being a primary network's configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// Not JSON, or not UTF-8.
    #[error("it is not JSON: {0}")]
    NotJson(String),
    /// No network name, which every plugin refuses.
    #[error("it has no name")]
    NoName,
    /// A list without plugins in it.
    #[error("it has no plugins")]
    NoPlugins,
    /// A single configuration, or a plugin of a list, without a type.
    #[error("it has a plugin without a type")]
    NoType,
    /// A list in a file that does not end in `.conflist`: runtimes take it for a single configuration.
    #[error("it holds a list, and its name does not end in .conflist")]
    ListInConf,
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    NotRead(String),
}

/// A usable file, with the places of its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conf<'a> {
    text: &'a str,
    shape: Shape,
    /// What our entry says about the file, if it has one.
    marks: Option<Marks>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// The inside of `plugins`, and its elements.
    List { inside: Range<usize>, plugins: Vec<Plugin> },
    /// One plugin, with the text of the values that its list has to repeat.
    Single { ours: bool, version: Option<String>, name: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Plugin {
    span: Range<usize>,
    ours: bool,
}

/// A file after our entry was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Without {
    /// It had none.
    Same,
    /// The list without it.
    List(String),
    /// It had been made of a single configuration with this name and text.
    Single {
        /// Name of the file.
        name: String,
        /// All of its text.
        text: String,
    },
    /// It is all ours.
    Nothing,
}

impl<'a> Conf<'a> {
    /// Read `text` as a runtime reads a file called `file_name`: the name decides which of both forms it takes it for.
    ///
    /// # Errors
    /// Why a runtime would not load it.
    pub fn parse(file_name: &str, text: &'a str) -> Result<Self, Unusable> {
        if text.trim().is_empty() {
            return Err(Unusable::Empty);
        }
        let keys = object(text)?;
        let conf = if is_list(file_name) { list(text, &keys) } else { single(text, &keys) }?;
        string(keys.get("name").copied()).filter(|name| !name.is_empty()).ok_or(Unusable::NoName)?;
        Ok(conf)
    }

    /// What our entry in it says about the file; `None` without an entry. An entry that another istio-cni left says
    /// nothing.
    #[must_use]
    pub fn marks(&self) -> Option<&Marks> {
        self.marks.as_ref()
    }

    /// Whether it holds nothing but our plugin: no network, and none to chain into.
    #[must_use]
    pub fn is_ours_alone(&self) -> bool {
        match &self.shape {
            Shape::List { plugins, .. } => plugins.iter().all(|plugin| plugin.ours),
            Shape::Single { ours, .. } => *ours,
        }
    }

    /// Whether it has one configuration and no list: our entry can only be in a list made of it.
    #[must_use]
    pub fn is_single(&self) -> bool {
        matches!(self.shape, Shape::Single { .. })
    }

    /// The text as a list that ends with `entry`, which carries `marks`, and has no other of our type. A single
    /// configuration becomes a list with its name and version. What has it already comes back as it is.
    #[must_use]
    pub fn with_entry(&self, entry: &Entry, marks: &Marks) -> String {
        match &self.shape {
            Shape::Single { version, name, .. } => {
                let version = version.as_ref().map(|v| format!("\"cniVersion\":{v},")).unwrap_or_default();
                let text = format!("{{{version}\"name\":{name},\"plugins\":[{}]}}\n", self.text);
                // Whoever made this text knows that it is a list.
                Conf::parse(".conflist", &text).map_or(text.clone(), |list| list.with_entry(entry, marks))
            }
            Shape::List { inside, plugins } => {
                let stripped = strip(self.text, plugins);
                let kept = last_kept(inside, plugins);
                // Only what is after the last one of others was cut behind it.
                let cut_before = cut_bytes(plugins, kept.end);
                let at = kept.end - cut_before;
                // As they are without our entries, so that the next time finds the same.
                let gap =
                    if kept.is_empty() { "" } else { blanks_before(&stripped[..kept.start - cut_before]) };
                let comma = if plugins.iter().any(|plugin| !plugin.ours) { "," } else { "" };
                format!("{}{comma}{gap}{}{}", &stripped[..at], entry.render(marks), &stripped[at..])
            }
        }
    }

    /// The text without any entry of our type.
    #[must_use]
    pub fn without_entry(&self) -> Without {
        let Shape::List { plugins, .. } = &self.shape else {
            return if self.is_ours_alone() { Without::Nothing } else { Without::Same };
        };
        if plugins.iter().all(|plugin| !plugin.ours) {
            return Without::Same;
        }
        let marks = self.marks.clone().unwrap_or_default();
        if self.is_ours_alone() || marks.copy_of.is_some() {
            return Without::Nothing;
        }
        let text = strip(self.text, plugins);
        // Whoever else chained into it needs the list.
        let alone = plugins.iter().filter(|plugin| !plugin.ours).count() == 1;
        if let (Some(name), true, Ok(list)) = (marks.converted_from, alone, Conf::parse(".conflist", &text))
            && let Shape::List { inside, .. } = list.shape
        {
            return Without::Single { name, text: text[inside].to_owned() };
        }
        Without::List(text)
    }
}

/// Where the last element of others is; nothing at the start of the list without one.
fn last_kept(inside: &Range<usize>, plugins: &[Plugin]) -> Range<usize> {
    let last = plugins.iter().rfind(|plugin| !plugin.ours);
    last.map_or(inside.start..inside.start, |last| last.span.clone())
}

/// The blanks at the end of `text`, which will be before our entry, too.
fn blanks_before(text: &str) -> &str {
    &text[text.trim_end_matches([' ', '\t', '\n', '\r']).len()..]
}

/// What to cut: each entry of ours with the comma that belongs to it.
fn cuts(plugins: &[Plugin]) -> Vec<Range<usize>> {
    let first = plugins.iter().position(|plugin| !plugin.ours);
    let cut = |(at, plugin): (usize, &Plugin)| match first {
        // It came after another one: the comma before it.
        Some(first) if first < at => plugins[at - 1].span.end..plugin.span.end,
        // The comma after it.
        Some(_) => plugin.span.start..plugins[at + 1].span.start,
        None => plugin.span.start..plugins.get(at + 1).map_or(plugin.span.end, |next| next.span.start),
    };
    plugins.iter().enumerate().filter(|(_, plugin)| plugin.ours).map(cut).collect()
}

fn cut_bytes(plugins: &[Plugin], before: usize) -> usize {
    cuts(plugins).iter().filter(|cut| cut.start < before).map(ExactSizeIterator::len).sum()
}

fn strip(text: &str, plugins: &[Plugin]) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut from = 0;
    for cut in cuts(plugins) {
        kept.push_str(&text[from..cut.start]);
        from = cut.end;
    }
    kept.push_str(&text[from..]);
    kept
}

type Keys<'a> = BTreeMap<String, &'a RawValue>;

/// The last of two equal keys counts, as for the runtimes.
fn object(text: &str) -> Result<Keys<'_>, Unusable> {
    serde_json::from_str(text).map_err(|error| Unusable::NotJson(crate::text::one_line(&error.to_string())))
}

fn list<'a>(text: &'a str, keys: &Keys<'a>) -> Result<Conf<'a>, Unusable> {
    let array = keys.get("plugins").ok_or(Unusable::NoPlugins)?.get();
    let elements: Vec<&RawValue> = serde_json::from_str(array).map_err(|_| Unusable::NoPlugins)?;
    if elements.is_empty() {
        return Err(Unusable::NoPlugins);
    }
    let mut plugins = Vec::with_capacity(elements.len());
    let mut marks = None;
    for element in elements {
        let keys = object(element.get()).map_err(|_| Unusable::NoType)?;
        let kind = kind(&keys)?;
        if kind == TYPE {
            marks = Some(marks_of(element.get()));
        }
        plugins.push(Plugin { span: span(text, element.get()), ours: kind == TYPE });
    }
    let array = span(text, array);
    Ok(Conf { text, shape: Shape::List { inside: array.start + 1..array.end - 1, plugins }, marks })
}

fn single<'a>(text: &'a str, keys: &Keys<'a>) -> Result<Conf<'a>, Unusable> {
    if keys.contains_key("plugins") && !keys.contains_key("type") {
        return Err(Unusable::ListInConf);
    }
    let ours = kind(keys)? == TYPE;
    let raw = |key: &str| keys.get(key).map(|raw| raw.get().to_owned());
    let shape = Shape::Single { ours, version: raw("cniVersion"), name: raw("name").unwrap_or_default() };
    Ok(Conf { text, shape, marks: ours.then(|| marks_of(text)) })
}

fn kind(keys: &Keys<'_>) -> Result<String, Unusable> {
    string(keys.get("type").copied()).filter(|kind| !kind.is_empty()).ok_or(Unusable::NoType)
}

fn string(raw: Option<&RawValue>) -> Option<String> {
    raw.and_then(|raw| serde_json::from_str(raw.get()).ok())
}

fn marks_of(entry: &str) -> Marks {
    Marks::deserialize(&mut serde_json::Deserializer::from_str(entry)).unwrap_or_default().checked()
}

/// Where `part`, a piece of `text`, is in it.
fn span(text: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr().addr() - text.as_ptr().addr();
    start..start + part.len()
}

#[cfg(test)]
mod tests;
