// SPDX-License-Identifier: Apache-2.0
//! The command line: the settings as flags, and the subcommands.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, Resettable};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::table::{self, Effect, Kind, Setting, all};
use super::values::Values;

/// What is asked for on the command line.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Be the agent.
    Run(Values),
    /// Say what the agents on this node do.
    Status(Query),
    /// Say what became of the sandboxes of this node.
    Pods(Query),
    /// Take everything off the node.
    Uninstall(Values),
    /// Say which release this is.
    Version(Form),
}

/// Which agents to ask, and how to say it.
#[derive(Debug)]
pub(crate) struct Query {
    /// Where their sockets are.
    pub(crate) run_dir: PathBuf,
    /// How to print the answer.
    pub(crate) form: Form,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Read the command line.
///
/// # Errors
/// Unknown flags and arguments, and what is no error to clap's caller: help and `--version`.
pub(crate) fn parse(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Invocation, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let values = |matches: &ArgMatches| Values::gather(|flag| text(matches, flag), &env);
    Ok(match matches.subcommand() {
        Some(("status", matches)) => Invocation::Status(query(matches, &env)),
        Some(("pods", matches)) => Invocation::Pods(query(matches, &env)),
        Some(("version", matches)) => Invocation::Version(form(matches)),
        Some((_, matches)) => Invocation::Uninstall(values(matches)),
        None => Invocation::Run(values(&matches)),
    })
}

/// All of the command line.
pub(crate) fn command() -> Command {
    let run_dir = || argument(&table::RUN_DIR);
    let output = || {
        Arg::new("output")
            .long("output")
            .short('o')
            .value_name("FORM")
            .value_parser(PossibleValuesParser::new(["text", "json"]))
            .default_value("text")
            .help("How to print the answer")
    };
    let subcommand = |name: &'static str, about: &'static str| Command::new(name).about(about).arg(output());
    settings(Command::new("install-cni"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("Waylay node agent: redirects the traffic of pods to their proxies. Without a command it is the agent.")
        .args_override_self(true)
        .subcommand(subcommand("status", "Say what the agent on this node does").arg(run_dir()))
        .subcommand(subcommand("pods", "Say what became of the sandboxes that started or were checked last").arg(run_dir()))
        .subcommand(subcommand("version", "Say which release this is"))
        .subcommand(settings(Command::new("uninstall")).about("Take the plugin and its CNI configuration off this node").args_override_self(true))
}

fn settings(command: Command) -> Command {
    command.args(all().filter(|setting| !setting.flag.is_empty()).map(argument))
}

fn argument(setting: &'static Setting) -> Arg {
    let argument = Arg::new(setting.flag).long(setting.flag).action(ArgAction::Set).allow_hyphen_values(true);
    let argument = match setting.effect {
        Effect::Ignored(_) => argument.hide(true),
        Effect::Used => argument.help(help(setting)),
    };
    match setting.kind {
        // As the flags of Go programs: `--flag` or `--flag=value`, never `--flag value`.
        Kind::Bool => argument
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .allow_hyphen_values(false),
        Kind::Number => argument.value_name("NUMBER"),
        Kind::Text => argument.value_name(Resettable::Value("TEXT".into())),
    }
}

fn help(setting: &Setting) -> String {
    let mut text = setting.meaning.replace('`', "");
    for variable in setting.variables {
        text += &format!(" [env: {variable}]");
    }
    if !setting.default.is_empty() {
        text += &format!(" [default: {}]", setting.default);
    }
    text
}

fn text(matches: &ArgMatches, flag: &str) -> Option<String> {
    matches.get_one::<String>(flag).cloned()
}

fn form(matches: &ArgMatches) -> Form {
    if text(matches, "output").as_deref() == Some("json") { Form::Json } else { Form::Text }
}

fn query(matches: &ArgMatches, env: impl Fn(&str) -> Option<String>) -> Query {
    let setting = &table::RUN_DIR;
    let mut values =
        Values::gather(|flag| if flag == setting.flag { text(matches, flag) } else { None }, env);
    // A relative path is as good as another here: nobody else has to understand it.
    let run_dir = PathBuf::from(values.text(setting));
    values.errors();
    Query { run_dir, form: form(matches) }
}
