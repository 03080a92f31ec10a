// SPDX-License-Identifier: Apache-2.0
//! The raw chains: conntrack zones for DNS. The proxy's upstream query and the application's own may share addresses
//! and ports; in one zone, one would inherit the other's redirection. The first zone that a packet is given stays.

use ruleset::{BaseChain, Chain, ChainType, Field, Hook, Operand, Rule, Statement};

use super::{Compiler, is, rule, udp};
use crate::config::ports;

/// `NF_IP_PRI_RAW`: before conntrack.
const PRIORITY: i32 = -300;
/// Zone of the proxy's side.
const PROXY: Statement = Statement::SetZone(1);
/// Zone of the application's side.
const APPLICATION: Statement = Statement::SetZone(2);

impl Compiler<'_> {
    /// Z1 to Z5.
    pub(super) fn raw_output(&mut self) -> Option<Chain> {
        if !self.config.captures_dns() {
            return None;
        }
        let mut rules = Vec::new();
        let query = is(Field::DstPort, Operand::Port(ports::DNS));
        let answer = is(Field::SrcPort, Operand::Port(ports::DNS_PROXY));
        let (uid, gid) = self.proxy();
        for proxy in [uid, gid].into_iter().flatten() {
            rules.push(rule(
                "dns_of_proxy",
                vec![udp(), query.clone(), proxy.clone()],
                vec![PROXY, Statement::Accept],
            ));
            let matches = vec![udp(), answer.clone(), proxy];
            rules.push(rule("dns_of_application", matches, vec![APPLICATION, Statement::Accept]));
        }
        for server in self.nameservers(Self::destination) {
            let matches = server.into_iter().chain([udp(), query.clone()]).collect();
            rules.push(rule("dns_of_application", matches, vec![APPLICATION]));
        }
        let base = BaseChain { kind: ChainType::Filter, hook: Hook::Output, priority: PRIORITY };
        self.chain("raw_output", base, rules)
    }

    /// Z6.
    pub(super) fn raw_prerouting(&mut self) -> Option<Chain> {
        if !self.config.captures_dns() {
            return None;
        }
        let mut rules: Vec<Rule> = Vec::new();
        for server in self.nameservers(Self::source) {
            let from = is(Field::SrcPort, Operand::Port(ports::DNS));
            let matches = server.into_iter().chain([udp(), from]).collect();
            rules.push(rule("dns_of_proxy", matches, vec![PROXY]));
        }
        let base = BaseChain { kind: ChainType::Filter, hook: Hook::Prerouting, priority: PRIORITY };
        self.chain("raw_prerouting", base, rules)
    }
}
