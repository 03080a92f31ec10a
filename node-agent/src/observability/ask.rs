// SPDX-License-Identifier: Apache-2.0
//! `install-cni status` and `install-cni pods`: ask the agents of this node over their admin sockets, and print it.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::admin_socket::{agent_of, names};
use super::view::unix_ms;
use crate::settings::command::{Form, Query};

/// How long an agent may take for its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer in bytes: some hundred attachments of a few kB.
const LONGEST: u64 = 16 << 20;

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// What the agent does.
    Status,
    /// What became of the sandboxes.
    Pods,
}

/// Ask every agent of the node and print what they say, the holder of the socket first.
///
/// # Errors
/// No agent answers, or stdout cannot be written.
pub(crate) fn ask(question: Question, query: &Query) -> Result<()> {
    let mut agents = statuses(&query.run_dir)?;
    agents.sort_by_key(|(_, status)| status["holds_socket"] != true);
    let text = match question {
        Question::Status => {
            let all: Vec<Value> = agents.into_iter().map(|(_, status)| status).collect();
            match query.form {
                Form::Json => json(&json!({ "agents": all })),
                Form::Text => all.iter().map(status_text).collect::<Vec<_>>().join("\n"),
            }
        }
        Question::Pods => {
            let mut pods = Vec::new();
            for (path, status) in &agents {
                let Value::Array(of_agent) = get(path, "/pods")?["pods"].take() else { continue };
                pods.extend(of_agent.into_iter().map(|mut pod| {
                    pod["agent"] = status["agent"].clone();
                    pod
                }));
            }
            match query.form {
                Form::Json => json(&json!({ "pods": pods })),
                Form::Text => pods_text(&pods),
            }
        }
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to stdout"),
    }
}

/// What each agent that answers says of itself.
fn statuses(run_dir: &Path) -> Result<Vec<(PathBuf, Value)>> {
    let (mut agents, mut failures) = (Vec::new(), String::new());
    for path in names(run_dir) {
        match get(&path, "/status") {
            Ok(mut status) => {
                status["agent"] = agent_of(&path).into();
                agents.push((path, status));
            }
            Err(error) => drop(write!(failures, "; {error:#}")),
        }
    }
    if agents.is_empty() {
        // Not being allowed to look is something else than seeing nothing.
        std::fs::read_dir(run_dir).with_context(|| {
            format!("no agent answers on this node: read its run directory {}", run_dir.display())
        })?;
        bail!(
            "no agent answers on this node: no admin socket of a running one in {}{failures}",
            run_dir.display()
        );
    }
    Ok(agents)
}

/// The answer of the agent behind the socket at `socket` to a GET of `path`.
fn get(socket: &Path, path: &str) -> Result<Value> {
    let exchange = || -> io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: agent\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(LONGEST).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().with_context(|| format!("ask the agent at {}", socket.display()))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "the agent at {} answers {status:?}", socket.display());
    serde_json::from_str(body).with_context(|| format!("read what the agent at {} says", socket.display()))
}

fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

fn status_text(status: &Value) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line(
        "agent",
        &format!(
            "{} (process {}), version {}",
            word(&status["agent"]),
            status["pid"],
            word(&status["version"])
        ),
    );
    line("running for", &age(&status["started_unix_ms"]));
    let role = if status["holds_socket"] == true { "serves the plugin" } else { "stands by" };
    line("role", role);
    line("rules", status["rules_form"].as_str().unwrap_or("form not known yet"));
    line("ready", if status["ready"] == true { "yes" } else { "no" });
    for blocker in status["blockers"].as_array().into_iter().flatten() {
        line("  blocker", &format!("{}: {}", word(&blocker["name"]), word(&blocker["reason"])));
    }
    for (name, value) in status["counters"].as_object().into_iter().flatten() {
        line("  counter", &format!("{name} {value}"));
    }
    let config = &status["config"];
    for (name, value) in config["settings"].as_object().into_iter().flatten() {
        line("  setting", &format!("{name} {value}"));
    }
    for (name, vain) in config["without_effect"].as_object().into_iter().flatten() {
        line("  no effect", &format!("{name}: {}", word(&vain["reason"])));
    }
    text
}

fn pods_text(pods: &[Value]) -> String {
    let mut text = String::from(
        "AGE        POD                                      RESULT  REASON               CHECK         CONTAINER     IF\n",
    );
    for pod in pods {
        let add = &pod["add"];
        let latest = ["del", "check", "add"].iter().map(|verb| &pod[verb]).find(|event| event.is_object());
        let state = if pod["del"].is_object() { " (deleted)" } else { "" };
        let id: String = word(&pod["container_id"]).chars().take(13).collect();
        let _ = writeln!(
            text,
            "{:<10} {:<40} {:<7} {:<20} {:<13} {id:<13} {}{state}",
            latest.map_or_else(String::new, |event| age(&event["time_unix_ms"])),
            format!("{}/{}", word(&pod["namespace"]), word(&pod["pod"])),
            word(&add["result"]),
            word(&add["reason"]),
            word(&pod["check"]["reason"]),
            word(&pod["ifname"]),
        );
        if let Some(message) = add["message"].as_str().filter(|message| !message.is_empty()) {
            let _ = writeln!(text, "           {}", printable(message));
        }
    }
    text
}

/// A text for a terminal; nothing when there is none.
fn word(value: &Value) -> String {
    printable(value.as_str().unwrap_or_default())
}

/// Without what could move a cursor: a pod's annotation may be in it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn age(unix_milliseconds: &Value) -> String {
    let now = unix_ms(SystemTime::now());
    let seconds = now.saturating_sub(unix_milliseconds.as_u64().unwrap_or(now)) / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units_and_times_to_come_are_now() {
        for (before, expected) in
            [(0, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h0m"), (90_000, "1d1h"), (-5, "0s")]
        {
            let now = i64::try_from(unix_ms(SystemTime::now())).unwrap();
            assert_eq!(age(&json!(now - before * 1000)), expected, "{before}");
        }
    }

    #[test]
    fn foreign_text_cannot_reach_the_terminal_as_control_characters() {
        let pod = json!({"namespace": "n", "pod": "p\u{1b}[2J", "add": {"result": "fail", "reason": "r", "message": "a\nb\u{9b}"}});
        let text = pods_text(&[pod]);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("n/p [2J") && !text.contains(['\u{1b}', '\u{9b}']), "{text:?}");
    }
}
