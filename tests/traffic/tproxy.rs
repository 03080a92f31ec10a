// SPDX-License-Identifier: Apache-2.0
//! TPROXY with the client's address on both legs.

use std::net::SocketAddr;

use harness::lab::{Lab, Servers};
use harness::packet::{Ids, Packet};
use harness::probe::{Connection, PATIENCE};
use harness::relay::Relay;
use kernel::Applied;
use ruleset::Form;
use serde_json::Value;

use crate::{FAMILIES, inbound, program, settings};

/// The proxy in TPROXY mode.
const PROXY: Ids = Ids { uid: 0, gid: 1337 };

// Behind the mangle chain on prerouting, which writes the marks: the client's connection, and the proxy's own.
const MARKS: &str = "
table inet marks {
	counter client_0 {}
	counter client_other {}
	counter proxy_1337 {}
	counter proxy_other {}
	chain mangled {
		type filter hook prerouting priority -149;
		iif eth0 tcp dport 8080 ct mark 0 counter name client_0
		iif eth0 tcp dport 8080 ct mark != 0 counter name client_other
		iif lo tcp dport 8080 ct mark 1337 counter name proxy_1337
		iif lo tcp dport 8080 ct mark != 1337 counter name proxy_other
	}
}
";

/// Packets by the mark of their connection, in the order of [`MARKS`], since the last call.
fn marks(lab: &Lab) -> [u64; 4] {
    let text = lab.pod.program("nft", &["-j", "reset", "counters", "table", "inet", "marks"], "");
    let listing: Value = serde_json::from_str(&text).unwrap();
    ["client_0", "client_other", "proxy_1337", "proxy_other"].map(|name| {
        let counters = listing["nftables"].as_array().unwrap();
        let counter = counters.iter().find(|object| object["counter"]["name"] == name).expect(name);
        counter["counter"]["packets"].as_u64().unwrap()
    })
}

/// A client of `relay`, from `port`, after checking who saw whom.
fn call(lab: &Lab, relay: &Relay, packet: &Packet, port: u16) -> Connection {
    // The first line is the application's report, so it has come all the way.
    let mut connection = Connection::open(lab, packet, port, PATIENCE).expect("an answer of the application");
    let client = SocketAddr::new(packet.from.unwrap(), port);
    let (accepted, report) = (relay.accepted(), &connection.report);
    assert_eq!((accepted.peer, accepted.local), (client, packet.destination()), "what the proxy sees");
    assert_eq!(
        (report.host.as_str(), report.listener, report.local, report.peer),
        ("pod", 8080, packet.destination(), accepted.upstream),
        "what the application sees"
    );
    assert_eq!(report.peer.ip(), client.ip());
    assert_ne!(report.peer, client, "the proxy's connection is one of its own");
    connection.talk().expect("an echo");
    connection
}

#[test]
fn a_transparent_proxy_calls_the_application_as_its_client_and_gets_the_answer() {
    let settings = settings("mode=TPROXY");
    for form in Form::ALL {
        let lab = Lab::new(Servers { inbound: false, ..Servers::of(&settings) });
        program(&lab, &redirect::compile(&settings.config()).in_form(form));
        lab.pod.program("nft", &["-f", "-"], MARKS);
        let relay = Relay::start(&lab.pod, PROXY);
        for family in FAMILIES {
            let connection = call(&lab, &relay, &inbound(family), lab.fresh_port());
            let [client_0, client_other, proxy_1337, proxy_other] = marks(&lab);
            // Handshake, bytes and acknowledgements, on either leg.
            assert!(client_0 >= 3 && proxy_1337 >= 3, "{form:?}: {client_0} {proxy_1337}");
            assert_eq!((client_other, proxy_other), (0, 0), "{form:?}: a connection with another mark");
            drop(connection);
        }
    }
}

#[test]
fn a_connection_under_its_clients_address_survives_a_replacement_of_the_rules() {
    let before = settings("mode=TPROXY");
    let after = settings("mode=TPROXY; dns=all; in_exclude=8080,15020,15021,15090; exclude_ifaces=net1");
    for form in Form::ALL {
        let lab = Lab::new(Servers { inbound: false, ..Servers::of(&before) });
        program(&lab, &redirect::compile(&before.config()).in_form(form));
        let relay = Relay::start(&lab.pod, PROXY);
        let mut live = FAMILIES.map(|family| call(&lab, &relay, &inbound(family), lab.fresh_port()));
        let applied = program(&lab, &redirect::compile(&after.config()).in_form(form));
        assert_eq!(applied, Applied::Replaced);
        for (family, live) in FAMILIES.into_iter().zip(&mut live) {
            for _ in 0..3 {
                live.talk().unwrap_or_else(|errno| panic!("{form:?} {family:?}: {errno}"));
            }
            // The new settings leave the port alone.
            let port = lab.fresh_port();
            let direct = Connection::open(&lab, &inbound(family), port, PATIENCE).unwrap();
            assert_eq!(direct.report.peer.port(), port, "{form:?} {family:?}");
        }
        assert!(relay.idle(), "{form:?}: a new connection came to the proxy");
    }
}
