// SPDX-License-Identifier: Apache-2.0
//! Whether a stop is an uninstall, which only the API server could say: the agent is told to end at a rollout, a drain and
//! an uninstall alike.
//!
//! What is kept by mistake costs a clean-up by hand; what is removed by mistake lets pods start without redirection. So
//! everything that is not certain means keep.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout};

use crate::pods::chain;
use crate::settings::LeaveSettings;

/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(1);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(300);
/// How long the API server must have refused the agent's credential before that counts. When the agent's own pod is deleted by
/// force its token ends, too; the kubelet kills such a pod 2 s after the signal, before anything was removed.
const REFUSED: Duration = Duration::from_secs(3);

/// What the stop is, with the reason code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The node stays as it is.
    Keep(&'static str),
    /// Everything is taken off the node.
    Uninstall(&'static str),
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Stop(Stop),
    /// The credential is no longer one: certain only after a while. Until then this is the reason to keep.
    Unauthorized(&'static str),
    /// Not certain: try again. If it stays so, this is the reason.
    Unclear(&'static str),
}

/// What the end of this agent is under `settings`; `is_superseded` says whether another agent serves the node already.
pub(crate) async fn of(client: Client, settings: &LeaveSettings, is_superseded: impl Fn() -> bool) -> Stop {
    if settings.seconds == 0 || settings.namespace.is_empty() {
        return Stop::Keep("not_asked");
    }
    let limit = Duration::from_secs(settings.seconds);
    let is_over = || is_superseded().then_some("superseded");
    ask(client, &settings.namespace, &settings.daemonset, limit, is_over).await
}

/// Ask for the DaemonSet `name` in `namespace` until the answer is certain, or `limit` is over, or `is_over` says that it
/// does not matter any more.
async fn ask(
    client: Client,
    namespace: &str,
    name: &str,
    limit: Duration,
    is_over: impl Fn() -> Option<&'static str>,
) -> Stop {
    let api: Api<DaemonSet> = Api::namespaced(client, namespace);
    let ends = Instant::now() + limit;
    let mut refused_since = None;
    loop {
        if let Some(reason) = is_over() {
            return Stop::Keep(reason);
        }
        let reason = match timeout(QUESTION, api.get_metadata_opt(name)).await {
            Err(_) => "api_unreachable",
            Ok(answer) => {
                if let Err(error) = &answer {
                    tracing::debug!(error = chain(error), "ask for the own DaemonSet");
                }
                match read(answer.map(|found| found.map(|set| set.metadata.deletion_timestamp.is_some()))) {
                    Answer::Stop(stop) => return stop,
                    Answer::Unauthorized(reason) => {
                        let since = *refused_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= REFUSED {
                            return Stop::Uninstall("service_account_gone");
                        }
                        reason
                    }
                    Answer::Unclear(reason) => {
                        refused_since = None;
                        reason
                    }
                }
            }
        };
        if Instant::now() + PAUSE > ends {
            return Stop::Keep(reason);
        }
        sleep(PAUSE).await;
    }
}

/// What it means that the DaemonSet is there (and being deleted), or not, or cannot be seen.
fn read(found: Result<Option<bool>, kube::Error>) -> Answer {
    match found {
        Ok(Some(false)) => Answer::Stop(Stop::Keep("daemonset_there")),
        Ok(Some(true)) => Answer::Stop(Stop::Uninstall("daemonset_deleted")),
        Ok(None) => Answer::Stop(Stop::Uninstall("daemonset_gone")),
        Err(kube::Error::Api(status)) if status.code == 401 => Answer::Unauthorized("unauthorized"),
        Err(kube::Error::Api(status)) if status.code == 403 => Answer::Unclear("daemonset_forbidden"),
        Err(_) => Answer::Unclear("api_unreachable"),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// An API server that gives these answers, one after the other, the last one for ever: a status, and whether the
    /// DaemonSet is being deleted, or its absence is said by the API itself. Status 0 is no answer.
    fn server(answers: &[(u16, bool)]) -> Client {
        let answers = Arc::new(Mutex::new(answers.to_vec()));
        let service = tower::service_fn(move |_: Request<Body>| {
            let (code, really) = {
                let mut left = answers.lock().unwrap();
                if left.len() > 1 { left.remove(0) } else { left[0] }
            };
            async move {
                if code == 0 {
                    std::future::pending::<()>().await;
                }
                let body = if code == 200 {
                    let time = really.then_some("2026-01-01T00:00:00Z");
                    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                        "metadata": {"name": "istio-cni-node", "deletionTimestamp": time}})
                } else {
                    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                        "reason": if really { "NotFound" } else { "x" }, "message": "x", "code": code})
                };
                let body = http_body_util::Full::from(body.to_string());
                Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
            }
        });
        Client::new(service, "default")
    }

    async fn stop(answers: &[(u16, bool)]) -> (Stop, u64) {
        let begin = Instant::now();
        let stop =
            ask(server(answers), "istio-system", "istio-cni-node", Duration::from_secs(4), || None).await;
        (stop, begin.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_is_certain_is_an_uninstall() {
        assert_eq!(stop(&[(200, false)]).await, (Stop::Keep("daemonset_there"), 0));
        assert_eq!(stop(&[(200, true)]).await, (Stop::Uninstall("daemonset_deleted"), 0));
        assert_eq!(stop(&[(404, true)]).await, (Stop::Uninstall("daemonset_gone"), 0));
        // A proxy between us and the API server says so, too.
        assert_eq!(stop(&[(404, false)]).await, (Stop::Keep("api_unreachable"), 3));
        assert_eq!(stop(&[(403, false)]).await, (Stop::Keep("daemonset_forbidden"), 3));
        assert_eq!(stop(&[(500, false)]).await, (Stop::Keep("api_unreachable"), 3));
        assert_eq!(stop(&[(0, false)]).await, (Stop::Keep("api_unreachable"), 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_credential_counts_after_three_seconds_without_another_answer() {
        assert_eq!(stop(&[(401, false)]).await, (Stop::Uninstall("service_account_gone"), 3));
        // As under the existing chart: forbidden as long as the account is there.
        assert_eq!(stop(&[(403, false), (401, false)]).await, (Stop::Uninstall("service_account_gone"), 3));
        let mut late = vec![(403, false); 5];
        late.push((401, false));
        assert_eq!(stop(&late).await, (Stop::Keep("unauthorized"), 3));
        assert_eq!(stop(&[(401, false), (401, false), (200, false)]).await.0, Stop::Keep("daemonset_there"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_another_one_replaced_has_nothing_to_ask() {
        let client = server(&[(404, true)]);
        let stop = ask(client, "n", "d", Duration::from_secs(4), || Some("superseded")).await;
        assert_eq!(stop, Stop::Keep("superseded"));
    }
}
