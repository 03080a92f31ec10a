// SPDX-License-Identifier: Apache-2.0
//! The error object that a plugin prints on stdout, and the one table of codes.
//!
//! `docs/ERRORS.md` explains each code to the person who meets it in a pod event; a test of the plugin keeps both lists
//! equal.

use serde::Serialize;

use crate::text::one_line;

macro_rules! codes {
    ($($name:ident = $number:literal, $meaning:literal;)*) => {
        /// What went wrong, as the number in the error object. 0 to 99 belong to the specification (SPEC, "Error"), 100
        /// and above are ours.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Code {
            $(#[doc = $meaning] $name = $number,)*
        }

        impl Code {
            /// Every code with its meaning.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, $meaning),)*];
        }
    };
}

codes! {
    IncompatibleVersion = 1, "the plugin does not serve this cniVersion, or the verb needs a newer one";
    InvalidEnvironment = 4, "a CNI_* variable is missing or not valid";
    Io = 5, "stdin cannot be read or stdout cannot be written";
    Decode = 6, "the network configuration or its prevResult cannot be decoded";
    InvalidConfig = 7, "a value in the network configuration is not valid";
    OwnNetns = 8, "CNI_NETNS is the network namespace of the plugin itself";
    TryAgain = 11, "the agent or what it needs is not there yet; trying again later may succeed";
    Internal = 100, "a defect in the plugin or in the agent";
    PodSettings = 101, "a setting of the pod itself is not valid";
    NetnsMissing = 102, "the file CNI_NETNS does not exist";
    NotANetns = 103, "CNI_NETNS is not a network namespace";
    NetnsUnusable = 104, "the network namespace cannot be opened, entered or used";
    Refused = 105, "the agent refused the request";
    RulesNotApplied = 106, "the kernel did not accept the rules";
    RulesDiffer = 107, "CHECK found rules missing or changed";
    RequestTooLarge = 108, "the request does not fit into one message to the agent";
    NodeSettings = 109, "a setting of the node is not valid";
    NoAddress = 110, "the pod has no IP address";
    Bypassed = 111, "the pod's runtime does not heed the rules of its network namespace";
}

impl Code {
    /// The number that is printed.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The code with this number, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().map(|(code, _)| *code).find(|code| code.number() == number)
    }
}

/// A failure as the runtime sees it: `msg` stands alone on one line of a pod event, `details` follows it after `; `.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{msg} (code {code})")]
pub struct Error {
    code: u32,
    msg: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    details: String,
}

impl Error {
    /// An error with one of our codes. Control characters in `msg` become blanks.
    #[must_use]
    pub fn new(code: Code, msg: &str) -> Self {
        Self::with_number(code.number(), msg)
    }

    /// An error with a number that came from elsewhere, for example from a newer agent.
    #[must_use]
    pub fn with_number(code: u32, msg: &str) -> Self {
        Self { code, msg: one_line(msg), details: String::new() }
    }

    /// The same error with a second, longer sentence.
    #[must_use]
    pub fn details(mut self, details: &str) -> Self {
        self.details = one_line(details);
        self
    }

    /// The number of the code.
    #[must_use]
    pub fn code(&self) -> u32 {
        self.code
    }

    /// The short text, one line.
    #[must_use]
    pub fn msg(&self) -> &str {
        &self.msg
    }

    /// The object for stdout, without `cniVersion`: no runtime reads it, and it is not known for every error.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Numbers and strings always serialise; the fallback keeps the output an error object whatever happens.
        serde_json::to_string(self).unwrap_or_else(|_| String::from(r#"{"code":100,"msg":"internal error"}"#))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_code_and_msg_and_details_only_when_there_are_some() {
        let error = Error::new(Code::Io, "read stdin");
        assert_eq!(error.to_json(), r#"{"code":5,"msg":"read stdin"}"#);
        let error = error.details("broken pipe");
        assert_eq!(error.to_json(), r#"{"code":5,"msg":"read stdin","details":"broken pipe"}"#);
    }

    #[test]
    fn a_message_cannot_break_the_line() {
        assert_eq!(Error::new(Code::Io, "a\nb\r\tc").msg(), "a b  c");
    }

    #[test]
    fn codes_are_unique_and_found_by_number() {
        for (code, _) in Code::ALL {
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        assert_eq!(Code::from_number(999), None);
    }

    #[test]
    fn our_own_codes_begin_at_100_and_the_rest_are_the_specifications() {
        for (code, _) in Code::ALL {
            let number = code.number();
            assert!(number >= 100 || [1, 4, 5, 6, 7, 8, 11].contains(&number), "{code:?}");
        }
    }
}
