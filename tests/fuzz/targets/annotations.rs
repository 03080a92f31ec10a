// SPDX-License-Identifier: Apache-2.0
//! A pod's settings as its author writes them. Whatever comes: no panic, an error is one short line, and what is accepted
//! compiles, always to the same rules, which are legal, carry their fingerprint and do not grow with the lists.
//!
//! An input is text of lines `K=value`, `K` being a letter: `a` to `l` for the annotations in their order, `A` to `G` for the
//! variables below, `U` for the proxy's uid and gid. A line that begins otherwise continues the value before it.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};
use redirect::{Config, Container, EnvVar, Ipv6, Pod, SecurityContext, annotations};

/// Variables of the proxy container.
const OF_PROXY: [&str; 4] = ["ISTIO_META_DNS_CAPTURE", "ISTIO_DUAL_STACK", "INVALID_DROP", "DISABLE_ENVOY"];
/// More than any settings need, and far below what one rule for each element of a list would be.
const RULES_MAX: usize = 60;

fuzz_target!(|data: &[u8]| -> Corpus {
    let (pod, environment) = read(&String::from_utf8_lossy(data));
    let _ = redirect::decide(&pod);
    match Config::from_pod(&pod, &environment) {
        Ok(config) => {
            // The addresses of the pod have their say, too; here the proxy's word is enough.
            compiles(&Config {
                ipv6: if config.dual_stack { Ipv6::Capture } else { Ipv6::Drop },
                ..config.clone()
            });
            seeded_bug(&config);
            waylay_fuzz::keep(true)
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.len() < 1024 && !text.contains(char::is_control), "{text:?}");
            waylay_fuzz::keep(false)
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    waylay_fuzz::mutate_text(data, size, max_size, seed)
});

fn compiles(config: &Config) {
    let plan = redirect::compile(config);
    assert_eq!(plan, redirect::compile(config), "the same settings give the same plan");
    for table in &plan.tables {
        assert_eq!(ruleset::validate(table), Ok(()));
        assert!(ruleset::Fingerprint::verify(table).is_ok());
        let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
        assert!(rules <= RULES_MAX, "{rules} rules");
        let text = ruleset::render(table);
        assert!(text.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()), "{text:?}");
    }
    assert!(kernel::encode_batch(&plan.tables).is_ok());
}

fn read(text: &str) -> (Pod, BTreeMap<String, String>) {
    let mut values: Vec<(char, String)> = Vec::new();
    for line in text.split('\n') {
        match (line.split_once('='), values.last_mut()) {
            (Some((key, value)), _) if matches!(key.as_bytes(), [b'a'..=b'l' | b'A'..=b'G' | b'U']) => {
                values.extend(key.chars().next().map(|key| (key, value.to_owned())));
            }
            (_, Some((_, value))) => {
                value.push('\n');
                value.push_str(line);
            }
            _ => {}
        }
    }
    let mut pod = Pod::default();
    let mut proxy = Container { name: "istio-proxy".into(), ..Container::default() };
    let mut environment = BTreeMap::new();
    for (key, value) in values {
        let index = usize::from(key as u8 - if key.is_ascii_uppercase() { b'A' } else { b'a' });
        match key {
            'a'..='l' => drop(pod.metadata.annotations.insert(annotations::ALL[index].into(), value)),
            'A'..='D' => proxy.env.push(EnvVar { name: OF_PROXY[index].into(), value }),
            'E'..='G' => drop(environment.insert(agent_api::ENVIRONMENT[index - 4].into(), value)),
            _ => {
                let id = value.parse().ok();
                proxy.security_context = Some(SecurityContext { run_as_user: id, run_as_group: id });
            }
        }
    }
    pod.spec.containers.push(proxy);
    (pod, environment)
}

fn seeded_bug(config: &Config) {
    let prefixes = match &config.outbound {
        redirect::OutboundCidrs::Only(prefixes) => prefixes.v4.ranges(),
        redirect::OutboundCidrs::All => &[],
    };
    let uneven =
        prefixes.iter().filter_map(|range| range.prefix()).any(|prefix| prefix.prefix_len() % 8 != 0);
    waylay_fuzz::seeded_bug(&[config.inbound_exclude.contains(&u16::MAX), uneven]);
}
