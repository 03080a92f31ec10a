// SPDX-License-Identifier: Apache-2.0
//! A table beside ours that writes down marks and conntrack zones, by the port of the probe.
//!
//! It must never change a packet. Its look at conntrack switches conntrack on, which a test about connections older
//! than that has to know.

use std::collections::HashMap;

use serde_json::Value;

use crate::netns::Netns;

/// Priorities: conntrack is at -200, the mangle chains at -150, NAT at -100.
const TABLE: &str = r#"
table inet observer {
	set zones { typeof udp sport . ct zone; flags dynamic; size 65535; }
	set lo_marks { typeof tcp sport . meta mark; flags dynamic; size 65535; }
	set marks { typeof tcp sport . meta mark; flags dynamic; size 65535; }
	set later_marks { typeof tcp sport . meta mark; flags dynamic; size 65535; }
	set connection_marks { typeof tcp sport . ct mark; flags dynamic; size 65535; }
	set answer_marks { typeof tcp dport . meta mark; flags dynamic; size 65535; }
	set answers { typeof udp dport; flags dynamic; size 65535; }
	chain sent {
		type filter hook output priority -199;
		ct direction original add @zones { udp sport . ct zone }
	}
	chain arrived {
		type filter hook prerouting priority -151;
		iif "lo" tcp flags & (syn | ack) == syn add @lo_marks { tcp sport . meta mark }
		iif "lo" tcp flags & (syn | ack) == (syn | ack) add @answer_marks { tcp dport . meta mark }
		ct direction reply add @answers { udp dport }
	}
	chain mangled {
		type filter hook prerouting priority -149;
		tcp flags & (syn | ack) == syn add @marks { tcp sport . meta mark }
		tcp flags & syn == 0 add @later_marks { tcp sport . meta mark }
		tcp flags & (syn | ack) == syn add @connection_marks { tcp sport . ct mark }
	}
}
"#;

/// What was seen, each by the port of the probe.
#[derive(Debug, Default)]
pub struct Observed(HashMap<(String, u16), Vec<u32>>);

/// Start observing in `netns`.
pub fn start(netns: &Netns) {
    netns.program("nft", &["-f", "-"], TABLE);
}

const SETS: [&str; 7] =
    ["zones", "lo_marks", "marks", "later_marks", "connection_marks", "answer_marks", "answers"];

/// What was seen in `netns` since [`start`] or the last call.
#[must_use]
pub fn take(netns: &Netns) -> Observed {
    let text = netns.program("nft", &["-j", "list", "table", "inet", "observer"], "");
    let listing: Value = serde_json::from_str(&text).unwrap();
    let mut observed = Observed::default();
    for set in listing["nftables"].as_array().unwrap().iter().filter_map(|object| object.get("set")) {
        for element in set["elem"].as_array().into_iter().flatten() {
            let numbers: Vec<u32> = match element.get("concat") {
                Some(parts) => parts.as_array().unwrap().iter().map(number).collect(),
                None => vec![number(element), 1],
            };
            let key = (set["name"].as_str().unwrap().to_owned(), u16::try_from(numbers[0]).unwrap());
            observed.0.entry(key).or_default().push(numbers[1]);
        }
    }
    let flush: String = SETS.iter().map(|set| format!("flush set inet observer {set}\n")).collect();
    netns.program("nft", &["-f", "-"], &flush);
    observed
}

fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap_or_else(|| panic!("{value} is not a number"))).unwrap()
}

impl Observed {
    /// The values seen for `port` in the set `name`.
    #[must_use]
    pub fn values(&self, name: &str, port: u16) -> &[u32] {
        self.0.get(&(name.to_owned(), port)).map_or(&[], Vec::as_slice)
    }
}
