// SPDX-License-Identifier: Apache-2.0
//! Programs of other projects that no Debian package has: built once from their Go modules, by the script of the cluster lab.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The directory with the programs of `module`, one of `tests/e2e/modules`.
#[must_use]
pub fn programs(module: &str) -> PathBuf {
    let output = Command::new("/usr/bin/python3")
        .args(["-B", concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/build.py"), module])
        .stderr(Stdio::inherit())
        .output()
        .expect("Debian's python3");
    assert!(output.status.success(), "{module} cannot be built");
    let printed = String::from_utf8(output.stdout).expect("a path in UTF-8");
    let path = printed.trim().strip_prefix(module).expect("`NAME DIRECTORY`").trim();
    PathBuf::from(path)
}
