// SPDX-License-Identifier: Apache-2.0
//! Where pods are known from. Owns the question "which pod is this sandbox?"; must never know rules or sockets.

mod cluster;
mod directory;
mod error;
mod index;
mod manifest;
mod object;
mod store;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use redirect::Pod;
use tokio::time::Instant;

pub(crate) use cluster::{Cluster, Seen, Watching, client};
pub(crate) use directory::Directory;
pub(crate) use error::chain;
pub(crate) use object::Entry;

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

/// What a sandbox is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// This pod.
    Pod(Arc<Pod>),
    /// A manifest on the node's own disk, which the API server only mirrors: nothing was injected into it.
    Static,
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
    /// The runtime sent no UID, and the pod of that name is being deleted: its successor is not there yet.
    #[error(
        "the pod of that name in {place} is being deleted, and the runtime sent no uid to tell it from the next"
    )]
    Terminating {
        /// Where to look.
        place: String,
    },
    /// Its namespace is not known, whose labels decide.
    #[error("its namespace is not among those known to the agent")]
    Namespace,
    /// It is not among the pods that are known, and asking for it failed.
    #[error("not among the pods known to the agent, and {place} could not be asked: {error}")]
    Unreachable {
        /// Who was asked.
        place: String,
        /// Why there was no answer.
        error: String,
    },
}

/// The answer, some time before the deadline.
pub(crate) type Found<'a> = Pin<Box<dyn Future<Output = Result<Known, Absent>> + Send + 'a>>;

/// Labels, or why they are not known.
pub(crate) type Labels<'a> =
    Pin<Box<dyn Future<Output = Result<BTreeMap<String, String>, Absent>> + Send + 'a>>;

/// A place that knows pods.
pub(crate) trait PodSource: Send + Sync {
    /// The pod of that name, waiting for it until `deadline`: the runtime may start a pod before the source hears of it.
    /// A source that can ask somebody does so then, which takes a while longer.
    fn find<'a>(&'a self, key: Key<'a>, deadline: Instant) -> Found<'a>;

    /// The labels of a namespace, waiting for it until `deadline`; a source without namespaces has none.
    fn namespace_labels<'a>(&'a self, _namespace: &'a str, _deadline: Instant) -> Labels<'a> {
        Box::pin(async { Ok(BTreeMap::new()) })
    }
}
