// SPDX-License-Identifier: Apache-2.0
//! How old something is that the kernel stamped with its tick counter: `cstamp` of an address, in 10 ms since boot.
//!
//! The counter lags behind the clocks of clock_gettime(2) by what booting took, half a second on some machines. Only times(2)
//! reads the counter itself, with a start that depends on how many ticks a second the kernel was built with.

use std::time::Duration;

use nix::libc;
use nix::time::{ClockId, clock_gettime};

/// `CONFIG_HZ` of the architectures that we run on.
const RATES: [u64; 4] = [100, 250, 300, 1000];
/// Of a stamp, in a second (`USER_HZ`).
const UNITS: u64 = 100;

/// The time since `stamp`, at most 10 ms too long; half the counter's range and more is taken as the future, so 0.
pub(crate) fn since(stamp: u32) -> Duration {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec().cast_unsigned());
    let now = now(times(), uptime.saturating_mul(UNITS));
    // Both wrap after 497 days.
    let passed = now.wrapping_sub(stamp).cast_signed().max(0).cast_unsigned();
    Duration::from_millis(u64::from(passed) * (1000 / UNITS))
}

/// times(2) counts from 2^32 ticks less 300 s before the boot; wrong rates are wrong by a month and more.
#[allow(clippy::cast_possible_truncation, reason = "a stamp is the lower half too")]
fn now(times: u64, uptime: u64) -> u32 {
    let at = |rate: u64| times.wrapping_sub((1 << 32) * UNITS / rate).wrapping_add(300 * UNITS);
    RATES.map(at).into_iter().min_by_key(|now| now.abs_diff(uptime)).unwrap_or_default() as u32
}

#[allow(unsafe_code, reason = "nix has no wrapper for it")]
fn times() -> u64 {
    // SAFETY: with a null pointer times(2) only returns a number.
    unsafe { libc::times(std::ptr::null_mut()) }.cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_the_kernel_is_found_at_any_uptime() {
        for rate in RATES {
            for uptime in [0, 30, 86_400 * 1000] {
                let ticks = (1 << 32) - 300 * rate + uptime * rate;
                // The counter lags by half a second.
                assert_eq!(now(ticks * UNITS / rate, uptime * UNITS + 50), (uptime * UNITS) as u32, "{rate}");
            }
        }
    }

    #[test]
    fn a_stamp_of_the_future_has_no_age() {
        let now = now(times(), clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().tv_sec() as u64 * UNITS);
        assert_eq!(since(now + 100), Duration::ZERO);
        let age = since(now.wrapping_sub(100));
        assert!((1000..2000).contains(&age.as_millis()), "{age:?}");
    }
}
