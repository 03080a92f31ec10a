// SPDX-License-Identifier: Apache-2.0
//! The plugin in a directory of the node. Owns when it is replaced; never by an older one, and never in place, since a
//! runtime may be executing it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use cni::conflist::TYPE;

use crate::error::InstallError;
use crate::fault;
use crate::file::{Attributes, Content, Dir, Done, Stamp};

/// In the plugin, before its release: the line that it prints about itself.
const ABOUT: &str = "CNI plugin istio-cni ";
/// And after it.
const OURS: &str = " (Waylay)";
/// Attempts when somebody else replaces it at the same time.
const ATTEMPTS: usize = 5;

/// The plugin of the image.
pub(crate) struct Plugin {
    bytes: Vec<u8>,
    attributes: Attributes,
}

/// What became of the plugin in one directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Binary {
    InPlace,
    Written,
    /// A newer release is there, and stays.
    Newer(String),
}

impl Plugin {
    pub(crate) fn read(path: &Path) -> Result<Self, InstallError> {
        let failed = |error: &io::Error| InstallError::io("read the image's plugin", path, error);
        let bytes = fs::read(path).map_err(|error| failed(&error))?;
        let metadata = fs::metadata(path).map_err(|error| failed(&error))?;
        if bytes.is_empty() {
            return Err(failed(&io::Error::other("it is empty")));
        }
        // Executable for the runtime, whatever the image says.
        Ok(Self { bytes, attributes: Attributes { mode: metadata.mode() & 0o777 | 0o555, owner: None } })
    }

    pub(crate) fn ensure(&self, dir: &Dir<'_>, downgrade: bool) -> Result<Binary, InstallError> {
        let path = dir.path.join(TYPE);
        for _ in 0..ATTEMPTS {
            let stamp = Stamp::of(&path).map_err(|error| InstallError::io("look at", &path, &error))?;
            let there = match fs::read(&path) {
                Ok(bytes) => Some(bytes),
                // Also a link that leads nowhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(InstallError::io("read", &path, &error)),
            };
            if let Some(there) = &there {
                let mode = fs::metadata(&path).map(|m| m.mode() & 0o7777).unwrap_or_default();
                if *there == self.bytes && mode == self.attributes.mode {
                    return Ok(Binary::InPlace);
                }
                if !downgrade && let Some(release) = release(there).filter(|there| newer(there, &self.bytes))
                {
                    return Ok(Binary::Newer(release.to_owned()));
                }
            }
            let content = Content::File(&self.bytes, self.attributes);
            if dir.put(TYPE, &content, stamp, fault::BINARY)? == Done::Yes {
                return Ok(Binary::Written);
            }
        }
        Err(InstallError::changed(&path))
    }

    /// Whether one of ours is in `dir`.
    pub(crate) fn is_in(dir: &Path) -> bool {
        fs::read(dir.join(TYPE)).is_ok_and(|bytes| release(&bytes).is_some())
    }

    /// Remove the plugin, if it is ours. Tells whether it was there.
    pub(crate) fn remove(dir: &Dir<'_>) -> Result<bool, InstallError> {
        let path = dir.path.join(TYPE);
        let failed = |error: &io::Error| InstallError::io("read", &path, error);
        for _ in 0..ATTEMPTS {
            let stamp = match Stamp::of(&path) {
                Ok(Some(stamp)) => stamp,
                Ok(None) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(false),
                Err(error) => return Err(failed(&error)),
            };
            match fs::read(&path) {
                Ok(there) if release(&there).is_some() => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(failed(&error)),
            }
            if dir.delete(TYPE, Some(stamp), fault::DELETE_BINARY)? == Done::Yes {
                return Ok(true);
            }
        }
        Err(InstallError::changed(&path))
    }
}

/// The release of a plugin of ours; `None` for another one, and for half of one.
fn release(binary: &[u8]) -> Option<&str> {
    let at = binary.windows(ABOUT.len()).position(|part| part == ABOUT.as_bytes())? + ABOUT.len();
    let rest = &binary[at..binary.len().min(at + 64)];
    let end = rest.windows(OURS.len()).position(|part| part == OURS.as_bytes())?;
    std::str::from_utf8(&rest[..end]).ok()
}

fn newer(release_there: &str, ours: &[u8]) -> bool {
    release(ours).is_some_and(|ours| key(release_there) > key(ours))
}

/// Semantic versioning, as far as releases differ: three numbers, and one without a suffix is newer than one with.
fn key(release: &str) -> (Vec<u64>, bool, &str) {
    let (numbers, suffix) = release.split_once('-').unwrap_or((release, ""));
    let numbers = numbers.split('.').map(|number| number.parse().unwrap_or(0)).collect();
    (numbers, suffix.is_empty(), suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(release: &str) -> Vec<u8> {
        format!("\x7fELF\0\0CNI plugin istio-cni {release} (Waylay)\0rest").into_bytes()
    }

    #[test]
    fn the_release_is_found_in_our_plugin_only() {
        assert_eq!(release(&plugin("0.12.3")), Some("0.12.3"));
        assert_eq!(
            release(b"CNI plugin istio-cni 1.2.3\0and long after it there is nothing of (that)"),
            None
        );
        assert_eq!(release(b"\x7fELF"), None);
        assert_eq!(release(b"CNI plugin istio-cni 1.2"), None);
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        let newer = |there: &str, ours: &str| newer(there, &plugin(ours));
        assert!(
            newer("0.10.0", "0.9.9") && newer("1.0.0", "1.0.0-rc.1") && newer("1.0.0-rc.2", "1.0.0-rc.1")
        );
        assert!(!newer("0.9.9", "0.10.0") && !newer("1.0.0", "1.0.0") && !newer("1.0.0-rc.1", "1.0.0"));
    }
}
