// SPDX-License-Identifier: Apache-2.0
//! Which attachments this process has redirected, so that CHECK can tell rules that are gone from rules that never were.
//!
//! And what became of those heard of last, for people. In memory and bounded: after a restart of the agent, or beyond [`LIMIT`], an empty netns counts as never redirected.

use std::collections::{BTreeMap, HashMap};

use agent_api::Sandbox;

use super::recent::{Attachment, Event, Recent, Verb};

/// Attachments remembered; a node runs a few hundred.
const LIMIT: usize = 4096;
/// Longest name of an attachment in bytes; container ids have 64. What is longer is not remembered.
const LONGEST: usize = 512;

/// The names of redirected attachments.
#[derive(Debug, Default)]
pub(crate) struct Records {
    by_id: HashMap<String, u64>,
    by_age: BTreeMap<u64, String>,
    next: u64,
    recent: Recent,
}

impl Records {
    /// Remember `id`; the one remembered longest goes when there are too many.
    pub(crate) fn insert(&mut self, id: &str) {
        self.remove(id);
        if id.len() > LONGEST {
            return;
        }
        self.by_id.insert(id.to_owned(), self.next);
        self.by_age.insert(self.next, id.to_owned());
        self.next += 1;
        if self.by_id.len() > LIMIT
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.by_id.remove(&oldest);
        }
    }

    /// Forget `id`.
    pub(crate) fn remove(&mut self, id: &str) {
        if let Some(age) = self.by_id.remove(id) {
            self.by_age.remove(&age);
        }
    }

    /// Whether `id` was redirected, as far as is remembered.
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    /// Remember for people what happened to `sandbox`.
    pub(crate) fn see(&mut self, sandbox: &Sandbox, verb: Verb, event: Event) {
        self.recent.see(sandbox, verb, event);
    }

    /// What happened to the sandboxes heard of last, the newest last.
    pub(crate) fn recent(&self) -> impl DoubleEndedIterator<Item = &Attachment> {
        self.recent.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first_and_both_maps_stay_bounded() {
        let mut records = Records::default();
        for number in 0..LIMIT {
            records.insert(&number.to_string());
        }
        records.insert("0");
        records.insert("one more");
        assert!(records.contains("0") && records.contains("one more") && !records.contains("1"));
        assert_eq!((records.by_id.len(), records.by_age.len()), (LIMIT, LIMIT));
        records.remove("0");
        assert!(!records.contains("0"));
        assert_eq!((records.by_id.len(), records.by_age.len()), (LIMIT - 1, LIMIT - 1));
        records.insert(&"x".repeat(LONGEST + 1));
        assert_eq!((records.by_id.len(), records.by_age.len()), (LIMIT - 1, LIMIT - 1));
    }
}
