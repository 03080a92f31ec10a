// SPDX-License-Identifier: Apache-2.0
//! Named points before and after each send and receive, where a fault test may stop the process.
//!
//! Owns the names; must never do anything in a build without the feature `fault-injection`.

/// Called with the name of each point that is reached.
#[cfg(feature = "fault-injection")]
pub static HOOK: std::sync::OnceLock<fn(&'static str)> = std::sync::OnceLock::new();

/// The points of one operation, each a pair of before and after.
pub(crate) struct Points {
    pub(crate) send: [&'static str; 2],
    pub(crate) receive: [&'static str; 2],
}

macro_rules! points {
    ($($constant:ident $name:literal: $doc:literal;)*) => {
        $(
            #[doc = $doc]
            pub(crate) const $constant: Points = Points {
                send: [
                    concat!("kernel:", $name, ":send:before"),
                    concat!("kernel:", $name, ":send:after"),
                ],
                receive: [
                    concat!("kernel:", $name, ":receive:before"),
                    concat!("kernel:", $name, ":receive:after"),
                ],
            };
        )*
        /// The name of every point, so that a test can tell that it knows all of them.
        pub const POINTS: &[&str] = &[$(
            $constant.send[0], $constant.send[1], $constant.receive[0], $constant.receive[1],
        )*];
    };
}

points! {
    NF_BATCH "nf-batch": "The transaction that writes tables, and its acknowledgement.";
    NF_READ "nf-read": "Reading the tables that are there, when a first ADD finds the netns used before.";
    ROUTE_DUMP "route-dump": "Reading addresses.";
    ROUTE_REQUEST "route-request": "Adding or deleting an address, rule or route, and its acknowledgement.";
}

/// Say that `name` is reached.
#[inline]
pub(crate) fn point(name: &'static str) {
    #[cfg(feature = "fault-injection")]
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
    #[cfg(not(feature = "fault-injection"))]
    let _ = name;
}
