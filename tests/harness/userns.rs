// SPDX-License-Identifier: Apache-2.0
//! A pod of Kubernetes' `hostUsers: false`: a network namespace that belongs to a child user namespace, in which ids
//! 0 to 65535 are the host's from [`FIRST`] on.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sched::{CloneFlags, unshare};

use crate::netns::Netns;
use crate::packet::Ids;

/// The host's id that is 0 inside.
pub const FIRST: u32 = 100_000;
const COUNT: u32 = 65_536;

/// The process that holds both namespaces; killed when dropped, and also when the test dies.
pub struct UserNamespace(Child);

impl UserNamespace {
    /// Make both, with the ids mapped.
    #[must_use]
    #[allow(unsafe_code, reason = "namespaces of a child are made between fork and exec")]
    pub fn new() -> Self {
        let mut command = Command::new("sleep");
        command.arg("infinity").stdin(Stdio::null());
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                // Only a process with one thread may do this, which a test is not and a forked child is.
                Ok(unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?)
            });
        }
        let holder = Self(command.spawn().expect("a user namespace: these tests need root"));
        for map in ["uid_map", "gid_map"] {
            std::fs::write(holder.proc(map), format!("0 {FIRST} {COUNT}")).unwrap();
        }
        holder
    }

    /// Its network namespace, with `lo` up.
    #[must_use]
    pub fn netns(&self) -> Netns {
        let netns = Netns::of(self.proc("ns/net").as_ref());
        netns.ip("link set lo up");
        netns
    }

    /// What a shell prints that runs `script` inside, as these ids of the inside.
    #[must_use]
    pub fn shell(&self, ids: Ids, script: &str) -> String {
        let output = Command::new("nsenter")
            .args([format!("--target={}", self.0.id()), "--user".to_owned(), "--net".to_owned()])
            .args([format!("--setuid={}", ids.uid), format!("--setgid={}", ids.gid)])
            .args(["bash", "-c", script])
            .stdin(Stdio::null())
            .output()
            .expect("nsenter of util-linux");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.0.id())
    }
}

impl Default for UserNamespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ids of the inside as the host sees them.
#[must_use]
pub fn on_host(ids: Ids) -> Ids {
    Ids { uid: FIRST + ids.uid, gid: FIRST + ids.gid }
}
