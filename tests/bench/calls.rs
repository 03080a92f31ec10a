// SPDX-License-Identifier: Apache-2.0
//! Calling a plugin as libcni does: the environment, stdin and stdout through pipes, and a wait for the end.
//!
//! The standard library starts such a process with posix_spawn(3), so that the size of this one does not matter.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// One call, ready to be made.
pub(crate) struct Call<'a> {
    /// The program.
    pub(crate) program: &'a Path,
    /// Its whole environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// What it may read.
    pub(crate) stdin: String,
}

impl Call<'_> {
    /// Start the process and hand over its input.
    pub(crate) fn start(&self) -> Child {
        let mut child = Command::new(self.program)
            .env_clear()
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // `true` may have ended already, without reading.
        let _ = child.stdin.take().unwrap().write_all(self.stdin.as_bytes());
        child
    }

    /// Make the call, which must succeed and print `expected`, and say how many milliseconds it took.
    pub(crate) fn time(&self, expected: &str) -> f64 {
        let begin = Instant::now();
        let output = self.start().wait_with_output().unwrap();
        let took = begin.elapsed().as_secs_f64() * 1e3;
        assert_eq!(
            (output.status.code(), String::from_utf8_lossy(&output.stdout).trim_end()),
            (Some(0), expected)
        );
        took
    }
}
