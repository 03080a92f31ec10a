// SPDX-License-Identifier: Apache-2.0
//! The counters of the agent, and their text for Prometheus.
//!
//! Every label value comes from a closed set: what a peer sends never becomes one.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Upper bounds in seconds: a warm ADD takes a fraction of a millisecond, one that waits for its pod two seconds.
const LATENCY: [f64; 14] =
    [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoticeLabels {
    kind: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepairLabels {
    r#type: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabel {
    response_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabel {
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BlockerLabel {
    blocker: &'static str,
}

/// All metrics.
pub(crate) struct Metrics {
    registry: Registry,
    adds: Family<RequestLabels, Counter>,
    checks: Family<RequestLabels, Counter>,
    add_seconds: Histogram,
    refused: Family<ReasonLabel, Counter>,
    notices: Family<NoticeLabels, Counter>,
    ipv6: Family<ReasonLabel, Counter>,
    blocked: Family<BlockerLabel, Gauge>,
    api_requests: Family<VerbLabel, Counter>,
    bypasses: Family<ReasonLabel, Counter>,
    events: Family<ResultLabel, Counter>,
    installs: Family<ResultLabel, Counter>,
    /// 1 while the plugin and its configuration are in place.
    pub(crate) install_ready: Gauge,
    /// Connections to the request socket that are open now.
    pub(crate) connections: Gauge,
    /// Jobs that wait for a thread of the pool.
    pub(crate) queue: Gauge,
    /// 1 while this agent holds the socket.
    pub(crate) role: Gauge,
    /// Manifest files that cannot be used.
    pub(crate) bad_manifests: Gauge,
    /// Pods of this node that the API server told of.
    pub(crate) pods: Gauge,
    /// When the watch of pods last said something, in seconds since 1970.
    pub(crate) watch_event: Gauge<f64, AtomicU64>,
    /// Failures of the watch of pods; each is tried again.
    pub(crate) watch_errors: Counter,
    /// Rules written into pods.
    pub(crate) rules_written: Counter,
    /// How often the plugin or its configuration had to be put back.
    pub(crate) install_restored: Counter,
    /// 1 while somebody takes our entry out again and again.
    pub(crate) install_fight: Gauge,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Self {
        let mut all = Registry::default();
        let (installs, install_ready) = existing(&mut all);
        let ours = all.sub_registry_with_prefix("waylay");
        let add_seconds = Histogram::new(LATENCY);
        let took = "Time from accepting a connection to sending the answer to its ADD";
        ours.register("add_duration_seconds", took, add_seconds.clone());
        let fight = "1 while somebody takes our entry out of the CNI configuration again and again";
        Self {
            installs,
            install_ready,
            adds: new(ours, "adds", "ADDs answered by the agent"),
            checks: new(ours, "checks", "CHECKs answered by the agent"),
            add_seconds,
            refused: new(ours, "refused_peers", "Connections and messages refused"),
            notices: new(ours, "notices", "What the plugin did without the agent"),
            ipv6: new(ours, "ipv6", "Redirected pods by what is done with their IPv6"),
            rules_written: new(ours, "rules_written", "Rules written into pods"),
            bypasses: new(ours, "bypasses", "Mesh pods whose traffic goes past their proxy"),
            events: new(ours, "events", "Events on pods by what became of them"),
            blocked: new(ours, "blocked", "1 for each check that keeps the agent from being ready"),
            connections: new(ours, "open_connections", "Open connections of plugins"),
            queue: new(ours, "queue_depth", "Jobs that wait for a thread"),
            role: new(ours, "socket_holder", "1 while this agent holds the plugin socket"),
            install_restored: new(
                ours,
                "install_restored",
                "Times that the plugin or its configuration was put back",
            ),
            install_fight: new(ours, "install_fight", fight),
            bad_manifests: new(ours, "bad_manifests", "Pod manifest files that cannot be used"),
            api_requests: new(ours, "api_requests", "Requests to the API server"),
            pods: new(ours, "pods", "Pods of this node that the API server told of"),
            watch_event: new(
                ours,
                "pod_watch_last_event_timestamp_seconds",
                "When the watch of pods last said something",
            ),
            watch_errors: new(ours, "pod_watch_errors", "Failures of the watch of pods"),
            registry: all,
        }
    }

    /// An ADD was answered after `elapsed`.
    pub(crate) fn add(&self, result: &'static str, reason: &'static str, elapsed: Duration) {
        self.adds.get_or_create(&RequestLabels { result, reason }).inc();
        self.add_seconds.observe(elapsed.as_secs_f64());
    }

    /// A CHECK was answered.
    pub(crate) fn check(&self, result: &'static str, reason: &'static str) {
        self.checks.get_or_create(&RequestLabels { result, reason }).inc();
    }

    /// A peer or its message was refused.
    pub(crate) fn refuse(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A notice came.
    pub(crate) fn notice(&self, kind: &'static str, reason: &'static str) {
        self.notices.get_or_create(&NoticeLabels { kind, reason }).inc();
    }

    /// Rules were written that treat IPv6 so.
    pub(crate) fn ipv6(&self, reason: &'static str) {
        self.ipv6.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A mesh pod runs whose traffic goes past its proxy.
    pub(crate) fn bypass(&self, reason: &'static str) {
        self.bypasses.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An event was sent, or not.
    pub(crate) fn event(&self, result: &'static str) {
        self.events.get_or_create(&ResultLabel { result }).inc();
    }

    /// The node was brought into order, or that failed.
    pub(crate) fn install(&self, result: &'static str) {
        self.installs.get_or_create(&ResultLabel { result }).inc();
    }

    /// A request goes to the API server.
    pub(crate) fn api_request(&self, verb: &'static str) {
        self.api_requests.get_or_create(&VerbLabel { verb }).inc();
    }

    /// A check of readiness holds or does not.
    pub(crate) fn blocked(&self, blocker: &'static str, blocked: bool) {
        self.blocked.get_or_create(&BlockerLabel { blocker }).set(i64::from(blocked));
    }

    /// The text of `/metrics` (OpenMetrics).
    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        text::encode(&mut out, &self.registry).expect("writing to a String does not fail");
        out
    }
}

/// A metric, registered.
fn new<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// The four metrics of the component that this one replaces, under their own names, for the dashboards that have them. There is no
/// repair and no ambient mode yet: their two stay at 0.
fn existing(registry: &mut Registry) -> (Family<ResultLabel, Counter>, Gauge) {
    let installs = new(registry, "istio_cni_installs", "Installations by result");
    let in_place = "1 while the plugin and its configuration are in place";
    let ready = new(registry, "istio_cni_install_ready", in_place);
    let repaired: Family<RepairLabels, Counter> =
        new(registry, "istio_cni_repair_pods_repaired", "Pods repaired; there is no repair yet");
    let _ = repaired.get_or_create(&RepairLabels { r#type: "repair", result: "success" });
    let asked = "Requests of the plugin in ambient mode, which is not there yet";
    let requests: Family<ResponseLabel, Counter> = new(registry, "istio_cni_plugin_requests", asked);
    let _ = requests.get_or_create(&ResponseLabel { response_code: "200" });
    (installs, ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scrape_has_exactly_the_documented_names() {
        let metrics = Metrics::new();
        metrics.add("done", "programmed", Duration::from_micros(300));
        metrics.check("fail", "rules_differ");
        metrics.refuse("peer_uid");
        metrics.notice("pass", "no_sidecar");
        metrics.ipv6("ipv6_bypass");
        metrics.blocked("ambient_not_supported", true);
        metrics.api_request("watch");
        metrics.install("SUCCESS");
        metrics.bypass("ipv6_bypass");
        metrics.event("sent");
        let text = metrics.render();
        let mut names: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            // Samples of a counter have a suffix, and documents are about samples.
            .map(|line| match line.split_once(' ') {
                Some((name, "counter")) => format!("| `{name}_total` | counter |"),
                Some((name, kind)) => format!("| `{name}` | {kind} |"),
                None => panic!("{line}"),
            })
            .collect();
        names.sort();
        let documented = include_str!("../../../docs/METRICS.md");
        let mut lines: Vec<_> = documented
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.splitn(4, '|').take(3).collect::<Vec<_>>().join("|") + "|")
            .collect();
        lines.sort();
        assert_eq!(lines, names);
        for line in [
            "istio_cni_installs_total{result=\"SUCCESS\"} 1",
            "istio_cni_repair_pods_repaired_total{type=\"repair\",result=\"success\"} 0",
            "istio_cni_plugin_requests_total{response_code=\"200\"} 0",
            "waylay_adds_total{result=\"done\",reason=\"programmed\"} 1",
            "waylay_checks_total{result=\"fail\",reason=\"rules_differ\"} 1",
            "waylay_add_duration_seconds_bucket{le=\"0.0005\"} 1",
            "waylay_refused_peers_total{reason=\"peer_uid\"} 1",
            "waylay_notices_total{kind=\"pass\",reason=\"no_sidecar\"} 1",
            "waylay_ipv6_total{reason=\"ipv6_bypass\"} 1",
            "waylay_blocked{blocker=\"ambient_not_supported\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
