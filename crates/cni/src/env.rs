// SPDX-License-Identifier: Apache-2.0
//! The `CNI_*` variables (SPEC, "Parameters"). Owns which verb needs which variable and what is valid; never reads the
//! process environment itself.

use crate::error::{Code, Error};
use crate::text::{is_identifier, shown};

/// The interface name of Linux has 15 bytes and a terminating zero.
const IFNAME_BYTES: usize = 15;

/// What the runtime asks for, `CNI_COMMAND`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach: program the pod.
    Add,
    /// Detach.
    Del,
    /// Compare with what ADD left, since 0.4.0.
    Check,
    /// Remove what does not belong to a valid attachment, since 1.1.0.
    Gc,
    /// Could an ADD succeed now, since 1.1.0.
    Status,
    /// Which versions are served.
    Version,
}

impl Verb {
    /// All verbs with their spelling.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Add, "ADD"),
        (Self::Del, "DEL"),
        (Self::Check, "CHECK"),
        (Self::Gc, "GC"),
        (Self::Status, "STATUS"),
        (Self::Version, "VERSION"),
    ];

    /// The specification's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The variables that may not be missing, besides `CNI_COMMAND`. The plugin never uses `CNI_PATH`, but a call without
    /// it did not come from a runtime.
    #[must_use]
    pub fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// One call by a runtime, with the variables that its verb requires checked. An optional variable that is missing is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// `CNI_COMMAND`.
    pub verb: Verb,
    /// `CNI_CONTAINERID`: the sandbox.
    pub container_id: String,
    /// `CNI_NETNS`: a path; empty is normal for DEL.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`, not parsed yet: only ADD and CHECK need it, and DEL must not fail for it.
    pub args: String,
    /// `CNI_NETNS_OVERRIDE` is `1` or `true`: the caller knows that the netns may be the plugin's own.
    pub netns_override: bool,
}

impl Invocation {
    /// Read the variables through `lookup`; unset and empty are alike. `None` when there is no `CNI_COMMAND`.
    ///
    /// # Errors
    /// Code 4: the verb is unknown, required variables are missing (all are named together), or one is not valid.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, Error> {
        let value = |name: &str| lookup(name).unwrap_or_default();
        let command = value("CNI_COMMAND");
        if command.is_empty() {
            return Ok(None);
        }
        let Some((verb, spelling)) = Verb::ALL.into_iter().find(|(_, spelling)| *spelling == command) else {
            let verbs = Verb::ALL.map(|(_, spelling)| spelling).join(", ");
            return Err(invalid(&format!("CNI_COMMAND is \"{}\": must be one of {verbs}", shown(&command))));
        };
        let missing: Vec<&str> =
            verb.required().iter().copied().filter(|name| value(name).is_empty()).collect();
        if !missing.is_empty() {
            return Err(invalid(&format!(
                "{} not set: {spelling} needs {}; the runtime's call is incomplete",
                missing.join(", "),
                verb.required().join(", ")
            )));
        }
        let call = Self {
            verb,
            container_id: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            ifname: value("CNI_IFNAME"),
            args: value("CNI_ARGS"),
            netns_override: matches!(value("CNI_NETNS_OVERRIDE").to_ascii_lowercase().as_str(), "1" | "true"),
        };
        call.validate()?;
        Ok(Some(call))
    }

    /// Only what the verb requires is looked at: a validation call sends VERSION with the word `dummy` everywhere.
    fn validate(&self) -> Result<(), Error> {
        let required = |name: &str| self.verb.required().contains(&name);
        if required("CNI_CONTAINERID") && !is_identifier(&self.container_id) {
            return Err(invalid(&format!(
                "CNI_CONTAINERID is \"{}\": must begin with a letter or digit, then letters, digits, \"_\", \".\", \"-\"",
                shown(&self.container_id)
            )));
        }
        if required("CNI_IFNAME") && !is_ifname(&self.ifname) {
            return Err(invalid(&format!(
                "CNI_IFNAME is \"{}\": must have 1 to {IFNAME_BYTES} bytes without \"/\", \":\" or blanks, and not be \
                 \".\" or \"..\"",
                shown(&self.ifname)
            )));
        }
        Ok(())
    }
}

fn is_ifname(name: &str) -> bool {
    (1..=IFNAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace())
}

fn invalid(msg: &str) -> Error {
    Error::new(Code::InvalidEnvironment, msg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Invocation>, Error> {
        Invocation::read(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| String::from(*value))
        })
    }

    const FULL: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/n"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];

    /// The full set for `verb` with `change` applied.
    fn with(verb: &str, change: (&str, &str)) -> Result<Option<Invocation>, Error> {
        let mut variables: Vec<_> = FULL.into_iter().filter(|(key, _)| *key != change.0).collect();
        variables.push(("CNI_COMMAND", verb));
        variables.push(change);
        read(&variables)
    }

    #[test]
    fn no_command_is_a_question_about_the_plugin() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("CNI_COMMAND", ""), ("CNI_IFNAME", "")]), Ok(None));
    }

    #[test]
    fn each_bad_environment_has_code_4_and_its_text() {
        let id = "must begin with a letter or digit, then letters, digits, \"_\", \".\", \"-\"";
        let ifname = "must have 1 to 15 bytes without \"/\", \":\" or blanks, and not be \".\" or \"..\"";
        let all = "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_PATH";
        let cases: Vec<(Result<Option<Invocation>, Error>, String)> = vec![
            (
                read(&[("CNI_COMMAND", "add")]),
                "CNI_COMMAND is \"add\": must be one of ADD, DEL, CHECK, GC, STATUS, VERSION".into(),
            ),
            (
                read(&[("CNI_COMMAND", "ADD")]),
                format!("{all} not set: ADD needs {all}; the runtime's call is incomplete"),
            ),
            (
                with("CHECK", ("CNI_NETNS", "")),
                format!("CNI_NETNS not set: CHECK needs {all}; the runtime's call is incomplete"),
            ),
            (
                read(&[("CNI_COMMAND", "DEL"), ("CNI_IFNAME", "eth0")]),
                "CNI_CONTAINERID, CNI_PATH not set: DEL needs CNI_CONTAINERID, CNI_IFNAME, CNI_PATH; the runtime's \
                 call is incomplete"
                    .into(),
            ),
            (
                read(&[("CNI_COMMAND", "GC")]),
                "CNI_PATH not set: GC needs CNI_PATH; the runtime's call is incomplete".into(),
            ),
            (
                read(&[("CNI_COMMAND", "STATUS")]),
                "CNI_PATH not set: STATUS needs CNI_PATH; the runtime's call is incomplete".into(),
            ),
            (with("ADD", ("CNI_CONTAINERID", "-x")), format!("CNI_CONTAINERID is \"-x\": {id}")),
            (with("DEL", ("CNI_CONTAINERID", "a/b")), format!("CNI_CONTAINERID is \"a/b\": {id}")),
            (with("ADD", ("CNI_IFNAME", "..")), format!("CNI_IFNAME is \"..\": {ifname}")),
            (with("ADD", ("CNI_IFNAME", ".")), format!("CNI_IFNAME is \".\": {ifname}")),
            (with("ADD", ("CNI_IFNAME", "a:1")), format!("CNI_IFNAME is \"a:1\": {ifname}")),
            (with("CHECK", ("CNI_IFNAME", "a/1")), format!("CNI_IFNAME is \"a/1\": {ifname}")),
            (with("DEL", ("CNI_IFNAME", "a 1")), format!("CNI_IFNAME is \"a 1\": {ifname}")),
            (
                with("ADD", ("CNI_IFNAME", "sixteen-bytes-xx")),
                format!("CNI_IFNAME is \"sixteen-bytes-xx\": {ifname}"),
            ),
        ];
        for (got, text) in cases {
            let error = got.unwrap_err();
            assert_eq!((error.code(), error.msg()), (4, text.as_str()));
        }
    }

    #[test]
    fn fifteen_bytes_are_a_valid_interface_name() {
        assert_eq!(
            with("ADD", ("CNI_IFNAME", "fifteen-bytes-x")).unwrap().unwrap().ifname,
            "fifteen-bytes-x"
        );
    }

    #[test]
    fn del_works_without_a_netns() {
        assert_eq!(with("DEL", ("CNI_NETNS", "")).unwrap().unwrap().netns, "");
    }

    #[test]
    fn version_validates_nothing() {
        let call = read(&[("CNI_COMMAND", "VERSION"), ("CNI_IFNAME", "a/b:c"), ("CNI_CONTAINERID", "")]);
        assert_eq!(call.unwrap().unwrap().verb, Verb::Version);
    }

    #[test]
    fn gc_and_status_do_not_look_at_what_they_do_not_need() {
        for verb in ["GC", "STATUS"] {
            assert!(with(verb, ("CNI_IFNAME", "a/b")).is_ok(), "{verb}");
        }
    }

    #[test]
    fn the_override_is_1_or_true_in_any_case() {
        for (value, expected) in [
            ("1", true),
            ("TRUE", true),
            ("true", true),
            ("True", true),
            ("0", false),
            ("yes", false),
            ("", false),
        ] {
            let call = with("ADD", ("CNI_NETNS_OVERRIDE", value)).unwrap().unwrap();
            assert_eq!(call.netns_override, expected, "{value:?}");
        }
    }
}
