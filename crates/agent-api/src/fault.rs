// SPDX-License-Identifier: Apache-2.0
//! Kill points for the fault tests; without the feature `fault-injection` they are nothing at all.
//!
//! A process whose environment has `WAYLAY_FAULT=<point>` kills itself with SIGKILL when it reaches that point, as the
//! out-of-memory killer or a node failure would; with `<point>#<n>`, when it reaches it for the n-th time.

/// Every point on the agent's side of an exchange; those of the kernel back end and of the installer are listed there.
pub const POINTS: &[&str] = &[
    "agent:request:receive:before",
    "agent:request:receive:after",
    "agent:answer:send:before",
    "agent:answer:send:after",
];

/// Die here if the environment says so.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "fault-injection")]
    {
        use std::sync::atomic::{AtomicU32, Ordering};
        // The fault tests have a case for each listed point: one that is not listed must not go unnoticed.
        let listed_there = name.starts_with("kernel:") || name.starts_with("install:");
        assert!(POINTS.contains(&name) || listed_there, "point {name} is not listed");
        static CHOSEN: std::sync::OnceLock<(String, u32)> = std::sync::OnceLock::new();
        static REACHED: AtomicU32 = AtomicU32::new(0);
        let (chosen, nth) = CHOSEN.get_or_init(|| {
            let text = std::env::var("WAYLAY_FAULT").unwrap_or_default();
            match text.split_once('#') {
                Some((point, nth)) => (point.to_owned(), nth.parse().expect("a test gives a number")),
                None => (text, 1),
            }
        });
        if chosen == name && REACHED.fetch_add(1, Ordering::Relaxed) + 1 == *nth {
            // SAFETY: kill(2) with our own pid and a constant signal touches no memory of ours.
            #[allow(unsafe_code, reason = "nix's kill needs a feature that the plugin does without")]
            unsafe {
                nix::libc::kill(nix::libc::getpid(), nix::libc::SIGKILL);
            }
        }
    }
    let _ = name;
}
