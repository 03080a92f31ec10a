// SPDX-License-Identifier: Apache-2.0
//! What to install where.

use std::path::PathBuf;

use cni::conflist::{Entry, is_candidate, is_list};

/// How a runtime comes to call the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Our entry is the last one in the primary network's file.
    Chained {
        /// Name of that file, also with its other ending; none: the one that the runtime loads.
        file: Option<String>,
    },
    /// The primary network's file stays as it is, and a copy of it with our entry comes before it.
    OwnFile {
        /// Name of the copy; ends in `.conflist`.
        name: String,
        /// As for [`Mode::Chained`].
        primary: Option<String>,
    },
    /// A network of its own, which Multus adds to pods that ask for it.
    Standalone {
        /// Name of the file.
        name: String,
    },
}

/// All settings of an [`crate::Installer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallSettings {
    /// The plugin in the image.
    pub plugin: PathBuf,
    /// The node's plugin directories, as mounted; each gets the plugin.
    pub bin_dirs: Vec<PathBuf>,
    /// The node's configuration directory, as mounted.
    pub conf_dir: PathBuf,
    /// How the plugin is called.
    pub mode: Mode,
    /// What the plugin is told.
    pub entry: Entry,
    /// Mode of files that are ours alone: 0600, or 0640 when a group may read them.
    pub file_mode: u32,
    /// Whether a plugin of a newer release is replaced by ours. Without it an older agent that takes the role back leaves
    /// the newer plugin alone.
    pub downgrade: bool,
}

/// Settings that contradict themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// It would leave the directory, or no runtime would look at it.
    #[error(
        "file name \"{0}\" of the CNI configuration: must end in .conf, .conflist or .json and have no \"/\""
    )]
    Name(String),
    /// A copy is always a list.
    #[error("file name \"{0}\" of our own CNI configuration: must end in .conflist")]
    OwnName(String),
    /// The standalone file is a single configuration.
    #[error("file name \"{0}\" of the standalone CNI configuration: must end in .conf")]
    StandaloneName(String),
    /// No place for the plugin.
    #[error("no directory for the plugin")]
    NoBinDir,
}

impl InstallSettings {
    /// All contradictions.
    #[must_use]
    pub fn check(&self) -> Vec<SettingsError> {
        let mut errors = Vec::new();
        let (names, own) = match &self.mode {
            Mode::Chained { file } => (file.iter().collect::<Vec<_>>(), None),
            Mode::OwnFile { name, primary } => (primary.iter().chain([name]).collect(), Some(name)),
            Mode::Standalone { name } => (vec![name], None),
        };
        let bad = |name: &&&String| name.contains('/') || !is_candidate(name);
        errors.extend(names.iter().filter(bad).map(|name| SettingsError::Name((*name).clone())));
        errors.extend(own.filter(|name| !is_list(name)).map(|name| SettingsError::OwnName(name.clone())));
        if let Mode::Standalone { name } = &self.mode
            && is_list(name)
        {
            errors.push(SettingsError::StandaloneName(name.clone()));
        }
        if self.bin_dirs.is_empty() {
            errors.push(SettingsError::NoBinDir);
        }
        errors
    }

    /// The file that is ours alone.
    pub(crate) fn own(&self) -> Option<&str> {
        match &self.mode {
            Mode::Chained { .. } => None,
            Mode::OwnFile { name, .. } | Mode::Standalone { name } => Some(name),
        }
    }

    /// The primary network's file, if its name is given.
    pub(crate) fn wanted(&self) -> Option<&str> {
        match &self.mode {
            Mode::Chained { file: wanted } | Mode::OwnFile { primary: wanted, .. } => wanted.as_deref(),
            Mode::Standalone { .. } => None,
        }
    }
}
