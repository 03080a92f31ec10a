// SPDX-License-Identifier: Apache-2.0
//! What to change in a configuration directory. Owns the decision and its order, without I/O: first the file that the
//! runtime is to load, then what must not be there any more.

use cni::conflist::{Candidate, Choice, Conf, Entry, Marks, Unusable, Without, choose, converted_name};

use crate::settings::{InstallSettings, Mode};

/// A file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: Result<String, Unusable>,
    /// Where it leads, if it is a symbolic link.
    pub(crate) link: Option<String>,
    /// For a file that took the place of a link: what the link leads to now.
    pub(crate) original: Option<String>,
    /// Somebody wrote to it a moment ago.
    pub(crate) fresh: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Write a file with our entry; attributes like those of the file `like`, or those of our own files.
    Write { name: String, text: String, like: Option<String> },
    /// Write a file without our entry.
    Strip { name: String, text: String, like: String },
    /// Make the symbolic link that was there.
    Link { name: String, target: String },
    /// Remove a file.
    Delete { name: String },
}

/// Why there is nothing to do yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blocked {
    NoPrimary(Vec<(String, Unusable)>),
    BeingWritten(String),
    NotOurs(String),
    /// No name is free for the list made of this file.
    NoName(String),
}

/// What is worth telling about a directory in which all is in place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    /// The file with our entry.
    pub(crate) file: String,
    pub(crate) broken: Vec<(String, Unusable)>,
    pub(crate) preempted_by: Option<String>,
}

pub(crate) struct Plan {
    pub(crate) seen: Seen,
    pub(crate) actions: Vec<Action>,
}

/// The file that the runtime is to load.
struct Target {
    name: String,
    /// It was made of this file, which goes.
    instead_of: Option<String>,
    write: Option<Action>,
}

/// What brings our entry into place. `found` is in the order of bytes.
pub(crate) fn install(found: &[Found], settings: &InstallSettings) -> Result<Plan, Blocked> {
    let candidates = candidates(found);
    let choice = choose(&candidates, settings.wanted(), settings.own());
    let seen = Seen {
        file: String::new(),
        broken: choice.broken.iter().map(|(name, why)| ((*name).to_owned(), why.clone())).collect(),
        preempted_by: choice.preempted_by.map(str::to_owned),
    };
    let target = match &settings.mode {
        Mode::Chained { .. } => chained(found, &candidates, primary(found, &choice)?, &settings.entry)?,
        Mode::OwnFile { name, .. } => {
            copy(found, &candidates, primary(found, &choice)?, &settings.entry, name)?
        }
        Mode::Standalone { name } => alone(found, &candidates, &settings.entry, name)?,
    };
    let mut actions: Vec<Action> = target.write.into_iter().collect();
    actions.extend(target.instead_of.iter().map(|name| Action::Delete { name: name.clone() }));
    for (file, candidate) in found.iter().zip(&candidates) {
        if file.name != target.name && Some(&file.name) != target.instead_of.as_ref() {
            actions.extend(strip(file, candidate, found, None));
        }
    }
    // A file before the one that we wrote: the runtime loads that one.
    let first = candidates.iter().find(|c| c.conf.is_ok()).map(|c| c.name.to_owned());
    let own_comes_late = settings.own().is_some_and(|own| first.as_deref().is_some_and(|first| first < own));
    let seen = match &settings.mode {
        Mode::OwnFile { .. } if own_comes_late => Seen { preempted_by: first, ..seen },
        _ => seen,
    };
    Ok(Plan { seen: Seen { file: target.name, ..seen }, actions })
}

/// What takes our entries out; `own` is the name of a file that is ours alone, by the settings.
pub(crate) fn remove(found: &[Found], own: Option<&str>) -> Vec<Action> {
    let candidates = candidates(found);
    found.iter().zip(&candidates).flat_map(|(file, candidate)| strip(file, candidate, found, own)).collect()
}

fn candidates(found: &[Found]) -> Vec<Candidate<'_>> {
    found.iter().map(|file| Candidate { name: &file.name, conf: parse(file) }).collect()
}

fn parse(file: &Found) -> Result<Conf<'_>, Unusable> {
    Conf::parse(&file.name, file.text.as_ref().map_err(Clone::clone)?)
}

/// The place of the primary network's file.
fn primary(found: &[Found], choice: &Choice<'_>) -> Result<usize, Blocked> {
    // A writer that is not done yet must not make us take the next file for the primary network's.
    let before = &found[..choice.at.unwrap_or(found.len())];
    let broken = |file: &&Found| choice.broken.iter().any(|(name, _)| *name == file.name);
    if let Some(file) = before.iter().filter(broken).find(|file| file.fresh) {
        return Err(Blocked::BeingWritten(file.name.clone()));
    }
    choice.at.ok_or_else(|| {
        Blocked::NoPrimary(
            choice.broken.iter().map(|(name, why)| ((*name).to_owned(), why.clone())).collect(),
        )
    })
}

/// Our entry in the primary network's file.
fn chained(
    found: &[Found],
    candidates: &[Candidate<'_>],
    at: usize,
    entry: &Entry,
) -> Result<Target, Blocked> {
    let (file, candidate) = (&found[at], &candidates[at]);
    let Ok(conf) = &candidate.conf else { return Err(Blocked::NoPrimary(Vec::new())) };
    if !conf.is_single() {
        let mut marks = conf.marks().cloned().unwrap_or_default();
        if file.link.is_some() {
            marks.link.clone_from(&file.link);
        }
        // What the link leads to may have changed since.
        let original = file.original.as_deref().filter(|_| marks.converted_from.is_none());
        let original =
            original.and_then(|text| Conf::parse(&file.name, text).ok()).filter(|c| !c.is_ours_alone());
        let text = original.as_ref().unwrap_or(conf).with_entry(entry, &marks);
        let write = (file.link.is_some() || file.text.as_ref() != Ok(&text)).then(|| Action::Write {
            name: file.name.clone(),
            text,
            like: Some(file.name.clone()),
        });
        return Ok(Target { name: file.name.clone(), instead_of: None, write });
    }
    let from_it = |c: &Candidate<'_>| {
        c.conf.as_ref().ok().and_then(Conf::marks).and_then(|m| m.converted_from.as_deref())
            == Some(&file.name)
    };
    let taken: Vec<&str> =
        candidates.iter().filter(|c| c.name != file.name && !from_it(c)).map(|c| c.name).collect();
    let name = converted_name(&file.name, &taken).ok_or_else(|| Blocked::NoName(file.name.clone()))?;
    let marks =
        Marks { converted_from: Some(file.name.clone()), link: file.link.clone(), ..Marks::default() };
    let text = conf.with_entry(entry, &marks);
    let write = (text_of(found, &name) != Some(&text)).then(|| Action::Write {
        name: name.clone(),
        text,
        like: Some(file.name.clone()),
    });
    Ok(Target { name, instead_of: Some(file.name.clone()), write })
}

/// A copy of the primary network's file, with our entry.
fn copy(
    found: &[Found],
    candidates: &[Candidate<'_>],
    at: usize,
    entry: &Entry,
    name: &str,
) -> Result<Target, Blocked> {
    not_of_others(candidates, name, |conf| conf.marks().is_some())?;
    let (file, candidate) = (&found[at], &candidates[at]);
    let Ok(conf) = &candidate.conf else { return Err(Blocked::NoPrimary(Vec::new())) };
    let marks = Marks { copy_of: Some(file.name.clone()), ..Marks::default() };
    let text = conf.with_entry(entry, &marks);
    Ok(own_target(found, name, text))
}

/// A file that is ours alone.
fn alone(
    found: &[Found],
    candidates: &[Candidate<'_>],
    entry: &Entry,
    name: &str,
) -> Result<Target, Blocked> {
    not_of_others(candidates, name, |conf| conf.is_ours_alone())?;
    Ok(own_target(found, name, entry.standalone()))
}

fn own_target(found: &[Found], name: &str, text: String) -> Target {
    let write = (text_of(found, name) != Some(&text)).then(|| Action::Write {
        name: name.to_owned(),
        text,
        like: found.iter().find(|file| file.name == name).map(|file| file.name.clone()),
    });
    Target { name: name.to_owned(), instead_of: None, write }
}

/// A broken file of that name is as good as none: only we write there.
fn not_of_others(
    candidates: &[Candidate<'_>],
    name: &str,
    ours: impl Fn(&Conf<'_>) -> bool,
) -> Result<(), Blocked> {
    match candidates.iter().find(|c| c.name == name).map(|c| &c.conf) {
        Some(Ok(conf)) if !ours(conf) => Err(Blocked::NotOurs(name.to_owned())),
        _ => Ok(()),
    }
}

fn text_of<'a>(found: &'a [Found], name: &str) -> Option<&'a String> {
    // What is behind a link is not ours.
    found
        .iter()
        .find(|file| file.name == name && file.link.is_none())
        .and_then(|file| file.text.as_ref().ok())
}

/// What takes our entry out of one file.
fn strip(file: &Found, candidate: &Candidate<'_>, found: &[Found], own: Option<&str>) -> Vec<Action> {
    let Ok(conf) = &candidate.conf else { return Vec::new() };
    let marks = conf.marks().cloned().unwrap_or_default();
    let name = file.name.clone();
    let delete = Action::Delete { name: name.clone() };
    match (conf.without_entry(), marks.link) {
        (Without::Same, _) => Vec::new(),
        // A file that only names our plugin, and that we did not write, is of no use to anybody; but it is not ours.
        (Without::Nothing, _) => {
            let ours = marks.standalone || marks.copy_of.is_some() || own == Some(&name);
            if ours { vec![delete] } else { Vec::new() }
        }
        (Without::List(_), Some(target)) => vec![Action::Link { name, target }],
        (Without::List(text), None) => vec![Action::Strip { like: name.clone(), name, text }],
        (Without::Single { name: single, .. }, _) if found.iter().any(|file| file.name == single) => {
            // Its writer was here again, or this was interrupted.
            vec![delete]
        }
        (Without::Single { name: single, .. }, Some(target)) => {
            vec![Action::Link { name: single, target }, delete]
        }
        (Without::Single { name: single, text }, None) => {
            vec![Action::Strip { name: single, text, like: name }, delete]
        }
    }
}
