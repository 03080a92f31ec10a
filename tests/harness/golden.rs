// SPDX-License-Identifier: Apache-2.0
//! The directories in `tests/golden/`: a pod, and what becomes of its packets. What is in them: `tests/golden.rs`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use redirect::{Config, Container, Decision, Ipv6Decision, Pod, compile, decide, decide_ipv6};
use ruleset::Plan;
use serde::Deserialize as _;
use serde_json::Value;

use crate::check::Case;
use crate::packet::{Expected, Ids, Packet, Protocol, Verdict, Way};
use crate::topology;

/// One directory.
pub struct Golden {
    /// Its name.
    pub name: &'static str,
    /// Where it is.
    pub dir: PathBuf,
    /// The pod, as the API server has it.
    pub document: Value,
    /// What is read of it.
    pub pod: Pod,
    /// Addresses that the network plugins gave the pod.
    pub addresses: Vec<IpAddr>,
    /// Rows of its traffic.
    pub rows: Vec<Case>,
    /// Rows for a time when the proxy does not listen yet.
    pub early: Vec<Case>,
    /// Verdicts of segments of no connection, by port.
    pub invalid: Vec<(u16, Verdict)>,
}

impl Golden {
    /// Read the directory `name`.
    #[must_use]
    pub fn load(name: &'static str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
        let read =
            |file| std::fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
        let options = serde_saphyr::options! { strict_booleans: true };
        let document: Value = serde_saphyr::from_str_with_options(&read("pod.yaml"), options).unwrap();
        let addresses = document["status"]["podIPs"].as_array().unwrap();
        let addresses = addresses.iter().map(|item| item["ip"].as_str().unwrap().parse().unwrap()).collect();
        let mut golden = Self {
            name,
            pod: Pod::deserialize(&document).unwrap(),
            document,
            addresses,
            rows: Vec::new(),
            early: Vec::new(),
            invalid: Vec::new(),
            dir: dir.clone(),
        };
        let text = read("traffic.csv");
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("who,from,mark,protocol,to,port,expected,also,why"), "{name}");
        for (number, line) in (2..).zip(lines) {
            golden.row(number, &line.split(',').collect::<Vec<_>>());
        }
        golden
    }

    fn row(&mut self, number: usize, fields: &[&str]) {
        let id = format!("{}:{number}", self.name);
        let [who, from, mark, protocol, to, port, expected, also, why] = fields else {
            panic!("{id}: {fields:?}")
        };
        let step = why.split(' ').next().unwrap();
        assert!("OPZTK".contains(&step[..1]) && step[1..].parse::<u8>().is_ok(), "{id}: {why}");
        let verdict = match expected.split_once(':') {
            Some(("REDIRECT", port)) => Verdict::Redirect(port.parse().unwrap()),
            Some(("TPROXY", port)) => Verdict::Tproxy(port.parse().unwrap()),
            _ if *expected == "PASS" => Verdict::Pass,
            _ if *expected == "DROP" => Verdict::Drop,
            _ => panic!("{id}: {expected}"),
        };
        let (to, port): (IpAddr, u16) =
            (to.parse().unwrap(), if port.is_empty() { 0 } else { port.parse().unwrap() });
        let early = *protocol == "early";
        let protocol = match *protocol {
            "tcp" | "early" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            "invalid" => {
                assert_eq!((*who, to), ("client", self.addresses[0]), "{id}");
                self.invalid.push((port, verdict));
                return;
            }
            other => panic!("{id}: {other}"),
        };
        let out = |ids| Way::Out(ids, topology::interface_to(to));
        let way = match *who {
            "client" => Way::In("eth0"),
            "net1" => Way::In("net1"),
            "vm" => Way::In("vm0"),
            "app" => out(self.app()),
            "proxy" => out(self.proxy()),
            ids => {
                let (uid, gid) = ids.split_once(':').unwrap_or_else(|| panic!("{id}: {ids}"));
                out(Ids { uid: uid.parse().unwrap(), gid: gid.parse().unwrap() })
            }
        };
        let from = (!from.is_empty()).then(|| from.parse().unwrap());
        let mark = if mark.is_empty() { 0 } else { mark.parse().unwrap() };
        let packet = Packet { way, protocol, from, to, port, mark };
        let rows = if early { &mut self.early } else { &mut self.rows };
        rows.push(Case { id, packet, expected: also_seen(verdict, also) });
    }

    /// The ids of `container`, whose image runs as root unless it says something else.
    fn ids(container: &Container) -> Ids {
        let context = container.security_context.clone().unwrap_or_default();
        Ids { uid: context.run_as_user.unwrap_or(0), gid: context.run_as_group.unwrap_or(0) }
    }

    fn app(&self) -> Ids {
        Self::ids(self.pod.spec.containers.iter().find(|c| c.name != "istio-proxy").unwrap())
    }

    /// Uid and gid of the proxy.
    #[must_use]
    pub fn proxy(&self) -> Ids {
        let mut all = self.pod.spec.init_containers.iter().chain(&self.pod.spec.containers);
        Self::ids(all.find(|c| c.name == "istio-proxy").unwrap())
    }

    /// Its settings, and what was decided about IPv6.
    #[must_use]
    pub fn config(&self) -> (Config, Ipv6Decision) {
        assert_eq!(decide(&self.pod), Decision::Redirect, "{}", self.name);
        let mut config = Config::from_pod(&self.pod, &BTreeMap::new()).unwrap();
        assert!(config.warnings.is_empty(), "{}: {:?}", self.name, config.warnings);
        let policy = config.ipv6_policy.unwrap_or_default();
        let ipv6 = decide_ipv6(policy, config.dual_stack, &self.addresses, &[]).unwrap();
        config.ipv6 = ipv6.treatment();
        (config, ipv6)
    }

    /// What its settings compile to.
    #[must_use]
    pub fn plan(&self) -> Plan {
        compile(&self.config().0)
    }

    /// Whether it has addresses of IPv4 and of IPv6.
    #[must_use]
    pub fn families(&self) -> [bool; 2] {
        [IpAddr::is_ipv4, IpAddr::is_ipv6].map(|is| self.addresses.iter().any(is))
    }

    /// How many rows it has.
    #[must_use]
    pub fn row_count(&self) -> usize {
        self.rows.len() + self.early.len() + self.invalid.len()
    }
}

/// `verdict`, with `also` as `name=value name=value …`.
fn also_seen(verdict: Verdict, also: &str) -> Expected {
    let mut expected = Expected {
        verdict,
        zone: None,
        lo_mark: None,
        mark: None,
        connection_mark: None,
        answer_mark: None,
        later_mark: None,
        answer_tracked: None,
    };
    for (name, value) in also.split_whitespace().map(|pair| pair.split_once('=').unwrap()) {
        let number = value.parse::<u32>().unwrap();
        match name {
            "zone" => expected.zone = Some(number as u16),
            "lo_mark" => expected.lo_mark = Some(number),
            "mark" => expected.mark = Some(number),
            "later_mark" => expected.later_mark = Some(number),
            "connection_mark" => expected.connection_mark = Some(number),
            "answer_mark" => expected.answer_mark = Some(number),
            "answer_tracked" => expected.answer_tracked = Some(number == 1),
            _ => panic!("{name}"),
        }
    }
    expected
}
