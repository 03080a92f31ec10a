// SPDX-License-Identifier: Apache-2.0
//! No bytes make the decoders panic.

mod common;

use common::tables::everything;
use proptest::prelude::*;
use ruleset::Family;

fn decode(bytes: &[u8]) {
    kernel::decode_datagram(bytes);
    kernel::decode_answers(bytes);
    kernel::route::decode_address_payload(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        decode(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_tables_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..60),
        cut in any::<prop::sample::Index>(),
    ) {
        // The messages that write a table are, but for numbers in their headers, those that list it.
        let mut bytes = kernel::encode_batch(&[everything(Family::Inet)]).unwrap();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decode(&bytes[..cut.index(bytes.len())]);
        decode(&bytes);
    }
}
