// SPDX-License-Identifier: Apache-2.0
//! Sleeping until the run directory changes, so that an agent that holds the sockets costs nothing while nobody takes
//! them. Owns an inotify watch; never looks at what is in the directory.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest sleep: what inotify does not tell, as a file system mounted over the directory.
const IDLE: Duration = Duration::from_secs(60);

/// The changes of one directory.
pub(crate) struct Changes(Option<Inotify>);

impl Changes {
    /// Of `dir`, from now on. Where the kernel grants no watch, [`Self::wait`] only sleeps.
    pub(crate) fn of(dir: &Path) -> Self {
        Self(watch(dir).inspect_err(|error| tracing::warn!(%error, "no watch of the run directory")).ok())
    }

    /// Sleep until something has changed since the last call; for `blind` when that cannot be known.
    pub(crate) fn wait(&mut self, blind: Duration) {
        let Some(inotify) = &mut self.0 else { return thread::sleep(blind) };
        let timeout = PollTimeout::try_from(IDLE).unwrap_or(PollTimeout::MAX);
        let woken = poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], timeout);
        // What the events say does not matter; the buffer takes any one of them.
        let mut buffer = [0; 4096];
        while woken.is_ok_and(|n| n > 0) && inotify.read_events(&mut buffer).is_ok() {}
    }
}

fn watch(dir: &Path) -> io::Result<Inotify> {
    let inotify = Inotify::init()?;
    let names = WatchMask::CREATE | WatchMask::MOVE | WatchMask::DELETE;
    inotify.watches().add(dir, names | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF)?;
    Ok(inotify)
}
