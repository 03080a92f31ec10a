// SPDX-License-Identifier: Apache-2.0
//! One call from its first variable to its exit status. Owns the order of the checks and what goes to stdout; never does
//! the work of a verb, which belongs to the [`Plugin`].
//!
//! The order is that of the reference library, because runtimes and their tests rely on the resulting codes: environment
//! (4), stdin (5), JSON (6), `name` (7), `cniVersion` (1), version gate of the verb (1), then the verb.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use serde_json::value::RawValue;

use crate::config::Document;
use crate::env::{Invocation, Verb};
use crate::error::{Code, Error};
use crate::result;
use crate::text::shown;
use crate::version::Version;

/// Most that is read from stdin, in bytes. All objects of a pod together are far below.
pub const STDIN_LIMIT: u64 = 8 << 20;

/// A call that passed the checks.
pub struct Call<'a> {
    /// The variables.
    pub invocation: Invocation,
    /// The network configuration.
    pub document: Document<'a>,
}

/// The work behind the verbs. Nothing here prints: on success stdout carries the result of ADD and nothing for the others.
pub trait Plugin {
    /// Name and version for a person who starts the plugin by hand.
    fn about(&self) -> String;
    /// Attach.
    ///
    /// # Errors
    /// Whatever stops the pod from starting.
    fn add(&mut self, call: &Call<'_>) -> Result<(), Error>;
    /// Detach. It has no way to fail: a failing DEL blocks the DEL of all plugins before it in the list.
    fn del(&mut self, call: &Call<'_>);
    /// Compare with what ADD left.
    ///
    /// # Errors
    /// What ADD left is missing or changed.
    fn check(&mut self, call: &Call<'_>) -> Result<(), Error>;
    /// Remove what belongs to no valid attachment.
    ///
    /// # Errors
    /// The list of attachments cannot be read, or something could not be removed.
    fn gc(&mut self, call: &Call<'_>) -> Result<(), Error>;
    /// Could an ADD succeed now?
    ///
    /// # Errors
    /// It could not.
    fn status(&mut self, call: &Call<'_>) -> Result<(), Error>;
}

/// Serve one call and return the exit status: 0, or 1 after an error object on `stdout`. `about` is stderr, used only when
/// there is no `CNI_COMMAND`.
pub fn run(
    lookup: &dyn Fn(&str) -> Option<String>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
    about: &mut dyn Write,
    plugin: &mut dyn Plugin,
) -> u8 {
    let printed = match Invocation::read(lookup) {
        Ok(None) => {
            // Nobody reads an answer to a question that could not be delivered.
            let _ = writeln!(about, "{}\nCNI versions served: {}", plugin.about(), Version::list());
            return 0;
        }
        Ok(Some(invocation)) if invocation.verb == Verb::Version => Ok(version_reply(stdin)),
        Ok(Some(invocation)) => serve(invocation, stdin, plugin),
        Err(error) => Err(error),
    };
    let (mut text, mut status) = match printed {
        Ok(text) => (text, 0),
        Err(error) => (error.to_json(), 1),
    };
    if text.is_empty() {
        return status;
    }
    text.push('\n');
    if stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_err() {
        status = 1;
    }
    status
}

fn serve(invocation: Invocation, stdin: &mut dyn Read, plugin: &mut dyn Plugin) -> Result<String, Error> {
    let bytes = read_all(stdin)?;
    let document = Document::parse(&bytes)?;
    let verb = invocation.verb;
    let oldest = match verb {
        Verb::Check => Version::V0_4_0,
        Verb::Gc | Verb::Status => Version::V1_1_0,
        Verb::Add | Verb::Del | Verb::Version => Version::V0_1_0,
    };
    if document.version < oldest {
        return Err(Error::new(
            Code::IncompatibleVersion,
            &format!(
                "network config has cniVersion \"{}\": {} needs {} or newer",
                document.version.as_str(),
                verb.as_str(),
                oldest.as_str()
            ),
        ));
    }
    let call = Call { invocation, document };
    match verb {
        Verb::Add => {
            // Before the work: a result that cannot be printed must not leave rules behind.
            let printed = result::printed(call.document.version, call.document.prev_result())?;
            plugin.add(&call)?;
            return Ok(printed);
        }
        Verb::Del => plugin.del(&call),
        Verb::Check => plugin.check(&call)?,
        Verb::Gc => plugin.gc(&call)?,
        Verb::Status => plugin.status(&call)?,
        Verb::Version => {}
    }
    Ok(String::new())
}

fn read_all(stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    // Most calls fit; growing from nothing takes several reads.
    let mut bytes = Vec::with_capacity(4096);
    stdin.take(STDIN_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| {
        Error::new(Code::Io, &format!("read the network config from stdin: {}", shown(&error.to_string())))
    })?;
    if bytes.len() as u64 > STDIN_LIMIT {
        return Err(Error::new(Code::Io, "read the network config from stdin: it is larger than 8 MiB"));
    }
    Ok(bytes)
}

/// The answer to VERSION: the version of the question, or our newest when the question does not say one that can be read.
fn version_reply(stdin: &mut dyn Read) -> String {
    let bytes = read_all(stdin).unwrap_or_default();
    let keys: BTreeMap<String, &RawValue> = serde_json::from_slice(&bytes).unwrap_or_default();
    let asked = keys.get("cniVersion").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    // Only our own spellings are echoed: a runtime that asks with another one learns what there is.
    let echo = asked.filter(|text| Version::parse(text).is_some());
    format!(
        "{{\"cniVersion\":\"{}\",\"supportedVersions\":[\"{}\"]}}",
        echo.as_deref().unwrap_or("1.1.0"),
        Version::ALL.map(|(_, spelling)| spelling).join("\",\"")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the verbs that reached the work.
    #[derive(Default)]
    struct Recorder {
        calls: Vec<&'static str>,
        fail: bool,
    }

    impl Recorder {
        fn reached(&mut self, verb: &'static str) -> Result<(), Error> {
            self.calls.push(verb);
            if self.fail { Err(Error::new(Code::TryAgain, "later")) } else { Ok(()) }
        }
    }

    impl Plugin for Recorder {
        fn about(&self) -> String {
            "CNI plugin recorder".into()
        }
        fn add(&mut self, _: &Call<'_>) -> Result<(), Error> {
            self.reached("ADD")
        }
        fn del(&mut self, _: &Call<'_>) {
            self.calls.push("DEL");
        }
        fn check(&mut self, _: &Call<'_>) -> Result<(), Error> {
            self.reached("CHECK")
        }
        fn gc(&mut self, _: &Call<'_>) -> Result<(), Error> {
            self.reached("GC")
        }
        fn status(&mut self, _: &Call<'_>) -> Result<(), Error> {
            self.reached("STATUS")
        }
    }

    struct Outcome {
        status: u8,
        stdout: String,
        about: String,
        calls: Vec<&'static str>,
    }

    fn call_with(verb: &str, stdin: &mut dyn Read, fail: bool) -> Outcome {
        let lookup = |name: &str| match name {
            "CNI_COMMAND" => Some(verb.to_owned()),
            "CNI_CONTAINERID" => Some("c1".to_owned()),
            "CNI_NETNS" => Some("/netns".to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_PATH" => Some("/opt/cni/bin".to_owned()),
            _ => None,
        };
        let (mut stdout, mut about) = (Vec::new(), Vec::new());
        let mut plugin = Recorder { fail, ..Recorder::default() };
        let status = run(&lookup, stdin, &mut stdout, &mut about, &mut plugin);
        Outcome {
            status,
            stdout: String::from_utf8(stdout).unwrap(),
            about: String::from_utf8(about).unwrap(),
            calls: plugin.calls,
        }
    }

    fn call(verb: &str, stdin: &str) -> Outcome {
        call_with(verb, &mut stdin.as_bytes(), false)
    }

    const ALL_VERSIONS: &str = r#"["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]"#;

    #[test]
    fn without_a_command_a_person_is_told_what_this_is() {
        let outcome = call("", "");
        assert_eq!(
            (outcome.status, outcome.stdout.as_str(), outcome.about.as_str()),
            (
                0,
                "",
                "CNI plugin recorder\nCNI versions served: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0\n"
            )
        );
    }

    #[test]
    fn version_echoes_the_version_of_the_question() {
        for (_, spelling) in Version::ALL {
            let outcome = call("VERSION", &format!(r#"{{"cniVersion":"{spelling}"}}"#));
            let reply = format!("{{\"cniVersion\":\"{spelling}\",\"supportedVersions\":{ALL_VERSIONS}}}\n");
            assert_eq!((outcome.status, outcome.stdout), (0, reply));
        }
    }

    #[test]
    fn version_answers_whatever_the_question_is() {
        let reply = format!("{{\"cniVersion\":\"1.1.0\",\"supportedVersions\":{ALL_VERSIONS}}}\n");
        for stdin in ["", "garbage", "{}", "[]", r#"{"cniVersion":7}"#, r#"{"cniVersion":"\"9"}"#] {
            let outcome = call("VERSION", stdin);
            assert_eq!(
                (outcome.status, outcome.stdout, outcome.calls),
                (0, reply.clone(), vec![]),
                "{stdin:?}"
            );
        }
    }

    #[test]
    fn every_verb_is_gated_by_the_version_that_brought_it() {
        for (version, spelling) in Version::ALL {
            for (verb, oldest) in [
                ("ADD", Version::V0_1_0),
                ("DEL", Version::V0_1_0),
                ("CHECK", Version::V0_4_0),
                ("GC", Version::V1_1_0),
                ("STATUS", Version::V1_1_0),
            ] {
                let outcome = call(verb, &format!(r#"{{"name":"n","cniVersion":"{spelling}"}}"#));
                if version < oldest {
                    let error = format!(
                        "{{\"code\":1,\"msg\":\"network config has cniVersion \\\"{spelling}\\\": {verb} needs {} or \
                         newer\"}}\n",
                        oldest.as_str()
                    );
                    assert_eq!((outcome.status, outcome.stdout, outcome.calls), (1, error, vec![]));
                } else {
                    assert_eq!((outcome.status, outcome.calls), (0, vec![verb]));
                    assert_eq!(
                        outcome.stdout.is_empty(),
                        verb != "ADD",
                        "{verb} {spelling}: {}",
                        outcome.stdout
                    );
                }
            }
        }
    }

    #[test]
    fn the_checks_come_in_the_order_of_the_reference_library() {
        // Each input is wrong in everything from its point on.
        for (verb, stdin, code) in [
            ("add", "garbage", 4),
            ("CHECK", "garbage", 6),
            ("CHECK", r#"{"name":"","cniVersion":"9"}"#, 7),
            ("CHECK", r#"{"name":"n","cniVersion":"9"}"#, 1),
            ("CHECK", r#"{"name":"n","cniVersion":"0.3.1","prevResult":7}"#, 1),
            ("ADD", r#"{"name":"n","cniVersion":"0.3.1","prevResult":7}"#, 6),
        ] {
            let outcome = call(verb, stdin);
            assert!(
                outcome.stdout.starts_with(&format!("{{\"code\":{code},")),
                "{stdin}: {}",
                outcome.stdout
            );
            assert_eq!((outcome.status, outcome.calls), (1, vec![]), "{stdin}");
        }
    }

    #[test]
    fn add_prints_the_previous_result_only_when_the_work_succeeded() {
        let prev = r#"{"cniVersion":"1.0.0", "ips":[ ]}"#;
        let stdin = format!(r#"{{"name":"n","cniVersion":"1.0.0","prevResult":{prev}}}"#);
        assert_eq!(call("ADD", &stdin).stdout, format!("{prev}\n"));
        let failed = call_with("ADD", &mut stdin.as_bytes(), true);
        assert_eq!((failed.status, failed.stdout.as_str()), (1, "{\"code\":11,\"msg\":\"later\"}\n"));
    }

    #[test]
    fn a_prev_result_is_no_concern_of_del_and_check() {
        let stdin = r#"{"name":"n","cniVersion":"1.0.0","prevResult":7}"#;
        assert_eq!((call("DEL", stdin).status, call("CHECK", stdin).status), (0, 0));
    }

    #[test]
    fn stdin_that_cannot_be_read_or_never_ends_is_code_5() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
            }
        }
        assert_eq!(
            call_with("DEL", &mut Broken, false).stdout,
            "{\"code\":5,\"msg\":\"read the network config from stdin: connection reset\"}\n"
        );
        assert_eq!(
            call_with("ADD", &mut std::io::repeat(b' '), false).stdout,
            "{\"code\":5,\"msg\":\"read the network config from stdin: it is larger than 8 MiB\"}\n"
        );
    }

    #[test]
    fn an_answer_that_cannot_be_written_is_a_failure() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::Error::from(std::io::ErrorKind::StorageFull))
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lookup = |name: &str| (name == "CNI_COMMAND").then(|| "VERSION".to_owned());
        let status =
            run(&lookup, &mut std::io::empty(), &mut Full, &mut std::io::sink(), &mut Recorder::default());
        assert_eq!(status, 1);
    }

    proptest::proptest! {
        #[test]
        fn any_stdin_gives_one_line_of_json_or_nothing(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..100)) {
            for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"] {
                let outcome = call_with(verb, &mut bytes.as_slice(), false);
                if !outcome.stdout.is_empty() {
                    let _: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
                    assert_eq!(outcome.stdout.matches('\n').count(), 1);
                }
            }
        }
    }
}
