// SPDX-License-Identifier: Apache-2.0
//! Where pods are known from. Owns the question "which pod is this sandbox?"; must never know rules or sockets.

mod directory;
mod index;
mod manifest;

use std::pin::Pin;
use std::sync::Arc;

use redirect::Pod;
use tokio::time::Instant;

pub(crate) use directory::Directory;

/// A pod as the runtime names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    /// Namespace.
    pub(crate) namespace: &'a str,
    /// Name.
    pub(crate) name: &'a str,
    /// UID; old runtimes send none.
    pub(crate) uid: Option<&'a str>,
}

/// Why there is no such pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Absent {
    /// Nothing of that name came in time.
    #[error("not found in {place}")]
    Unknown {
        /// Where to look.
        place: String,
    },
    /// There is one of that name, but it is another pod: the sandbox's own was replaced, or is not there yet.
    #[error("{place} has a pod of that name with uid {uid}, another one")]
    OtherUid {
        /// Where to look.
        place: String,
        /// The uid found there.
        uid: String,
    },
}

/// The answer, some time before the deadline.
pub(crate) type Found<'a> = Pin<Box<dyn Future<Output = Result<Arc<Pod>, Absent>> + Send + 'a>>;

/// A place that knows pods.
pub(crate) trait PodSource: Send + Sync {
    /// The pod of that name, waiting for it until `deadline`: the runtime may start a pod before the source hears of it.
    fn find<'a>(&'a self, key: Key<'a>, deadline: Instant) -> Found<'a>;
}
