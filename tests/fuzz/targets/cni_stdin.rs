// SPDX-License-Identifier: Apache-2.0
//! The network configuration as a runtime writes it to stdin, with the verbs that differ in what they read of it. Whatever
//! comes: no panic, stdout is nothing or one line of JSON that ends in a newline, an error has a code and a text of one
//! line, and an ADD that succeeds prints `prevResult` byte for byte.
#![no_main]

use std::collections::BTreeMap;

use cni::{Call, Code, Error, Plugin, Verb};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use serde::de::IgnoredAny;
use serde_json::Value;

fuzz_target!(|stdin: &[u8]| -> Corpus {
    let mut is_document = true;
    for verb in [Verb::Add, Verb::Gc, Verb::Version] {
        let mut plugin = Reader::default();
        let (mut stdout, mut about) = (Vec::new(), Vec::new());
        let lookup = |name: &str| environment(name, verb.as_str());
        let status = cni::run(&lookup, &mut { stdin }, &mut stdout, &mut about, &mut plugin);
        assert!(about.is_empty(), "there was a command");
        let stdout = str::from_utf8(&stdout).expect("stdout is text");
        match (status, verb) {
            (0, Verb::Add) => check_result(stdout, plugin.prev_result.as_deref()),
            (0, Verb::Version) => {
                assert_eq!(one_document::<Value>(stdout)["supportedVersions"][6], "1.1.0");
            }
            (0, _) => assert_eq!(stdout, "", "only ADD and VERSION have a result"),
            (1, _) => is_document &= check_error(stdout) != Code::Decode,
            _ => panic!("exit status {status}"),
        }
    }
    waylay_fuzz::keep(is_document)
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    waylay_fuzz::mutate_text(data, size, max_size, seed)
});

fn environment(name: &str, command: &str) -> Option<String> {
    let value = match name {
        "CNI_COMMAND" => command,
        "CNI_CONTAINERID" => "c1",
        "CNI_NETNS" => "/proc/self/ns/net",
        "CNI_IFNAME" => "eth0",
        "CNI_PATH" => "/opt/cni/bin",
        _ => return None,
    };
    Some(value.to_owned())
}

fn check_result(stdout: &str, prev_result: Option<&str>) {
    // Not `Value`: a number of any size is JSON, and what an earlier plugin printed is not ours to judge.
    let _: BTreeMap<String, IgnoredAny> = one_document(stdout);
    if prev_result.is_some() {
        assert_eq!(stdout.strip_suffix('\n'), prev_result, "prevResult as received");
    }
}

fn check_error(stdout: &str) -> Code {
    let error: Value = one_document(stdout);
    let text = error["msg"].as_str().expect("a text");
    assert!(!text.is_empty() && text.len() < 1024 && !text.contains(char::is_control), "{text:?}");
    let code = error["code"].as_u64().and_then(|code| u32::try_from(code).ok()).expect("a number");
    Code::from_number(code).expect("one of the table")
}

fn one_document<T: serde::de::DeserializeOwned>(stdout: &str) -> T {
    assert!(stdout.ends_with('\n'), "{stdout:?}");
    serde_json::from_str(stdout).expect("one JSON document")
}

/// Reads all that a verb of the plugin could ask for.
#[derive(Default)]
struct Reader {
    prev_result: Option<String>,
}

impl Plugin for Reader {
    fn about(&self) -> String {
        String::new()
    }

    fn add(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.prev_result = call.document.prev_result().map(str::to_owned);
        let _ = call.document.run_dir_or_default();
        let options = call.document.options()?;
        assert!((1..=cni::config::DEADLINE_MAX).contains(&options.deadline_seconds));
        waylay_fuzz::seeded_bug(&[options.exclude_namespaces.len() > 2, options.deadline_seconds < 60]);
        Ok(())
    }

    fn del(&mut self, _call: &Call<'_>) {}

    fn check(&mut self, _call: &Call<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn gc(&mut self, call: &Call<'_>) -> Result<(), Error> {
        call.document.valid_attachments().map(drop)
    }

    fn status(&mut self, _call: &Call<'_>) -> Result<(), Error> {
        Ok(())
    }
}
