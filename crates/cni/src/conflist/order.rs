// SPDX-License-Identifier: Apache-2.0
//! Which file of a directory a runtime loads. Owns the order and the endings; never reads a directory.

use super::{Conf, Unusable};

/// A file that a runtime considers.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// What is in it.
    pub conf: Result<Conf<'a>, Unusable>,
}

/// The file of the primary network.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice<'a> {
    /// Place among the candidates.
    pub at: Option<usize>,
    /// Files before it that cannot be loaded. containerd loads nothing as long as there is one, and CRI-O skips them.
    pub broken: Vec<(&'a str, Unusable)>,
    /// The file that the runtime loads instead of the one that the settings name.
    pub preempted_by: Option<&'a str>,
}

/// Whether runtimes look at a file of this name. Dotfiles are files like others to them, hence no [`std::path::Path`].
#[must_use]
pub fn is_candidate(name: &str) -> bool {
    [".conf", ".conflist", ".json"].iter().any(|ending| name.ends_with(ending))
}

/// Whether runtimes take a file of this name for a list.
#[must_use]
pub fn is_list(name: &str) -> bool {
    name.ends_with(".conflist")
}

/// The file that a runtime loads: the first usable one in the order of bytes, which `candidates` have. A file that is
/// `own`, or that is ours alone, is no primary network. With `wanted` that file, or the one that it was converted to or
/// from, whatever comes before it.
#[must_use]
pub fn choose<'a>(candidates: &[Candidate<'a>], wanted: Option<&str>, own: Option<&str>) -> Choice<'a> {
    let mut choice = Choice { at: None, broken: Vec::new(), preempted_by: None };
    let foreign = |candidate: &Candidate<'_>| {
        Some(candidate.name) != own
            && candidate.conf.as_ref().is_ok_and(|conf| {
                !conf.is_ours_alone() && conf.marks().is_none_or(|marks| marks.copy_of.is_none())
            })
    };
    let first = candidates.iter().position(foreign);
    choice.at = match wanted {
        None => first,
        Some(wanted) => spellings(wanted)
            .iter()
            .find_map(|name| candidates.iter().position(|c| c.name == name && foreign(c))),
    };
    let before = &candidates[..choice.at.unwrap_or(candidates.len())];
    choice.broken.extend(before.iter().filter_map(|c| Some((c.name, c.conf.as_ref().err()?.clone()))));
    choice.preempted_by = first.filter(|_| first != choice.at).map(|at| candidates[at].name);
    choice
}

/// The name from the settings, and the same with the other ending.
fn spellings(wanted: &str) -> Vec<String> {
    let other = match wanted.strip_suffix(".conf") {
        Some(_) => Some(format!("{wanted}list")),
        None => wanted.strip_suffix("list").filter(|name| name.ends_with(".conf")).map(str::to_owned),
    };
    [Some(wanted.to_owned()), other].into_iter().flatten().collect()
}

/// What to call the list that is made of the single configuration `name`: it takes its place in the order, and no file
/// of others is in the way. `taken` are the names of files of others.
#[must_use]
pub fn converted_name(name: &str, taken: &[&str]) -> Option<String> {
    let stem = name.rfind('.').map_or(name, |dot| &name[..dot]);
    [format!("{stem}.conflist"), format!("{name}.conflist")].into_iter().find(|list| {
        let between = |other: &&str| *other > name && *other <= list.as_str();
        !taken.iter().any(|other| other == list || between(other))
    })
}
