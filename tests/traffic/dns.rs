// SPDX-License-Identifier: Apache-2.0
//! DNS capture: two senders with the same addresses and ports, and real DNS servers.

use std::time::Instant;

use harness::daemon::Daemon;
use harness::dns::{Answer, ask};
use harness::lab::{Lab, Servers};
use harness::node::Node;
use harness::outside::{INTERNET, Outside};
use harness::packet::{APP, Ids, Packet, Protocol, ROOT, Verdict, Way};
use harness::probe::{Outcome, PATIENCE, judge, probe};
use nix::errno::Errno;
use ruleset::{Fingerprint, Form, Plan};

use crate::{FAMILIES, REMOTE, address, outbound, program, settings, write_pod};

const DNSMASQ: &str = "/usr/sbin/dnsmasq";

/// The proxy as it is in REDIRECT and in TPROXY mode.
const PROXIES: [Ids; 2] = [Ids { uid: 1337, gid: 1337 }, Ids { uid: 0, gid: 1337 }];

/// What becomes of the queries of `senders`, one after the other, from the same port to the same server.
fn same_tuple(lab: &Lab, family: [&str; 2], remote: &str, senders: [Ids; 2]) -> [Result<Verdict, String>; 2] {
    let port = lab.fresh_port();
    senders.map(|sender| {
        let packet = Packet {
            way: Way::Out(sender, "eth0"),
            protocol: Protocol::Udp,
            port: 53,
            ..outbound(family, remote)
        };
        let give_up = Instant::now() + PATIENCE;
        loop {
            match probe(lab, &packet, port, PATIENCE) {
                // A child that another test just forked has a copy of the last sender's socket until it executes.
                Outcome::Failed(Errno::EADDRINUSE) if Instant::now() < give_up => std::thread::yield_now(),
                outcome => return judge(&packet, &outcome),
            }
        }
    })
}

/// `plan` less its conntrack zones.
fn without_zones(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for table in &mut plan.tables {
        let chains = table.chains.len();
        table.chains.retain(|chain| !chain.name.starts_with("raw_"));
        assert_eq!(table.chains.len(), chains - 2);
        *table = Fingerprint::seal(table.clone());
    }
    plan
}

#[test]
fn queries_of_the_application_and_of_the_proxy_from_the_same_port_do_not_take_each_others_way() {
    let settings = settings("dns=all");
    let (captured, leaves) = (Ok(Verdict::Redirect(15053)), Ok(Verdict::Pass));
    for (form, proxy) in Form::ALL.into_iter().flat_map(|form| PROXIES.map(|proxy| (form, proxy))) {
        let lab = Lab::new(Servers { proxy, ..Servers::of(&settings) });
        let plan = redirect::compile(&settings.config()).in_form(form);
        program(&lab, &plan);
        let both = |first, then| [0, 1].map(|f| same_tuple(&lab, FAMILIES[f], REMOTE[f], [first, then]));
        let right = [captured.clone(), leaves.clone()];
        assert_eq!(both(APP, proxy), [right.clone(), right], "{form:?} {proxy:?}");
        let right = [leaves.clone(), captured.clone()];
        assert_eq!(both(proxy, APP), [right.clone(), right], "{form:?} {proxy:?}");

        // Without the zones the second goes where the first went.
        program(&lab, &without_zones(&plan));
        let wrong = [captured.clone(), captured.clone()];
        assert_eq!(both(APP, proxy), [wrong.clone(), wrong], "{form:?} {proxy:?}");
        let wrong = [leaves.clone(), leaves.clone()];
        assert_eq!(both(proxy, APP), [wrong.clone(), wrong], "{form:?} {proxy:?}");
    }
}

/// dnsmasq(8) with these options and nothing else. As a debugger wants it, it makes no process for each TCP query.
fn dnsmasq(options: &[String]) -> Vec<String> {
    let fixed = "--no-daemon --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --pid-file= \
                 --log-queries --log-facility=- --cache-size=0 --user=root --group=";
    [DNSMASQ.to_owned()]
        .into_iter()
        .chain(fixed.split_whitespace().map(str::to_owned))
        .chain(options.iter().cloned())
        .collect()
}

fn start(node: &harness::netns::Netns, ids: Ids, capabilities: &str, options: &[String]) -> Daemon {
    let command = dnsmasq(options);
    let mut daemon =
        Daemon::start(node, ids, capabilities, &command.iter().map(String::as_str).collect::<Vec<_>>());
    daemon.wait_until(|daemon| daemon.printed().contains("started, version"));
    daemon
}

#[test]
fn a_real_dns_server_answers_captured_queries_and_its_own_leave_the_pod() {
    let node = Node::new();
    let _agent = node.start_agent();
    let sandbox = node.sandbox("web");
    let env = [("ISTIO_DUAL_STACK", "true"), ("ISTIO_META_DNS_CAPTURE", "true")];
    write_pod(&node, &sandbox, &[], [1337, 1337], &env);
    let outside = Outside::of(&sandbox);
    assert_eq!(node.plugin("ADD", &sandbox).code(), 0);

    let listen = INTERNET.map(|address| format!("--listen-address={address}"));
    let records = ["--host-record=www.test,192.0.2.80,2001:db8::80".to_owned()];
    let upstream = start(&outside.netns, ROOT, "-all,+net_bind_service", &[&listen[..], &records].concat());
    let options = ["127.0.0.1", "::1"].map(|address| format!("--listen-address={address}"));
    let more = [
        "--port=15053".to_owned(),
        "--host-record=proxy.test,192.0.2.1,2001:db8::1".to_owned(),
        format!("--server={}", INTERNET[0]),
        format!("--server={}", INTERNET[1]),
        "--all-servers".to_owned(),
    ];
    let proxy = start(&sandbox.netns, PROXIES[0], "-all", &[&options[..], &more].concat());

    let answers = [["192.0.2.1", "192.0.2.80"], ["2001:db8::1", "2001:db8::80"]];
    for (server, [own, forwarded]) in INTERNET.into_iter().zip(answers) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let ask = |ids, name| ask(&sandbox.netns, ids, protocol, address(server), name);
            let found = |text| Ok(Answer::Address(address(text)));
            // Only the server in the pod has this record, whoever else was meant to be asked.
            assert_eq!(ask(APP, "proxy.test"), found(own), "{server} {protocol:?}");
            // Only the one outside has this: the query went on from the pod, uncaptured.
            assert_eq!(ask(APP, "www.test"), found(forwarded), "{server} {protocol:?}");
            // And what the proxy asks comes to the one outside at once.
            assert!(matches!(ask(PROXIES[0], "proxy.test"), Ok(Answer::Nothing(_))), "{server} {protocol:?}");
        }
    }
    let (inside, outside) = (proxy.printed(), upstream.printed());
    for (server, client) in INTERNET.into_iter().zip(["10.9.0.2", "fd00:9::2"]) {
        assert!(inside.contains(&format!("forwarded www.test to {server}")), "{inside}");
        assert!(outside.contains(&format!("www.test from {client}")), "{outside}");
    }
}
