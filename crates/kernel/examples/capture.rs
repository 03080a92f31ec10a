// SPDX-License-Identifier: Apache-2.0
//! Makes the captures in `tests/captures` anew: runs `nft -f` under `strace`, each time in a netns of its own.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;

use common::tables::everything;
use common::{in_netns, run};
use ruleset::Family;

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures");
    let version = run("nft", &["--version"], "");
    for family in [Family::Inet, Family::Ip, Family::Ip6] {
        let input = ruleset::render(&everything(family));
        std::fs::write(folder.join(format!("{family}.nft")), &input).expect("write the table");
        let log = std::env::temp_dir().join(format!("capture-{}", std::process::id()));
        let log_path = log.to_str().expect("the temporary folder is text");
        let arguments = ["-o", log_path, "-e", "trace=sendmsg", "-e", "write=all", "nft", "-f", "-"];
        in_netns(|| run("strace", &arguments, &input));
        let dump = std::fs::read_to_string(&log).expect("read the log");
        std::fs::remove_file(&log).expect("remove the log");
        let command = format!("# strace -e trace=sendmsg -e write=all nft -f {family}.nft\n# {version}");
        let lines: Vec<String> = messages(&largest(&dump)).iter().map(|m| hex(m)).collect();
        std::fs::write(folder.join(format!("{family}.hex")), command + &lines.join("\n") + "\n")
            .expect("write the capture");
    }
}

/// The largest datagram in a log of strace: ` | OFFSET  HEX HEX ...  TEXT |` a line.
fn largest(log: &str) -> Vec<u8> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for line in log.lines().filter_map(|line| line.strip_prefix(" | ")) {
        let (offset, rest) = line.split_once("  ").expect("an offset");
        if u32::from_str_radix(offset, 16) == Ok(0) {
            all.push(Vec::new());
        }
        let digits = rest.get(..49).unwrap_or(rest).split_whitespace();
        let bytes = digits.map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
        all.last_mut().expect("a first line at offset 0").extend(bytes);
    }
    all.into_iter().max_by_key(Vec::len).expect("a datagram")
}

fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    while let Some(len) = bytes.first_chunk::<4>() {
        let len = (u32::from_ne_bytes(*len) as usize).next_multiple_of(4);
        let (message, rest) = bytes.split_at(len);
        out.push(message.to_vec());
        bytes = rest;
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
