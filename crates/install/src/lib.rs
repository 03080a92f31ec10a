// SPDX-License-Identifier: Apache-2.0
//! The plugin's binary and its entry in the CNI configuration of a node: put there, kept there, taken away.
//!
//! Owns the files that it names in [`InstallSettings`] and nothing else of the node. [`cni::conflist`] decides about
//! texts, [`Installer`] about files, [`Watch`] about time. It is synchronous and knows neither the agent's sockets nor
//! its log: it reports.
//!
//! # Guarantees
//! - A runtime finds a whole and usable file at every instant, and a whole plugin whenever a file names it.
//! - A process killed at any instant leaves what the next [`Installer::ensure`] or [`Installer::remove`] can end.
//! - No byte outside our entry changes; a file that changed since it was read is not replaced.
//! - When everything is in place, nothing is written.

mod binary;
mod error;
pub mod fault;
mod fight;
mod file;
mod installer;
mod plan;
mod settings;
mod watch;

pub use error::{InstallError, Kind};
pub use fault::POINTS;
pub use fight::Fight;
pub use installer::{Installer, Leaving, Notice, Report};
pub use settings::{InstallSettings, Mode, SettingsError};
pub use watch::{Health, Watch};
