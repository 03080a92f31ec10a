// SPDX-License-Identifier: Apache-2.0
//! The versions of the specification. Owns the list; never converts between versions.

/// A version of the CNI specification. All seven are served, because the plugin is inserted into lists that other vendors
/// write. The order is that of the specification's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0, also meant by a configuration that names none.
    V0_1_0,
    /// 0.2.0, the last with `ip4` and `ip6`.
    V0_2_0,
    /// 0.3.0, the first with chaining.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0, the first with CHECK.
    V0_4_0,
    /// 1.0.0.
    V1_0_0,
    /// 1.1.0, the first with GC and STATUS.
    V1_1_0,
}

/// The shapes that results have: a result is read by the rules of its own family only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Ip4Ip6,
    IpsWithVersion,
    Ips,
}

impl Version {
    /// All versions, oldest first, with their exact spelling.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::V0_1_0, "0.1.0"),
        (Self::V0_2_0, "0.2.0"),
        (Self::V0_3_0, "0.3.0"),
        (Self::V0_3_1, "0.3.1"),
        (Self::V0_4_0, "0.4.0"),
        (Self::V1_0_0, "1.0.0"),
        (Self::V1_1_0, "1.1.0"),
    ];

    /// The version spelled exactly `text`: no blanks, no `v`, no range.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, spelling)| *spelling == text).map(|(version, _)| *version)
    }

    /// The specification's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// All spellings for a message: `0.1.0, 0.2.0, ...`.
    #[must_use]
    pub fn list() -> String {
        Self::ALL.map(|(_, spelling)| spelling).join(", ")
    }

    pub(crate) fn family(self) -> Family {
        if self <= Self::V0_2_0 {
            Family::Ip4Ip6
        } else if self <= Self::V0_4_0 {
            Family::IpsWithVersion
        } else {
            Family::Ips
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_is_found_by_its_exact_spelling_only() {
        for (version, spelling) in Version::ALL {
            assert_eq!(Version::parse(spelling), Some(version));
            assert_eq!(version.as_str(), spelling);
        }
        for other in ["", "1.1", "v1.1.0", " 1.1.0", "1.1.0 ", "1.2.0", "0.5.0", "01.1.0"] {
            assert_eq!(Version::parse(other), None, "{other:?}");
        }
    }
}
