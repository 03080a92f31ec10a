// SPDX-License-Identifier: Apache-2.0
//! The NAT chains: they see the first packet of a connection, and conntrack remembers the verdict for the rest.

use std::collections::BTreeSet;

use ruleset::{BaseChain, Chain, ChainType, Field, Hook, IpFamily, Match, Operand, Rule};

use super::sets::{from_passthrough, union};
use super::{Compiler, accept, is, is_not, out_lo, redirect, tcp, udp};
use crate::config::{
    Config, Dns, InboundPorts, Mode, OutboundCidrs, OwnerGroups, Prefixes, TPROXY_MARK, ports,
};

/// `NF_IP_PRI_NAT_DST`; on the output hook, too: upstream's chains sit there.
const PRIORITY: i32 = -100;

impl Compiler<'_> {
    /// What local processes send, in either mode.
    pub(super) fn nat_output(&mut self) -> Option<Chain> {
        let mut rules = Vec::new();
        self.exclusions(&mut rules);
        self.proxy_traffic(&mut rules);
        if self.owner_filter(&mut rules) {
            self.dns_capture(&mut rules);
            self.outbound_capture(&mut rules);
        }
        let base = BaseChain { kind: ChainType::Nat, hook: Hook::Output, priority: PRIORITY };
        self.chain("nat_output", base, rules)
    }

    /// O1 to O3.
    fn exclusions(&mut self, rules: &mut Vec<Rule>) {
        if let Some(names) = self.interfaces("exclude_interfaces", &self.config.exclude_interfaces) {
            rules.push(accept("excluded_interface", vec![is(Field::OifName, names)]));
        }
        if let Some(ports) = self.ports("outbound_ports_exclude", &self.config.outbound_ports_exclude) {
            let matches = vec![self.tcp_or_udp(), is(Field::DstPort, ports)];
            rules.push(accept("excluded_outbound_port", matches));
        }
        for family in self.config.families() {
            rules.push(accept("proxy_passthrough", vec![out_lo(), from_passthrough(*family)]));
        }
    }

    /// O4 to O9: the proxy's own traffic, and what stays inside the pod.
    fn proxy_traffic(&mut self, rules: &mut Vec<Rule>) {
        let (uid, gid) = self.proxy();
        if let Some(uid) = uid {
            self.self_calls(&uid, rules);
            rules.push(accept("proxy_traffic", vec![uid]));
        }
        let includes_loopback = self.config.includes_loopback();
        if !includes_loopback {
            let mut matches = vec![out_lo()];
            if self.config.captures_dns() {
                // A resolver on localhost is captured, too: port 53 over TCP and all of UDP have to go on to O11.
                matches.extend([tcp(), is_not(Field::DstPort, Operand::Port(ports::DNS))]);
            }
            rules.push(accept("inside_pod", matches));
        }
        if let Some(gid) = gid {
            // Without a loopback prefix among the included ones, the rule above decided all but DNS on lo.
            if includes_loopback {
                self.self_calls(&gid, rules);
            }
            // The owner filter, next, takes care of groups that are not listed.
            let listed = |groups: &BTreeSet<u32>| !groups.is_disjoint(&self.config.proxy.gids);
            if !matches!(&self.config.owner_groups, OwnerGroups::Only(groups) if !listed(groups)) {
                rules.push(accept("proxy_traffic", vec![gid]));
            }
        }
    }

    /// O4, O7: the proxy calls its own pod by an address that is not loopback, as when a service resolves to the
    /// caller itself. The packet never meets the prerouting hook, so it is sent to the inbound listener from here.
    fn self_calls(&mut self, proxy: &Match, rules: &mut Vec<Rule>) {
        let mut direct = BTreeSet::from([ports::TUNNEL]);
        if self.config.captures_dns() {
            direct.insert(ports::DNS);
        }
        for family in self.config.families() {
            let mut matches = vec![proxy.clone(), out_lo(), self.beyond_loopback(*family), tcp()];
            matches
                .extend(self.ports("self_call_exclude", &direct).map(|ports| is_not(Field::DstPort, ports)));
            rules.push(redirect("proxy_self_call", matches, ports::INBOUND));
        }
    }

    /// O10. Returns whether anything can get past it.
    fn owner_filter(&mut self, rules: &mut Vec<Rule>) -> bool {
        match &self.config.owner_groups {
            OwnerGroups::AllBut(gids) => {
                if let Some(gids) = self.gids("owner_groups", gids) {
                    rules.push(accept("owner_group", vec![is(Field::SkGid, gids)]));
                }
                true
            }
            OwnerGroups::Only(gids) => match self.gids("owner_groups", gids) {
                Some(gids) => {
                    rules.push(accept("owner_group", vec![is_not(Field::SkGid, gids)]));
                    true
                }
                None => false,
            },
        }
    }

    /// O11.
    fn dns_capture(&mut self, rules: &mut Vec<Rule>) {
        if !self.config.captures_dns() {
            return;
        }
        for server in self.nameservers(Self::destination) {
            // A rule for each protocol: nft(8) does not take a redirect behind a set of protocols.
            for protocol in [udp(), tcp()] {
                let query = [protocol, is(Field::DstPort, Operand::Port(ports::DNS))];
                let matches = server.clone().into_iter().chain(query).collect();
                rules.push(redirect("dns_capture", matches, ports::DNS_PROXY));
            }
        }
    }

    /// O12 to O16.
    fn outbound_capture(&mut self, rules: &mut Vec<Rule>) {
        let config = self.config;
        for family in config.families().iter().filter(|family| config.captures_outbound(**family)) {
            rules.extend(self.excluded_destination(*family, None));
        }
        if let OutboundCidrs::Only(take) = &config.outbound {
            if let Some(ports) = self.ports("outbound_ports", &config.outbound_ports) {
                let matches = vec![tcp(), is(Field::DstPort, ports)];
                rules.push(redirect("included_outbound_port", matches, ports::OUTBOUND));
            }
            for family in config.families() {
                if let Some(destination) = self.destination("take", take, *family) {
                    rules.push(redirect("outbound_capture", vec![destination, tcp()], ports::OUTBOUND));
                }
            }
        } else {
            rules.push(redirect("outbound_capture", vec![tcp()], ports::OUTBOUND));
        }
    }

    /// What arrives, from the network or from a machine behind an interface of the pod.
    pub(super) fn nat_prerouting(&mut self) -> Option<Chain> {
        let mut rules = Vec::new();
        let inbound = self.inbound_capture();
        if let Some(names) = self.interfaces("reroute_interfaces", &self.config.reroute_interfaces) {
            let arrived = is(Field::IifName, names);
            self.reroute(&arrived, &mut rules);
            if inbound.is_some() && self.config.outbound != OutboundCidrs::All {
                rules.push(accept("rerouted_interface", vec![arrived]));
            }
        }
        if let Some(inbound) = inbound {
            if let Some(names) = self.interfaces("exclude_interfaces", &self.config.exclude_interfaces) {
                rules.push(accept("excluded_interface", vec![is(Field::IifName, names)]));
            }
            rules.push(inbound);
        }
        let base = BaseChain { kind: ChainType::Nat, hook: Hook::Prerouting, priority: PRIORITY };
        self.chain("nat_prerouting", base, rules)
    }

    /// O12 and O13, for what `arrived` so or for all.
    fn excluded_destination(&mut self, family: IpFamily, arrived: Option<&Match>) -> Option<Rule> {
        let config = self.config;
        let mut skip = config.outbound_exclude.clone();
        // Only then does a packet to loopback get there: O5 took the others, or O11 all of port 53.
        if config.includes_loopback() || matches!(config.dns, Dns::Nameservers(_)) && config.captures_dns() {
            skip = union(&self.loopback(), &skip);
        }
        let destination = self.destination("skip", &skip, family)?;
        Some(accept("excluded_destination", arrived.cloned().into_iter().chain([destination]).collect()))
    }

    /// P1. What is excluded for the pod's own traffic is for that of the machine behind it.
    fn reroute(&mut self, arrived: &Match, rules: &mut Vec<Rule>) {
        let families = self.config.families().iter().filter(|family| match &self.config.outbound {
            OutboundCidrs::All => true,
            OutboundCidrs::Only(take) => takes(take, **family),
        });
        let families: Vec<IpFamily> = families.copied().collect();
        if families.is_empty() {
            return;
        }
        if let Some(ports) = self.ports("outbound_ports_exclude", &self.config.outbound_ports_exclude) {
            let matches = vec![arrived.clone(), tcp(), is(Field::DstPort, ports)];
            rules.push(accept("excluded_outbound_port", matches));
        }
        for family in families {
            rules.extend(self.excluded_destination(family, Some(arrived)));
        }
        let mut matches = vec![arrived.clone(), tcp()];
        if self.config.mode == Mode::Tproxy {
            // What went to the transparent listener keeps its destination: it is the only record of it.
            matches.push(is_not(Field::Mark, Operand::Number(TPROXY_MARK)));
        }
        match &self.config.outbound {
            OutboundCidrs::All => rules.push(redirect("rerouted_interface", matches, ports::OUTBOUND)),
            OutboundCidrs::Only(take) => {
                for family in self.config.families() {
                    if let Some(destination) = self.destination("take", take, *family) {
                        let matches = matches.iter().cloned().chain([destination]).collect();
                        rules.push(redirect("rerouted_interface", matches, ports::OUTBOUND));
                    }
                }
            }
        }
    }

    /// P4 to P6.
    fn inbound_capture(&mut self) -> Option<Rule> {
        if self.config.mode != Mode::Redirect {
            return None;
        }
        let port = self.captured_inbound_port()?;
        Some(redirect("inbound_capture", vec![tcp(), port], ports::INBOUND))
    }

    /// "Destination port is one that inbound capture takes", or nothing when it takes none. The tunnel port has a
    /// listener of its own in either mode.
    pub(super) fn captured_inbound_port(&mut self) -> Option<Match> {
        match &self.config.inbound {
            InboundPorts::All => {
                let mut exclude = self.config.inbound_exclude.clone();
                exclude.insert(ports::TUNNEL);
                self.ports("inbound_ports_exclude", &exclude).map(|ports| is_not(Field::DstPort, ports))
            }
            InboundPorts::Only(include) => {
                let mut include = include.clone();
                include.remove(&ports::TUNNEL);
                self.ports("inbound_ports", &include).map(|ports| is(Field::DstPort, ports))
            }
        }
    }
}

impl Config {
    /// Whether some outbound TCP of this family may be captured.
    fn captures_outbound(&self, family: IpFamily) -> bool {
        match &self.outbound {
            OutboundCidrs::All => true,
            OutboundCidrs::Only(prefixes) => takes(prefixes, family) || !self.outbound_ports.is_empty(),
        }
    }
}

fn takes(prefixes: &Prefixes, family: IpFamily) -> bool {
    match family {
        IpFamily::V4 => !prefixes.v4.is_empty(),
        IpFamily::V6 => !prefixes.v6.is_empty(),
    }
}
