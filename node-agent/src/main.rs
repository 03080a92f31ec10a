// SPDX-License-Identifier: Apache-2.0
//! The node agent `install-cni`: answers the plugin of this node and programs the pods' network namespaces.
//!
//! Owns the process: flags, logs, exit status. Everything else is in the modules.

mod app;
mod capabilities;
mod cli;
mod observability;
mod plugin_server;
mod pods;
mod pool;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    let flags = match cli::Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Help and version are no errors; status 1 for the rest is what the replaced component exits with.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let settings = match flags.resolve(|name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("install-cni: {error}");
            return ExitCode::FAILURE;
        }
    };
    observability::logs::init(&settings.log_output_level, settings.log_as_json);
    match app::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
