// SPDX-License-Identifier: Apache-2.0
//! A message between plugin and agent, read as each of the three kinds. Whatever comes: no panic, and a message that is read
//! is the same after writing and reading it again.
#![no_main]

use std::fmt::Debug;

use agent_api::{Answer, DecodeError, Notice, PROTOCOL, Request};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let request = survives(data, Request::decode, Request::encode);
    let answer = survives(data, Answer::decode, Answer::encode);
    let notice = survives(data, Notice::decode, Notice::encode);
    let accepted = request.is_some() || answer.is_some() || notice.is_some();
    if let Some(request) = request {
        assert_eq!(PROTOCOL.overlaps(request.protocol), request.protocol.overlaps(PROTOCOL));
        let annotations = request.annotations.map_or(0, |annotations| annotations.len());
        waylay_fuzz::seeded_bug(&[request.wait_ms > 1_000_000_000, annotations > 1]);
    }
    waylay_fuzz::keep(accepted)
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    waylay_fuzz::mutate_text(data, size, max_size, seed)
});

fn survives<T: Debug + PartialEq>(
    data: &[u8],
    decode: fn(&[u8]) -> Result<T, DecodeError>,
    encode: fn(&T) -> Vec<u8>,
) -> Option<T> {
    let message = decode(data).ok()?;
    let bytes = encode(&message);
    let again = decode(&bytes).expect("what we write can be read");
    assert_eq!(again, message);
    assert_eq!(encode(&again), bytes);
    Some(message)
}
