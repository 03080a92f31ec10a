// SPDX-License-Identifier: Apache-2.0
//! Interface names as the kernel and nft both accept them.

use std::fmt;

/// The name of a network interface: 1 to 15 bytes (`IFNAMSIZ` less the NUL, `linux/if.h`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

/// Why a text is not an [`IfName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interface names are 1 to 15 characters: a letter, then letters, digits, '_', '.' or '-'")]
pub struct IfNameError;

impl IfName {
    /// Parse `text` as an interface name.
    ///
    /// The alphabet is narrower than the kernel's (`dev_valid_name`): no wildcard and nothing that nft syntax would
    /// read as something else.
    ///
    /// # Errors
    /// [`IfNameError`] when the text is empty, longer than 15 bytes or has another character.
    pub fn parse(text: &str) -> Result<Self, IfNameError> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if first && rest && text.len() <= 15 { Ok(Self(text.to_owned())) } else { Err(IfNameError) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::IfName;

    #[test]
    fn accepts_what_the_kernel_and_nft_both_take() {
        for name in ["e", "eth0", "net1.100", "br-0_a", "abcdefghijklmno"] {
            assert!(IfName::parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn rejects_wildcards_digits_first_and_long_names() {
        for name in ["", "0eth", "eth+", "eth*", "a b", "a/b", "a:1", "@a", "abcdefghijklmnop", "é"] {
            assert!(IfName::parse(name).is_err(), "{name}");
        }
    }
}
