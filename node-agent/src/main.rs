// SPDX-License-Identifier: Apache-2.0
//! The node agent `install-cni`: answers the plugin of this node and programs the pods' network namespaces.
//!
//! Owns the process: command line, logs, exit status. Everything else is in the modules.

mod app;
mod capabilities;
mod install;
mod leave;
mod lookout;
mod observability;
mod plugin_server;
mod pod_source;
mod pods;
mod policy;
mod pool;
mod settings;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Result, anyhow};

use observability::ask::{Question, ask};
use settings::command::{Form, Invocation, parse};
use settings::{Effective, InstallSettings, SettingError, Settings, Values};

/// The settings cannot be used (`EX_USAGE` of sysexits.h).
const BAD_SETTINGS: u8 = 64;

fn main() -> ExitCode {
    let started = SystemTime::now();
    #[cfg(feature = "fault-injection")]
    let _ = ::install::fault::HOOK.set(agent_api::fault_point);
    let invocation = match parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(invocation) => invocation,
        Err(error) => {
            // Help and version are no errors; status 1 for the rest is what the replaced component exits with.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let done = match invocation {
        Invocation::Run(values) => return run(values, started),
        Invocation::Status(query) => ask(Question::Status, &query),
        Invocation::Pods(query) => ask(Question::Pods, &query),
        Invocation::Version(form) => version(form),
        Invocation::Uninstall(mut values) => {
            let settings = InstallSettings::resolve(&mut values);
            match values.errors() {
                errors if errors.is_empty() => uninstall(&settings),
                errors => return refuse(&errors),
            }
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("install-cni: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut values: Values, started: SystemTime) -> ExitCode {
    let settings = match Settings::resolve(&mut values) {
        Ok(settings) => settings,
        Err(errors) => return refuse(&errors),
    };
    observability::logs::init(&settings.log_output_level, settings.log_as_json);
    let status = match app::run(Effective::new(settings, &values), started) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    observability::lines::finish();
    status
}

/// Say everything that is wrong with the settings, a line each.
fn refuse(errors: &[SettingError]) -> ExitCode {
    for error in errors {
        eprintln!("install-cni: {error}");
    }
    ExitCode::from(BAD_SETTINGS)
}

/// Take the plugin and its configuration off the node.
#[allow(clippy::print_stdout, reason = "the command's answer")]
fn uninstall(settings: &InstallSettings) -> Result<()> {
    let changed =
        install::uninstall(settings, ::install::Leaving::Nothing).map_err(|lines| anyhow!("{lines}"))?;
    for path in &changed {
        println!("clean: {}", path.display());
    }
    if changed.is_empty() {
        println!("nothing of ours is there");
    }
    Ok(())
}

fn version(form: Form) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let text = match form {
        Form::Text => format!("install-cni {version}\n"),
        Form::Json => format!("{}\n", serde_json::json!({ "version": version })),
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
