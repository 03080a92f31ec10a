// SPDX-License-Identifier: Apache-2.0
//! Text for messages. Owns how a foreign value is shown; never decides whether it is accepted.

/// Longest piece of a foreign value that a message repeats, in characters. A pod event holds 1,024 bytes in all.
const SHOWN: usize = 64;

/// `text` on one line: control characters become blanks, so that no value can forge a second log line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `value` for a message: at most 64 characters, on one line.
pub(crate) fn shown(value: &str) -> String {
    let mut short: String = value.chars().take(SHOWN).collect();
    if short.len() < value.len() {
        short.push_str("...");
    }
    one_line(&short)
}

/// The alphabet that the specification gives to container ids and network names.
pub(crate) fn is_identifier(value: &str) -> bool {
    value.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}
