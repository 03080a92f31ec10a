// SPDX-License-Identifier: Apache-2.0
//! `tests/data/packet-matrix.csv`: settings as text, packets, and what is to become of them.

use std::collections::HashMap;
use std::net::IpAddr;

use redirect::annotations::{
    parse_cidrs, parse_groups, parse_inbound_ports, parse_interfaces, parse_loopback, parse_mode,
    parse_outbound_cidrs, parse_ports,
};
use redirect::{Config, Dns, Ipv6, OwnerGroups, Proxy};

use crate::packet::{Ids, Packet, Protocol, Verdict, Way};

const CSV: &str = include_str!("../data/packet-matrix.csv");

/// More settings than the matrix has, as changes to its default.
const MORE: [(&str, &str); 11] = [
    ("tproxy with all else", "mode=TPROXY; dns=all; drop_invalid=true; owner_exclude=2000,2001"),
    ("tproxy, ipv4 only", "mode=TPROXY; ipv6=false"),
    ("tproxy, nothing inbound, dns", "mode=TPROXY; in_include=; dns=nameservers; nameservers=203.0.113.10"),
    ("loopback included, dns", "out_cidr_include=127.0.0.0/8,::1/128; dns=all"),
    ("ipv6 loopback included", "out_cidr_include=::1/128,2001:db8:96::/48"),
    ("dns, ipv4 only", "ipv6=false; dns=nameservers; nameservers=203.0.113.10,127.0.0.53,2001:db8:1::10"),
    ("rerouted and excluded", "exclude_ifaces=net1,vm0; reroute_ifaces=vm0; out_cidr_include=10.96.0.0/12"),
    ("nothing captured", "in_include=; out_cidr_include=; out_port_exclude="),
    ("ipv4 excluded", "out_cidr_exclude=0.0.0.0/0; in_include=8080"),
    ("ipv6 included", "out_cidr_include=2001:db8:96::/48; owner_include=1000,0"),
    ("nobody's", "owner_include="),
];

/// Settings as the matrix writes them: `key=value; key=value; …`, names as in `docs/RULES.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The text.
    pub text: String,
    values: HashMap<String, String>,
}

/// One row.
#[derive(Clone, Debug)]
pub struct Row {
    /// `M001` and so on.
    pub id: String,
    /// Name of the group of rows.
    pub profile: String,
    /// Settings.
    pub settings: Settings,
    /// The packet.
    pub packet: Packet,
    /// Its verdict by the matrix.
    pub expected: Verdict,
    /// What else is to be seen.
    pub extra: String,
    /// `normative`, `backend-differs` or `quirk`.
    pub class: String,
    /// The row as text, settings left out.
    pub line: String,
}

impl Settings {
    /// Read `text`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pair = |item: &str| {
            let (key, value) = item.split_once('=').unwrap_or_else(|| panic!("{item:?} is not key=value"));
            (key.trim().to_owned(), value.trim().to_owned())
        };
        Self { text: text.to_owned(), values: text.split(';').map(pair).collect() }
    }

    /// The same but for what `changes` says, in the same form.
    #[must_use]
    pub fn with(&self, changes: &str) -> Self {
        let mut values = self.values.clone();
        values.extend(Self::parse(changes).values);
        let mut pairs: Vec<String> = values.iter().map(|(key, value)| format!("{key}={value}")).collect();
        pairs.sort();
        Self { text: pairs.join("; "), values }
    }

    /// The value of `key`.
    #[must_use]
    pub fn value(&self, key: &str) -> &str {
        self.values.get(key).unwrap_or_else(|| panic!("{key} is missing in {}", self.text))
    }

    /// The items of a list.
    pub fn items(&self, key: &str) -> impl Iterator<Item = &str> {
        self.value(key).split(',').filter(|item| !item.is_empty())
    }

    /// Whether `key` is true.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.value(key).parse().unwrap()
    }

    /// Uid and gid of the proxy.
    #[must_use]
    pub fn proxy(&self) -> Ids {
        let number = |key| self.value(key).parse().unwrap();
        Ids { uid: number("proxy_uid"), gid: number("proxy_gid") }
    }

    /// The same for the compiler.
    #[must_use]
    pub fn config(&self) -> Config {
        const KEYS: usize = 18;
        assert_eq!(self.values.len(), KEYS, "a setting that is not read here: {}", self.text);
        let groups = match self.value("owner_include") {
            "*" => OwnerGroups::AllBut(parse_groups(self.value("owner_exclude")).unwrap()),
            include => OwnerGroups::Only(parse_groups(include).unwrap()),
        };
        let dns = match self.value("dns") {
            "off" => Dns::Off,
            "all" => Dns::All,
            "nameservers" => {
                Dns::Nameservers(self.items("nameservers").map(|a| a.parse().unwrap()).collect())
            }
            other => panic!("dns={other}"),
        };
        Config {
            mode: parse_mode(self.value("mode")).unwrap(),
            inbound: parse_inbound_ports(self.value("in_include")).unwrap(),
            inbound_exclude: parse_ports(self.value("in_exclude")).unwrap(),
            outbound: parse_outbound_cidrs(self.value("out_cidr_include")).unwrap(),
            outbound_exclude: parse_cidrs(self.value("out_cidr_exclude")).unwrap(),
            outbound_ports: parse_ports(self.value("out_port_include")).unwrap(),
            outbound_ports_exclude: parse_ports(self.value("out_port_exclude")).unwrap(),
            exclude_interfaces: parse_interfaces(self.value("exclude_ifaces")).unwrap(),
            reroute_interfaces: parse_interfaces(self.value("reroute_ifaces")).unwrap(),
            owner_groups: groups,
            dns,
            drop_invalid: self.flag("drop_invalid"),
            ipv6: match self.value("ipv6") {
                "true" => Ipv6::Capture,
                "false" => Ipv6::Leave,
                "drop" => Ipv6::Drop,
                other => panic!("ipv6={other}"),
            },
            proxy: Proxy { uids: [self.proxy().uid].into(), gids: [self.proxy().gid].into() },
            loopback4: parse_loopback(self.value("loopback4")).unwrap(),
            ..Config::default()
        }
    }
}

/// All rows, in order.
#[must_use]
pub fn rows() -> Vec<Row> {
    let mut lines = CSV.lines().map(fields);
    let header = lines.next().expect("a header");
    lines
        .map(|fields| {
            assert_eq!(fields.len(), header.len(), "{fields:?}");
            row(&|name| {
                let index =
                    header.iter().position(|h| h == name).unwrap_or_else(|| panic!("no column {name}"));
                fields[index].as_str()
            })
        })
        .collect()
}

/// The settings of the matrix, each once with the name of its first profile, then ours.
#[must_use]
pub fn configurations() -> Vec<(String, Settings)> {
    let mut all: Vec<(String, Settings)> = Vec::new();
    for row in rows() {
        if !all.iter().any(|(_, settings)| *settings == row.settings) {
            all.push((row.profile, row.settings));
        }
    }
    let default = all[0].1.clone();
    all.extend(MORE.map(|(name, changes)| (name.to_owned(), default.with(changes))));
    all
}

/// RFC 4180, without line breaks inside a field.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for character in line.chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("one from the start").push(character),
        }
    }
    fields
}

fn row<'a>(field: &impl Fn(&'static str) -> &'a str) -> Row {
    let shown =
        ["family", "direction", "protocol", "src_addr", "dst_addr", "dst_port", "owner_uid", "owner_gid"];
    let line: Vec<&str> = shown.into_iter().chain(["interface", "pkt_mark", "ct_state"]).map(field).collect();
    Row {
        id: field("scenario_id").to_owned(),
        profile: field("profile").to_owned(),
        settings: Settings::parse(field("config")),
        packet: packet(field),
        expected: verdict(field("expected")),
        extra: field("expected_extra").to_owned(),
        class: field("class").to_owned(),
        line: line.join(" "),
    }
}

fn packet<'a>(field: &impl Fn(&'static str) -> &'a str) -> Packet {
    let number = |name| field(name).parse().unwrap_or_else(|_| panic!("{name}: {}", field(name)));
    let (side, name) = field("interface").split_once('=').expect("oif= or iif=");
    let interface = ["lo", "eth0", "net1", "vm0"]
        .into_iter()
        .find(|known| name.split(' ').next() == Some(known))
        .unwrap_or_else(|| panic!("interface {name}"));
    // A row about a fixed source port writes it behind the address.
    let source = field("src_addr");
    let source = source.strip_suffix(":41000").unwrap_or(source);
    let packet = Packet {
        way: match side {
            "oif" => Way::Out(Ids { uid: number("owner_uid"), gid: number("owner_gid") }, interface),
            _ => Way::In(interface),
        },
        protocol: match field("protocol") {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            other => panic!("protocol {other}"),
        },
        from: (source != "kernel-chosen").then(|| source.parse().unwrap()),
        to: field("dst_addr").parse::<IpAddr>().unwrap(),
        port: if field("dst_port").is_empty() { 0 } else { number("dst_port") as u16 },
        mark: if field("pkt_mark").is_empty() { 0 } else { number("pkt_mark") },
    };
    assert_eq!(packet.to.is_ipv4(), field("family") == "ipv4");
    assert_eq!(matches!(packet.way, Way::Out(..)), field("direction") == "outbound");
    packet
}

fn verdict(text: &str) -> Verdict {
    let port = |text: &str| text.parse().unwrap();
    match text.split_once(':') {
        None if text == "PASS" => Verdict::Pass,
        None if text == "DROP" => Verdict::Drop,
        Some(("REDIRECT", to)) => Verdict::Redirect(port(to)),
        Some(("TPROXY", to)) => Verdict::Tproxy(port(to)),
        _ => panic!("verdict {text}"),
    }
}
