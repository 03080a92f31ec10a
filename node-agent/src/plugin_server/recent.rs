// SPDX-License-Identifier: Apache-2.0
//! What became of the sandboxes that were heard of last, for people who ask. In memory and bounded, in number and in the
//! length of each text: a peer's text may be as long as a message.

use std::collections::VecDeque;
use std::time::SystemTime;

use agent_api::Sandbox;
use serde::{Serialize, Serializer};

use crate::observability::view::unix_ms;

/// Attachments remembered: more than a node runs.
const LIMIT: usize = 512;
/// Longest name of anything, in bytes, as Kubernetes has it for pods.
const NAME: usize = 253;
/// Longest message.
const MESSAGE: usize = 512;

/// One attachment: what came of its ADD, and what happened since.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Attachment {
    namespace: String,
    pod: String,
    uid: String,
    container_id: String,
    ifname: String,
    /// Inode of the netns, 0 while unknown.
    netns_inode: u64,
    /// What is done with the pod's IPv6, if rules were written.
    ipv6: Option<&'static str>,
    add: Option<Event>,
    check: Option<Event>,
    del: Option<Event>,
}

/// What was decided, and when.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Event {
    /// `done`, `fail`, `retry`, or `told` when the plugin did without the agent.
    pub(crate) result: &'static str,
    /// The reason code.
    pub(crate) reason: &'static str,
    /// What the plugin was told, if it was more.
    pub(crate) message: String,
    /// When.
    #[serde(rename = "time_unix_ms", serialize_with = "milliseconds")]
    pub(crate) time: SystemTime,
}

/// Which verb an [`Event`] belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// ADD, with the inode of the netns and what is done with IPv6.
    Add(u64, Option<&'static str>),
    /// CHECK.
    Check,
    /// DEL.
    Del,
}

/// The attachments heard of last, the newest last.
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<Attachment>);

impl Event {
    /// It happened now.
    pub(crate) fn now(result: &'static str, reason: &'static str, message: &str) -> Self {
        Self { result, reason, message: cut(message, MESSAGE), time: SystemTime::now() }
    }
}

impl Recent {
    /// `event` happened to `sandbox`. What is only removed, and was not known, stays unknown.
    pub(crate) fn see(&mut self, sandbox: &Sandbox, verb: Verb, event: Event) {
        let (id, ifname) = (cut(&sandbox.container_id, NAME), cut(&sandbox.ifname, NAME));
        let known = self.0.iter().rposition(|a| a.container_id == id && a.ifname == ifname);
        let mut attachment = match known.and_then(|index| self.0.remove(index)) {
            Some(attachment) => attachment,
            None if verb == Verb::Del => return,
            None => Attachment {
                namespace: cut(&sandbox.namespace, NAME),
                pod: cut(&sandbox.name, NAME),
                uid: cut(sandbox.uid.as_deref().unwrap_or_default(), NAME),
                container_id: id,
                ifname,
                netns_inode: 0,
                ipv6: None,
                add: None,
                check: None,
                del: None,
            },
        };
        match verb {
            Verb::Add(inode, ipv6) => {
                (attachment.netns_inode, attachment.ipv6) = (inode, ipv6);
                (attachment.add, attachment.check, attachment.del) = (Some(event), None, None);
            }
            Verb::Check => attachment.check = Some(event),
            // Runtimes send several.
            Verb::Del => attachment.del = attachment.del.or(Some(event)),
        }
        self.0.push_back(attachment);
        if self.0.len() > LIMIT {
            self.0.pop_front();
        }
    }

    /// All of them, the newest last.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Attachment> {
        self.0.iter()
    }
}

/// At most `len` bytes of `text`.
fn cut(text: &str, len: usize) -> String {
    text[..text.floor_char_boundary(len)].to_owned()
}

fn milliseconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(unix_ms(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> Sandbox {
        Sandbox {
            container_id: id.to_owned(),
            ifname: "eth0".to_owned(),
            namespace: "n".repeat(100_000),
            name: "ä".repeat(1000),
            uid: None,
        }
    }

    #[test]
    fn number_and_length_are_bounded_and_the_oldest_goes_first() {
        let mut recent = Recent::default();
        for number in 0..=LIMIT {
            let event = Event::now("fail", "busy", &"m".repeat(100_000));
            recent.see(&sandbox(&number.to_string()), Verb::Add(1, None), event);
        }
        assert_eq!(recent.0.len(), LIMIT);
        assert_eq!(recent.iter().next().unwrap().container_id, "1");
        let last = recent.iter().next_back().unwrap();
        assert_eq!(
            (last.container_id.as_str(), last.namespace.len(), last.pod.len()),
            (LIMIT.to_string().as_str(), 253, 252)
        );
        assert_eq!(last.add.as_ref().unwrap().message.len(), MESSAGE);
    }

    #[test]
    fn an_attachment_is_one_entry_with_its_last_add_check_and_first_del() {
        let mut recent = Recent::default();
        let (one, other) = (sandbox("a"), sandbox("b"));
        recent.see(&one, Verb::Del, Event::now("told", "", ""));
        assert_eq!(recent.0.len(), 0);
        recent.see(&one, Verb::Add(7, Some("ipv6_bypass")), Event::now("done", "programmed", ""));
        recent.see(&other, Verb::Check, Event::now("done", "not_redirected", ""));
        recent.see(&one, Verb::Check, Event::now("fail", "rules_gone", "x"));
        for reason in ["first", "second"] {
            recent.see(&one, Verb::Del, Event::now("told", reason, ""));
        }
        let [b, a] = recent.0.make_contiguous() else { panic!("{recent:?}") };
        let reason = |event: &Option<Event>| event.as_ref().map(|event| event.reason);
        assert_eq!(
            (reason(&a.add), reason(&a.check), reason(&a.del)),
            (Some("programmed"), Some("rules_gone"), Some("first"))
        );
        assert_eq!((a.netns_inode, a.ipv6), (7, Some("ipv6_bypass")));
        assert_eq!((reason(&b.add), reason(&b.check), reason(&b.del)), (None, Some("not_redirected"), None));
        recent.see(&one, Verb::Add(8, None), Event::now("done", "programmed", ""));
        let a = recent.iter().next_back().unwrap();
        assert_eq!((reason(&a.check), reason(&a.del), a.netns_inode), (None, None, 8));
    }
}
