// SPDX-License-Identifier: Apache-2.0
//! One file of a directory at a time, changed so that everybody else sees either the old one or the new one, whole.
//!
//! Owns temporary names, renames and their order with fsync. Never changes a file in place, and never loses what somebody
//! else wrote in between: a file is *exchanged* with the new one, and back when it turns out not to be the one that was
//! read.

use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;

use crate::error::InstallError;
use crate::fault::{Points, point};

/// In the name of every temporary file. No runtime looks at a file with such an ending, and all see it renamed: it is in
/// the same directory.
const TEMPORARY: &str = ".waylay-tmp-";

/// Which file a name led to, and in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
}

/// What a file has beside its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
}

/// What is to be under a name.
pub(crate) enum Content<'a> {
    File(&'a [u8], Attributes),
    Link(&'a str),
}

/// One directory, and whether it may be written to.
pub(crate) struct Dir<'a> {
    pub(crate) path: &'a Path,
    pub(crate) may_write: &'a dyn Fn() -> bool,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Yes,
    /// The name leads to something else than expected; nothing was changed.
    Changed,
}

impl Stamp {
    /// Of the name itself, not of what a link leads to.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Self>> {
        match fs::symlink_metadata(path) {
            Ok(m) => Ok(Some(Self::from(&m))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(m: &fs::Metadata) -> Self {
        Self { dev: m.dev(), ino: m.ino(), size: m.size(), modified: (m.mtime(), m.mtime_nsec()) }
    }
}

impl From<&fs::Metadata> for Attributes {
    fn from(m: &fs::Metadata) -> Self {
        Self { mode: m.mode() & 0o7777, owner: Some((m.uid(), m.gid())) }
    }
}

impl Dir<'_> {
    /// Bring `content` under `name`, if `expected` is what is there.
    pub(crate) fn put(
        &self,
        name: &str,
        content: &Content<'_>,
        expected: Option<Stamp>,
        points: Points,
    ) -> Result<Done, InstallError> {
        let path = self.path.join(name);
        self.allowed(&path)?;
        let temporary = self.temporary(name);
        let done = fill(&temporary, content, points)
            .map_err(|error| InstallError::io("write", &temporary, &error))
            .and_then(|()| self.swap(&temporary, &path, expected, points));
        if !matches!(done, Ok(Done::Yes)) {
            let _ = fs::remove_file(&temporary);
        }
        if done? == Done::Changed {
            return Ok(Done::Changed);
        }
        self.sync(points)?;
        Ok(Done::Yes)
    }

    fn swap(
        &self,
        temporary: &Path,
        path: &Path,
        expected: Option<Stamp>,
        points: Points,
    ) -> Result<Done, InstallError> {
        let failed = |error: &io::Error| InstallError::io("replace", path, error);
        if Stamp::of(path).map_err(|error| failed(&error))? != expected {
            return Ok(Done::Changed);
        }
        // Last look: an agent that lost the role meanwhile must not undo what the newer one wrote.
        self.allowed(path)?;
        let flag = if expected.is_some() { libc::RENAME_EXCHANGE } else { libc::RENAME_NOREPLACE };
        match rename(temporary, path, flag) {
            Ok(()) => point(points.rename),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                // A file system without it.
                fs::rename(temporary, path).map_err(|error| failed(&error))?;
                point(points.rename);
                return Ok(Done::Yes);
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => {
                return Ok(Done::Changed);
            }
            Err(error) => return Err(failed(&error)),
        }
        if expected.is_some() {
            if Stamp::of(temporary).ok() != Some(expected) {
                rename(temporary, path, libc::RENAME_EXCHANGE).map_err(|error| failed(&error))?;
                return Ok(Done::Changed);
            }
            fs::remove_file(temporary).map_err(|error| InstallError::io("remove", temporary, &error))?;
            point(points.unlink);
        }
        Ok(Done::Yes)
    }

    /// Remove `name`, if `expected` is what is there.
    pub(crate) fn delete(
        &self,
        name: &str,
        expected: Option<Stamp>,
        points: Points,
    ) -> Result<Done, InstallError> {
        let path = self.path.join(name);
        self.allowed(&path)?;
        let failed = |error: &io::Error| InstallError::io("remove", &path, error);
        if Stamp::of(&path).map_err(|error| failed(&error))? != expected {
            return Ok(Done::Changed);
        }
        if expected.is_none() {
            return Ok(Done::Yes);
        }
        let temporary = self.temporary(name);
        fs::rename(&path, &temporary).map_err(|error| failed(&error))?;
        point(points.rename);
        if Stamp::of(&temporary).ok() != Some(expected) {
            // Somebody wrote it anew in between; if there is one newer still, this one has no place any more.
            if rename(&temporary, &path, libc::RENAME_NOREPLACE).is_err() {
                let _ = fs::remove_file(&temporary);
            }
            return Ok(Done::Changed);
        }
        fs::remove_file(&temporary).map_err(|error| InstallError::io("remove", &temporary, &error))?;
        point(points.unlink);
        self.sync(points)?;
        Ok(Done::Yes)
    }

    /// Remove what killed processes left.
    pub(crate) fn sweep(&self) -> Result<(), InstallError> {
        let failed = |error: &io::Error| InstallError::io("read", self.path, error);
        for entry in fs::read_dir(self.path).map_err(|error| failed(&error))? {
            let entry = entry.map_err(|error| failed(&error))?;
            if entry.file_name().as_bytes().windows(TEMPORARY.len()).any(|part| part == TEMPORARY.as_bytes())
            {
                self.allowed(&entry.path())?;
                // Gone is good, too.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    pub(crate) fn sync(&self, points: Points) -> Result<(), InstallError> {
        File::open(self.path)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| InstallError::io("sync", self.path, &error))?;
        point(points.dirsync);
        Ok(())
    }

    pub(crate) fn allowed(&self, path: &Path) -> Result<(), InstallError> {
        if (self.may_write)() { Ok(()) } else { Err(InstallError::not_holder(path)) }
    }

    /// Unique: two agents must never write to the same one.
    fn temporary(&self, name: &str) -> PathBuf {
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        self.path.join(format!("{name}{TEMPORARY}{random:016x}"))
    }
}

fn fill(temporary: &Path, content: &Content<'_>, points: Points) -> io::Result<()> {
    let (bytes, attributes) = match content {
        Content::Link(target) => return symlink(target, temporary),
        Content::File(bytes, attributes) => (*bytes, attributes),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    let (first, second) = bytes.split_at(bytes.len() / 2);
    file.write_all(first)?;
    point(points.half);
    file.write_all(second)?;
    if let Some((uid, gid)) = attributes.owner {
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (uid, gid) {
            // Without CAP_CHOWN the file is ours from now on; its mode stays.
            let _ = fchown(&file, Some(uid), Some(gid));
        }
    }
    file.set_permissions(Permissions::from_mode(attributes.mode))?;
    point(points.write);
    file.sync_all()?;
    point(points.sync);
    Ok(())
}

/// renameat2(2), which nix has for glibc only.
fn rename(from: &Path, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let text = |path: &Path| {
        std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)
    };
    let (from, to) = (text(from)?, text(to)?);
    // SAFETY: two C strings that live until the call returns, and constants.
    #[allow(unsafe_code, reason = "no safe wrapper is there for musl")]
    let result = unsafe {
        libc::syscall(libc::SYS_renameat2, libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}
