// SPDX-License-Identifier: Apache-2.0
//! How long the same tables take over netlink and through `nft -f`, in fresh netns, taking turns.
//!
//! `apply_vs_nft [FILE.nft [ROUNDS]]` prints `{"ours_us": N, "nft_us": N}`, medians in microseconds. The file holds
//! tables of ours in nft syntax, as the redirect compiler renders them; without one, a table that has everything.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::tables::everything;
use common::{in_netns, netfilter_socket, nft, nftables};
use kernel::{Backend as _, Nftables};
use ruleset::{Family, Table};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let tables = match arguments.next() {
        // nft itself is the parser: load the file and read it back.
        Some(path) => in_netns(|| {
            nft(&std::fs::read_to_string(path).expect("read the tables"));
            nftables().observe().expect("tables of ours")
        }),
        None => vec![everything(Family::Inet)],
    };
    let rounds: usize = arguments.next().map_or(51, |n| n.parse().expect("a number of rounds"));
    let text: String = tables.iter().map(ruleset::render).collect();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(in_netns(|| over_netlink(&tables)));
        theirs.push(in_netns(|| time(|| nft(&text))));
    }
    let report = serde_json::json!({ "ours_us": median(ours), "nft_us": median(theirs) });
    #[allow(clippy::print_stdout, reason = "the report is what this program is for")]
    {
        println!("{report}");
    }
}

/// What the agent does with the socket that a plugin handed over; closing it comes after the answer.
fn over_netlink(tables: &[Table]) -> Duration {
    let socket = netfilter_socket();
    let mut kernel = None;
    let took = time(|| {
        let kernel = kernel.insert(Nftables::new(socket).expect("a netlink socket"));
        kernel.apply(tables).expect("the tables were accepted before");
    });
    drop(kernel);
    took
}

fn time(f: impl FnOnce()) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2].as_micros()
}
