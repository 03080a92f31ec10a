// SPDX-License-Identifier: Apache-2.0
//! A file of the runtime's configuration directory, as a list and as a single configuration. Whatever is in it: no panic;
//! with our entry it is a list whose last plugin and no other is ours, and putting it in again changes nothing; and taking
//! it out gives back every byte that was there before.
#![no_main]

use std::collections::BTreeMap;

use cni::conflist::{Conf, Entry, Marks, TYPE, Without};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use serde_json::value::RawValue;

const LIST: &str = "10-net.conflist";
const SINGLE: &str = "10-net.conf";

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = str::from_utf8(bytes) else { return Corpus::Reject };
    let mut usable = false;
    for name in [LIST, SINGLE] {
        if let Ok(conf) = Conf::parse(name, text) {
            usable = true;
            check(name, text, &conf);
        }
    }
    waylay_fuzz::keep(usable)
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    waylay_fuzz::mutate_text(data, size, max_size, seed)
});

fn check(name: &str, text: &str, conf: &Conf<'_>) {
    let mut marks = conf.marks().cloned().unwrap_or_default();
    if name == SINGLE {
        marks = Marks { converted_from: Some(name.to_owned()), ..Marks::default() };
    }
    let (before, entry) = (conf.without_entry(), Entry::default());
    let list = conf.with_entry(&entry, &marks);
    let types = types(&list);
    assert_eq!(types.last().map(String::as_str), Some(TYPE), "{list}");
    assert_eq!(types.iter().filter(|kind| *kind == TYPE).count(), 1, "{list}");

    let put = Conf::parse(LIST, &list).expect("a list");
    assert_eq!(put.marks(), Some(&marks));
    assert_eq!(put.with_entry(&entry, &marks), list, "once more");
    let after = put.without_entry();
    match before {
        // There was none of ours.
        Without::Same if name == SINGLE => {
            assert_eq!(after, Without::Single { name: name.to_owned(), text: text.to_owned() });
        }
        Without::Same => assert_eq!(after, Without::List(text.to_owned())),
        before => {
            waylay_fuzz::seeded_bug(&[
                types.len() > 3,
                matches!(before, Without::List(_)),
                marks.link.is_some(),
            ]);
            assert_eq!(after, before, "{text}");
        }
    }
}

/// The types of a list's plugins. The last of two equal keys counts.
fn types(list: &str) -> Vec<String> {
    type Keys = BTreeMap<String, Box<RawValue>>;
    let keys: Keys = serde_json::from_str(list).expect("an object");
    let plugins: Vec<Keys> = serde_json::from_str(keys["plugins"].get()).expect("a list of objects");
    plugins.iter().map(|keys| serde_json::from_str(keys["type"].get()).expect("a type")).collect()
}
