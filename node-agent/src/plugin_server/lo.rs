// SPDX-License-Identifier: Apache-2.0
//! When `lo` may get `::6`.
//!
//! containerd runs the CNI plugin `loopback` beside the plugins before ours: it sets `lo` up, which gives it `::1`, lists its
//! addresses, and fails when there is another than `::1`. Between the two it needs less than 1 ms of a processor, for which
//! it may have to wait: as long as everybody else who wants one takes a turn.

use std::net::Ipv6Addr;
use std::time::Duration;
use std::{fs, thread};

use kernel::route::Address;

/// Without anybody who wants a processor. Ages are up to 10 ms too long (`ifa_cacheinfo`, linux/if_addr.h, counts in 1/100 s).
const IDLE: Duration = Duration::from_millis(12);
/// A turn: three times what the scheduler's slice is by default.
const TURN: Duration = Duration::from_millis(10);
/// As much as an ADD may wait for it, also on a node that is overloaded.
const LONGEST: Duration = Duration::from_secs(1);

/// Whether the runtime's plugin is through with `lo`, as things are now.
pub(super) fn is_settled(addresses: &[Address]) -> bool {
    let age = addresses.iter().find(|address| address.addr == Ipv6Addr::LOCALHOST).map(|address| address.age);
    age.is_some_and(|age| {
        age >= needed_age(&fs::read_to_string("/proc/loadavg").unwrap_or_default(), processors())
    })
}

/// Those that this process may use: a limit makes it wait for longer than it must.
fn processors() -> u32 {
    thread::available_parallelism().ok().and_then(|n| u32::try_from(n.get()).ok()).unwrap_or(1)
}

/// The age that `::1` must have, by the fourth field of proc_loadavg(5): `runnable/all`.
fn needed_age(loadavg: &str, processors: u32) -> Duration {
    let runnable = loadavg.split(' ').nth(3).and_then(|field| field.split('/').next()?.parse::<u32>().ok());
    // We are one of them.
    let others = runnable.map_or(u32::MAX, |runnable| runnable.saturating_sub(1));
    (IDLE + TURN.saturating_mul(others) / processors).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_grows_with_those_who_want_a_processor_up_to_a_limit() {
        for (loadavg, processors, milliseconds) in [
            ("0.1 0.2 0.3 1/300 42", 2, 12),
            ("0.1 0.2 0.3 3/300 42", 2, 22),
            ("70 50 30 71/900 42", 2, 362),
            ("70 50 30 71/900 42", 64, 22),
            ("0.1 0.2 0.3 9999/10000 42", 1, 1000),
            ("", 4, 1000),
        ] {
            assert_eq!(needed_age(loadavg, processors).as_millis(), milliseconds, "{loadavg}");
        }
    }

    #[test]
    fn without_its_own_address_lo_is_not_up() {
        assert!(!is_settled(&[]));
    }
}
