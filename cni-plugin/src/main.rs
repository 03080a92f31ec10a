// SPDX-License-Identifier: Apache-2.0
//! The CNI plugin `istio-cni`: a thin client of the node agent. A container runtime starts it for every pod.
//!
//! Owns the process: its environment, stdin, stdout and exit status, and what a panic looks like to the runtime. It
//! starts no other process, since a helper that outlives the plugin holds up the runtime.

mod agent;
mod log;
mod run;
mod sandbox;
mod verbs;

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use cni::{Code, Error};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long VERSION waits for its question, in milliseconds. It answers without one, too.
const VERSION_PATIENCE: u16 = 1000;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| report_panic(&panic.to_string())));
    let lookup = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    // For the test of the hook above. Not in the profiles that are shipped.
    #[cfg(debug_assertions)]
    assert!(lookup("WAYLAY_FAULT").as_deref() != Some("plugin:panic"), "asked for\nby a test");
    let fd = io::stdin();
    let patience = if fd.is_terminal() {
        // A person who tries the plugin by hand would wait for it, as it for them.
        Some(0)
    } else {
        (lookup("CNI_COMMAND").as_deref() == Some("VERSION")).then_some(VERSION_PATIENCE)
    };
    let mut stdin = Stdin { fd, patience };
    ExitCode::from(run::run(
        &lookup,
        &mut stdin,
        &mut Unbuffered(io::stdout()),
        &mut Unbuffered(io::stderr()),
    ))
}

/// A runtime understands an error object on stdout and nothing else; a signal, as from abort, would tell it nothing.
#[allow(clippy::disallowed_methods, reason = "a panic hook cannot return an exit code from main")]
fn report_panic(what: &str) {
    let error = Error::new(
        Code::Internal,
        &format!("istio-cni {}: {what}; this is a defect, please report it", env!("CARGO_PKG_VERSION")),
    );
    // There is nobody to tell when this fails, too.
    let _ = Unbuffered(io::stdout()).write_all(format!("{}\n", error.to_json()).as_bytes());
    std::process::exit(1);
}

/// stdin, read to its end; with `patience` in milliseconds, to where nothing comes any more although the writer keeps the
/// pipe open. Unbuffered, since poll knows nothing of a buffer.
struct Stdin {
    fd: io::Stdin,
    patience: Option<u16>,
}

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut ready = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        if self.patience.is_some_and(|limit| poll(&mut ready, PollTimeout::from(limit)) == Ok(0)) {
            return Ok(0);
        }
        Ok(nix::unistd::read(&self.fd, buffer)?)
    }
}

/// stdout or stderr without the buffer and the lock of the standard library: each has one line to carry, and a panic may
/// come at any time.
struct Unbuffered<F>(F);

impl<F: AsFd> Write for Unbuffered<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(nix::unistd::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
