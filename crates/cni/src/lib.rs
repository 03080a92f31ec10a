// SPDX-License-Identifier: Apache-2.0
//! The CNI wire format as a chained plugin sees it, versions 0.1.0 to 1.1.0.
//!
//! Owns the texts that cross the border between a container runtime and a plugin: the `CNI_*` variables ([`env`]),
//! `CNI_ARGS` ([`args`]), the network configuration on stdin ([`config`]) and in files ([`conflist`]), the result
//! ([`mod@result`]) and the error object with its codes ([`error`]); and the order in which they are checked
//! ([`dispatch`]).
//!
//! It never opens a file or a socket, never reads the process environment, the clock or the network: what it needs comes
//! in as a reader, a writer or a function. It knows nothing about pods beyond the keys that name one.

pub mod args;
pub mod config;
pub mod conflist;
pub mod dispatch;
pub mod env;
pub mod error;
pub mod result;
mod text;
pub mod version;

pub use args::Args;
pub use config::{Attachment, Document, Options};
pub use dispatch::{Call, Plugin, run};
pub use env::{Invocation, Verb};
pub use error::{Code, Error};
pub use result::addresses;
pub use version::Version;
