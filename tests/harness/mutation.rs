// SPDX-License-Identifier: Apache-2.0
//! Whether packets notice that a rule is missing.

use ruleset::{Fingerprint, Plan, Table};

use crate::cases;
use crate::check::{self, Case, Until};
use crate::lab::{Lab, Servers};
use crate::matrix::Settings;
use crate::packet::{Protocol, Verdict, Way};
use crate::sequence;

/// A port that inbound capture leaves alone in all settings.
const EXCLUDED: u16 = 15090;

/// A table less one rule.
pub struct Mutant {
    /// Chain of the rule.
    pub chain: String,
    /// Its reason code.
    pub reason: String,
    /// The rule in nft syntax.
    pub rule: String,
    /// The rest.
    pub table: Table,
}

/// Every table that is `table` less one rule.
#[must_use]
pub fn mutants(table: &Table) -> Vec<Mutant> {
    let mut mutants = Vec::new();
    for (chain, rules) in table.chains.iter().map(|chain| &chain.rules).enumerate() {
        for index in 0..rules.len() {
            let mut rest = table.clone();
            let rule = rest.chains[chain].rules.remove(index);
            mutants.push(Mutant {
                chain: rest.chains[chain].name.clone(),
                reason: rule.reason.clone(),
                rule: rule.to_string(),
                table: Fingerprint::seal(rest),
            });
        }
    }
    mutants
}

/// The labs in which the rules of some settings show.
pub struct Rig {
    plan: Plan,
    servers: Servers,
    cases: Vec<Case>,
    main: Lab,
    /// Without an inbound listener, in TPROXY mode with inbound capture.
    deaf: Option<Lab>,
    /// With what captures and nothing else, where invalid segments are dropped.
    empty: Option<Lab>,
    /// With a DNS proxy that has one of the proxy's ids, where DNS is captured.
    halves: Vec<(Lab, Vec<Case>)>,
}

impl Rig {
    /// Labs for `settings`, with `rows` besides the generated packets.
    #[must_use]
    pub fn new(settings: &Settings, rows: Vec<Case>) -> Self {
        let plan = redirect::compile(&settings.config());
        let servers = Servers::of(settings);
        let mut cases: Vec<Case> =
            rows.into_iter().chain(cases::generate(settings).into_iter().map(|(case, _)| case)).collect();
        // Silence takes long to notice. Answers to forwarded connections are not what any rule is there for.
        cases
            .retain(|case| case.expected.verdict != Verdict::Drop || matches!(case.packet.way, Way::Out(..)));
        let captures = settings.value("mode") == "TPROXY" && !settings.value("in_include").is_empty();
        let lab = |servers| Lab::programmed(servers, &plan);
        let queries: Vec<Case> = cases
            .iter()
            .filter(|case| {
                case.packet.protocol == Protocol::Udp && case.expected.verdict == Verdict::Redirect(15053)
            })
            .cloned()
            .collect();
        let halves =
            if queries.is_empty() { Vec::new() } else { sequence::halves(settings.proxy()).to_vec() };
        Self {
            main: lab(servers),
            deaf: captures.then(|| lab(Servers { inbound: false, ..servers })),
            empty: settings.flag("drop_invalid").then(|| lab(Servers { others: false, ..servers })),
            halves: halves
                .into_iter()
                .map(|proxy| (lab(Servers { proxy, ..servers }), queries.clone()))
                .collect(),
            cases: scattered(cases),
            servers,
            plan,
        }
    }

    /// The complete table.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.plan.tables[0]
    }

    /// What goes wrong with the complete table, or nothing.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let table = self.plan.tables[0].clone();
        self.failure_with(&table, Until::End)
    }

    /// What goes wrong with `mutant` in the place of the complete table, or nothing; `until` the first failure where one
    /// is expected.
    pub fn notice(&mut self, mutant: &Mutant, until: Until) -> Option<String> {
        const PORTS: u16 = 30_000;
        if self.main.probes() > PORTS {
            self.main = Lab::programmed(self.servers, &self.plan);
        }
        self.failure_with(&mutant.table, until)
    }

    fn failure_with(&self, table: &Table, until: Until) -> Option<String> {
        let main = (&self.main, &self.cases);
        for (lab, cases) in [main].into_iter().chain(self.halves.iter().map(|(lab, cases)| (lab, cases))) {
            lab.apply(std::slice::from_ref(table));
            if let Some(failure) = check::run(lab, cases, until).into_iter().next() {
                return Some(failure);
            }
        }
        if let Some(lab) = &self.deaf {
            lab.apply(std::slice::from_ref(table));
            let captured = |case: &&Case| {
                case.expected.verdict == Verdict::Tproxy(15006) && case.packet.way == Way::In("eth0")
            };
            let case = self.cases.iter().find(captured).expect("settings with inbound capture");
            if !sequence::capture_without_listener_is_dropped(lab, &case.packet) {
                return Some(format!("{}: not dropped while nobody listens", case.packet));
            }
            if !sequence::tracked_connection_survives(&self.main, table) {
                return Some("a connection to the application from before the rules breaks".to_owned());
            }
        }
        let empty = self.empty.as_ref().filter(|lab| !sequence::invalid_is_dropped(lab, table, EXCLUDED));
        empty.map(|_| "an invalid segment is not dropped".to_owned())
    }
}

/// In an order in which neighbours differ, so that a missing rule shows soon; silence last.
fn scattered(cases: Vec<Case>) -> Vec<Case> {
    const STRIDE: usize = 607;
    let mut scattered: Vec<Case> =
        (0..cases.len()).map(|i| cases[i * STRIDE % cases.len()].clone()).collect();
    scattered.sort_by_key(|case| case.expected.verdict == Verdict::Drop);
    scattered
}
