// SPDX-License-Identifier: Apache-2.0
//! The mangle chains: TPROXY, and dropping what conntrack cannot place. They see every packet, so that what most
//! packets need to be let go comes first.

use ruleset::{BaseChain, Chain, ChainType, CtStates, Field, Hook, Operand, Rule, Statement};

use super::sets::from_passthrough;
use super::{Compiler, accept, in_lo, is, is_not, out_lo, rule, tcp};
use crate::config::{LOOP_MARK, Mode, TPROXY_MARK, ports};

/// `NF_IP_PRI_MANGLE`.
const PRIORITY: i32 = -150;

impl Compiler<'_> {
    /// T1 to T9.
    pub(super) fn mangle_prerouting(&mut self) -> Option<Chain> {
        let mut rules = Vec::new();
        let tproxy = self.config.mode == Mode::Tproxy;
        if tproxy && let Some(names) = self.interfaces("exclude_interfaces", &self.config.exclude_interfaces)
        {
            rules.push(accept("excluded_interface", vec![is(Field::IifName, names)]));
        }
        if self.config.drop_invalid {
            // TCP only: other protocols have no connection that a reset could kill.
            let invalid = is(Field::CtState, Operand::CtStates(CtStates::Invalid));
            rules.push(rule("invalid_dropped", vec![tcp(), invalid], vec![Statement::Drop]));
        }
        if tproxy {
            self.tproxy_capture(&mut rules);
        }
        let base = BaseChain { kind: ChainType::Filter, hook: Hook::Prerouting, priority: PRIORITY };
        self.chain("mangle_prerouting", base, rules)
    }

    /// T3 to T9.
    fn tproxy_capture(&mut self, rules: &mut Vec<Rule>) {
        let marked = is(Field::Mark, Operand::Number(TPROXY_MARK));
        let save = vec![Statement::SaveMark, Statement::Accept];
        rules.push(rule("proxy_as_client", vec![tcp(), marked], save));
        let Some(port) = self.captured_inbound_port() else { return };
        let families = self.config.families();
        for family in families {
            rules.push(accept("proxy_passthrough", vec![in_lo(), from_passthrough(*family)]));
        }
        // Calls inside the pod pass, those of the proxy to its own pod carry this mark.
        rules.push(accept("inside_pod", vec![in_lo(), is_not(Field::Mark, Operand::Number(LOOP_MARK))]));
        for family in families {
            rules.push(accept("loopback", vec![self.to_loopback(*family)]));
        }
        let placed = is(Field::CtState, Operand::CtStates(CtStates::EstablishedOrRelated));
        let divert = vec![Statement::SetMark(TPROXY_MARK), Statement::Accept];
        rules.push(rule("tproxy_divert", vec![tcp(), port.clone(), placed], divert));
        let capture =
            vec![Statement::Tproxy(ports::INBOUND), Statement::SetMark(TPROXY_MARK), Statement::Accept];
        rules.push(rule("inbound_capture", vec![tcp(), port.clone()], capture));
        // The tproxy statement does not match while nobody listens: without this the packet would reach the
        // application past the proxy.
        rules.push(rule("proxy_not_listening", vec![tcp(), port], vec![Statement::Drop]));
    }

    /// K1 to K5.
    pub(super) fn mangle_output(&mut self) -> Option<Chain> {
        if self.config.mode != Mode::Tproxy {
            return None;
        }
        let mut rules = Vec::new();
        if let Some(names) = self.interfaces("exclude_interfaces", &self.config.exclude_interfaces) {
            rules.push(accept("excluded_interface", vec![is(Field::OifName, names)]));
        }
        let marked = is(Field::Mark, Operand::Number(TPROXY_MARK));
        rules.push(accept("proxy_as_client", vec![tcp(), out_lo(), marked]));
        let (uid, gid) = self.proxy();
        for proxy in [uid, gid].into_iter().flatten() {
            for family in self.config.families() {
                let matches = vec![tcp(), out_lo(), self.beyond_loopback(*family), proxy.clone()];
                rules.push(rule("proxy_self_call", matches, vec![Statement::SetMark(LOOP_MARK)]));
            }
        }
        let connection = is(Field::CtMark, Operand::Number(TPROXY_MARK));
        rules.push(rule("answer_to_proxy", vec![tcp(), connection], vec![Statement::RestoreMark]));
        let base = BaseChain { kind: ChainType::Route, hook: Hook::Output, priority: PRIORITY };
        self.chain("mangle_output", base, rules)
    }
}
