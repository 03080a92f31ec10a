// SPDX-License-Identifier: Apache-2.0
//! Pods from the Kubernetes API: one watch of this node's pods, and a question where the watch is behind.
//!
//! # What it costs the API server
//! One list (from its cache) and one watch at start, a watch every [`WATCH`] seconds, nothing for an ADD in the normal case. The
//! library keeps the watch going: it lists anew after 410, waits between failures, and reads a rotated token again.
//!
//! While the API server is away the pods known so far stay known.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch_objects};
use kube::{Api, Client};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::chain;
use super::object::{Entry, PodObject};
use super::store::{Match, Store, judge};
use super::{Absent, Found, Key, Known, Labels, PodSource};
use crate::observability::metrics::Metrics;

/// Seconds after which the API server ends a watch, and a new one begins where it ended.
const WATCH: u32 = 290;
/// How long one question may take: the plugin waits 5 s for its answer, and has waited for the watch before.
const QUESTION: Duration = Duration::from_secs(2);
/// Questions at a time: a node that starts a hundred pods while the watch is down asks for them one after the other.
const QUESTIONS: usize = 8;
/// How the place is called in messages.
const PLACE: &str = "the API server";

/// The pods of this node, as the API server has them.
pub(crate) struct Cluster {
    client: Client,
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    questions: Semaphore,
}

/// What to watch, and who wants to know.
pub(crate) struct Watching {
    /// Whose pods.
    pub(crate) node: String,
    /// Whether the labels of namespaces are wanted, too.
    pub(crate) namespaces: bool,
    /// Told of each pod that came or changed, and when a list was whole.
    pub(crate) seen: Box<dyn FnMut(Seen<'_>) + Send>,
    /// Called once, when all is known.
    pub(crate) synced: Box<dyn FnOnce() + Send>,
}

/// What is told of.
pub(crate) enum Seen<'a> {
    /// A pod that came or changed, and the labels of its namespace, if they are watched and known.
    Pod(&'a Entry, Option<&'a BTreeMap<String, String>>),
    /// A list is whole; these uids are in it.
    List(&'a HashSet<&'a str>),
}

struct Shared {
    store: Mutex<Store>,
    namespaces: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    changed: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

impl Cluster {
    /// Start to watch on the event loop of `runtime`.
    pub(crate) fn watch(client: Client, runtime: &Handle, metrics: Arc<Metrics>, watching: Watching) -> Self {
        let (changed, changes) = watch::channel(0);
        let shared =
            Arc::new(Shared { store: Mutex::default(), namespaces: Mutex::default(), changed, metrics });
        let (listed, namespaces_listed) = oneshot::channel();
        if watching.namespaces {
            runtime.spawn(Arc::clone(&shared).follow_namespaces(client.clone(), listed));
        } else {
            let _ = listed.send(());
        }
        runtime.spawn(Arc::clone(&shared).follow(client.clone(), watching, namespaces_listed));
        Self { client, shared, changes, questions: Semaphore::new(QUESTIONS) }
    }

    /// Ask for the pod itself.
    async fn ask(&self, key: Key<'_>) -> Result<Match, Absent> {
        let unreachable = |error: String| Absent::Unreachable { place: PLACE.to_owned(), error };
        let api: Api<PodObject> = Api::namespaced(self.client.clone(), key.namespace);
        let asked = timeout(QUESTION, async {
            let _turn = self.questions.acquire().await;
            api.get_opt(key.name).await
        });
        match asked.await {
            Ok(Ok(Some(pod))) => Ok(judge(pod.into(), key)),
            Ok(Ok(None)) => Ok(Match::Unknown),
            Ok(Err(error)) => Err(unreachable(chain(&error))),
            Err(_) => Err(unreachable(format!("no answer within {} s", QUESTION.as_secs()))),
        }
    }
}

impl PodSource for Cluster {
    fn find<'a>(&'a self, key: Key<'a>, deadline: Instant) -> Found<'a> {
        Box::pin(async move {
            // Subscribed before the first look: a change in between is seen.
            let mut changes = self.changes.clone();
            loop {
                changes.mark_unchanged();
                match lock(&self.shared.store).find(key) {
                    Match::Known(known) => return Ok(known),
                    // Waiting would not tell more.
                    Match::Doubtful(_) => break,
                    Match::Unknown | Match::OtherUid(_) | Match::Terminating => {}
                }
                if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                    break;
                }
            }
            settle(self.ask(key).await?)
        })
    }

    fn namespace_labels<'a>(&'a self, namespace: &'a str, deadline: Instant) -> Labels<'a> {
        Box::pin(async move {
            let mut changes = self.changes.clone();
            loop {
                changes.mark_unchanged();
                if let Some(labels) = lock(&self.shared.namespaces).get(namespace) {
                    return Ok(labels.clone());
                }
                if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
                    return Err(Absent::Namespace);
                }
            }
        })
    }
}

/// What an answer of the API server means.
fn settle(found: Match) -> Result<Known, Absent> {
    let place = PLACE.to_owned();
    match found {
        Match::Known(known) => Ok(known),
        Match::Doubtful(pod) => Ok(Known::Pod(pod)),
        Match::Unknown => Err(Absent::Unknown { place }),
        Match::OtherUid(uid) => Err(Absent::OtherUid { place, uid }),
        Match::Terminating => Err(Absent::Terminating { place }),
    }
}

impl Shared {
    async fn follow(self: Arc<Self>, client: Client, watching: Watching, namespaces: oneshot::Receiver<()>) {
        let Watching { node, mut seen, synced, .. } = watching;
        let mut synced = Some((synced, namespaces));
        let config = from_cache().fields(&format!("spec.nodeName={node}"));
        let mut events = watch_objects(Api::<PodObject>::all(client), config).default_backoff().boxed();
        let mut failing = false;
        while let Some(event) = events.next().await {
            let Some(event) = self.heard(event, "the pods of this node", &mut failing) else { continue };
            let whole = matches!(event, Event::InitDone);
            self.take(event, &mut seen);
            if whole && let Some((synced, namespaces)) = synced.take() {
                let _ = namespaces.await;
                synced();
            }
        }
    }

    async fn follow_namespaces(self: Arc<Self>, client: Client, listed: oneshot::Sender<()>) {
        let mut listed = Some(listed);
        let mut events = watch_objects(Api::<PartialObjectMeta<Namespace>>::all(client), from_cache())
            .default_backoff()
            .boxed();
        let (mut failing, mut list) = (false, BTreeMap::new());
        let entry = |object: PartialObjectMeta<Namespace>| {
            let ObjectMeta { name, labels, .. } = object.metadata;
            (name.unwrap_or_default(), labels.unwrap_or_default())
        };
        while let Some(event) = events.next().await {
            let Some(event) = self.heard(event, "namespaces", &mut failing) else { continue };
            let mut known = lock(&self.namespaces);
            match event {
                Event::Init => list.clear(),
                Event::InitApply(object) => list.extend([entry(object)]),
                Event::InitDone => {
                    *known = std::mem::take(&mut list);
                    let _ = listed.take().map(|listed| listed.send(()));
                }
                Event::Apply(object) => known.extend([entry(object)]),
                Event::Delete(object) => {
                    known.remove(&entry(object).0);
                }
            }
            drop(known);
            self.changed.send_modify(|generation| *generation += 1);
        }
    }

    /// Log and count the failures of a watch, each time that they begin or end.
    fn heard<T>(&self, event: watcher::Result<T>, what: &str, failing: &mut bool) -> Option<T> {
        let was_failing = std::mem::replace(failing, event.is_err());
        match event {
            Ok(event) => {
                if was_failing {
                    tracing::info!("the watch of {what} goes on");
                }
                Some(event)
            }
            Err(error) => {
                self.metrics.watch_errors.inc();
                // Once, however long it lasts.
                if !was_failing {
                    tracing::warn!(error = chain(&error), "watch {what}; trying again");
                }
                None
            }
        }
    }

    fn take(&self, event: Event<PodObject>, seen: &mut dyn FnMut(Seen<'_>)) {
        let (mut store, namespaces) = (lock(&self.store), lock(&self.namespaces));
        match event {
            Event::Init => store.begin(),
            Event::InitApply(pod) => {
                let entry = Entry::from(pod);
                seen(Seen::Pod(&entry, namespaces.get(&entry.pod.metadata.namespace)));
                store.list(entry);
            }
            Event::InitDone => {
                store.end();
                seen(Seen::List(&store.uids().collect()));
            }
            Event::Apply(pod) => {
                let entry = Entry::from(pod);
                seen(Seen::Pod(&entry, namespaces.get(&entry.pod.metadata.namespace)));
                store.apply(entry);
            }
            Event::Delete(pod) => store.remove(&Entry::from(pod)),
        }
        self.metrics.pods.set(i64::try_from(store.len()).unwrap_or(i64::MAX));
        drop((store, namespaces));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.metrics.watch_event.set(now.as_secs_f64());
        self.changed.send_modify(|generation| *generation += 1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lists come from the server's cache, which knows no pages: a thousand nodes that start at once must not make the server read its
/// store a thousand times.
fn from_cache() -> watcher::Config {
    watcher::Config { page_size: None, ..watcher::Config::default().timeout(WATCH).any_semantic() }
}

/// A client with the pod's own ServiceAccount, whose requests are counted.
///
/// # Errors
/// The environment or the ServiceAccount's files are not those of a pod.
pub(crate) fn client(metrics: &Arc<Metrics>) -> Result<Client, io::Error> {
    let mut config = kube::Config::incluster().map_err(io::Error::other)?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Of a connection that is dead no watch is ever told.
    config.read_timeout = Some(Duration::from_secs(u64::from(WATCH) + 10));
    let counted = Arc::clone(metrics);
    let count = tower::util::MapRequestLayer::new(move |request: http::Request<_>| {
        counted.api_request(verb(request.method(), request.uri()));
        request
    });
    let builder = kube::client::ClientBuilder::try_from(config).map_err(io::Error::other)?;
    Ok(builder.with_layer(&count).build())
}

/// The API's own word for a request.
fn verb(method: &http::Method, uri: &http::Uri) -> &'static str {
    let watches = uri
        .query()
        .is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")));
    match method.as_str() {
        "GET" if watches => "watch",
        "GET" if matches!(uri.path().rsplit('/').next(), Some("pods" | "namespaces")) => "list",
        "GET" => "get",
        "POST" => "create",
        "PATCH" => "patch",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::mpsc;

    use http::{Request, Response, StatusCode};
    use http_body_util::combinators::UnsyncBoxBody;
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use hyper::body::{Bytes, Frame};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::sync::broadcast;

    use super::*;

    type Said = UnsyncBoxBody<Bytes, Infallible>;

    /// An API server with these pods, which says the rest as it happens.
    struct Server {
        says: broadcast::Sender<Value>,
        asked: Arc<Mutex<Vec<String>>>,
        client: Client,
    }

    fn pod(name: &str, uid: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "n", "uid": uid, "resourceVersion": "2"}})
    }

    fn body(value: &Value) -> Said {
        Full::from(format!("{value}\n")).boxed_unsync()
    }

    fn watching(synced: impl FnOnce() + Send + 'static) -> Watching {
        Watching {
            node: "node-1".into(),
            namespaces: false,
            seen: Box::new(|_| {}),
            synced: Box::new(synced),
        }
    }

    impl Server {
        /// `single` is what the server has when it is asked for one pod.
        fn start(listed: Vec<Value>, single: Option<Value>) -> Self {
            let (says, _) = broadcast::channel(16);
            let asked = Arc::new(Mutex::new(Vec::new()));
            let (sender, noted) = (says.clone(), Arc::clone(&asked));
            let service = tower::service_fn(move |request: Request<Body>| {
                let verb = verb(request.method(), request.uri());
                noted.lock().unwrap().push(format!("{verb} {}", request.uri()));
                let events = sender.subscribe();
                let response = match verb {
                    "list" => Response::new(body(&json!({"apiVersion": "v1", "kind": "PodList",
                        "metadata": {"resourceVersion": "1"}, "items": listed}))),
                    "watch" => {
                        let stream = futures_util::stream::unfold(events, |mut events| async {
                            let event: Value = events.recv().await.ok()?;
                            Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), events))
                        });
                        Response::new(StreamBody::new(stream).boxed_unsync())
                    }
                    _ => match &single {
                        Some(pod) => Response::new(body(pod)),
                        None => Response::builder()
                            .status(StatusCode::NOT_FOUND)
                            .body(body(&json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
                                "status": "Failure", "reason": "NotFound", "message": "x", "code": 404})))
                            .unwrap(),
                    },
                };
                async { Ok::<_, Infallible>(response) }
            });
            Self { says, asked, client: Client::new(service, "default") }
        }

        async fn watch(&self) -> Cluster {
            let (synced, is_synced) = mpsc::sync_channel(1);
            let cluster = Cluster::watch(
                self.client.clone(),
                &Handle::current(),
                Arc::new(Metrics::new()),
                watching(move || synced.send(()).unwrap()),
            );
            while is_synced.try_recv().is_err() || self.says.receiver_count() == 0 {
                tokio::task::yield_now().await;
            }
            cluster
        }

        fn verbs(&self) -> Vec<String> {
            self.asked
                .lock()
                .unwrap()
                .iter()
                .map(|request| request.split(' ').next().unwrap().to_owned())
                .collect()
        }
    }

    async fn find(cluster: &Cluster, name: &str, uid: Option<&str>) -> Result<String, Absent> {
        let deadline = Instant::now() + Duration::from_secs(2);
        match cluster.find(Key { namespace: "n", name, uid }, deadline).await? {
            Known::Pod(pod) => Ok(pod.metadata.uid.clone().unwrap_or_default()),
            Known::Static => Ok("static".into()),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_pod_costs_one_list_and_one_watch_and_nothing_for_itself() {
        let server = Server::start(vec![pod("a", "1")], None);
        let cluster = server.watch().await;
        for _ in 0..100 {
            assert_eq!(find(&cluster, "a", Some("1")).await, Ok("1".into()));
        }
        assert_eq!(server.verbs(), ["list", "watch"]);
        let asked = server.asked.lock().unwrap().clone();
        assert!(
            asked.iter().all(|request| request.contains("fieldSelector=spec.nodeName%3Dnode-1")),
            "{asked:?}"
        );
        assert!(asked[0].contains("resourceVersion=0"), "{asked:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_the_watch_tells_of_in_time_is_found_without_a_question() {
        let server = Server::start(vec![pod("web-0", "old")], None);
        let cluster = server.watch().await;
        let (found, ()) = tokio::join!(find(&cluster, "web-0", Some("new")), async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.says.send(json!({"type": "ADDED", "object": pod("web-0", "new")})).unwrap();
        });
        assert_eq!((found, server.verbs().len()), (Ok("new".into()), 2));
        server.says.send(json!({"type": "DELETED", "object": pod("web-0", "new")})).unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let gone = find(&cluster, "web-0", Some("new")).await;
        assert_eq!(gone, Err(Absent::Unknown { place: PLACE.into() }));
        assert_eq!(server.verbs(), ["list", "watch", "get"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_watch_does_not_tell_of_is_asked_for_once_after_two_seconds() {
        let server = Server::start(vec![], Some(pod("a", "1")));
        let cluster = server.watch().await;
        let begin = Instant::now();
        assert_eq!(find(&cluster, "a", Some("1")).await, Ok("1".into()));
        assert_eq!((begin.elapsed().as_secs(), server.verbs().len()), (2, 3));
        // What the server has is of another uid.
        let other = find(&cluster, "a", Some("2")).await;
        assert_eq!(other, Err(Absent::OtherUid { place: PLACE.into(), uid: "1".into() }));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_does_not_answer_costs_two_seconds_more_and_is_named() {
        let service = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Said>, Infallible>>()
        });
        let cluster = Cluster::watch(
            Client::new(service, "default"),
            &Handle::current(),
            Arc::new(Metrics::new()),
            watching(|| {}),
        );
        let begin = Instant::now();
        let error = find(&cluster, "a", Some("1")).await.unwrap_err();
        assert_eq!(begin.elapsed().as_secs(), 4);
        assert_eq!(
            error.to_string(),
            "not among the pods known to the agent, and the API server could not be asked: no answer within 2 s"
        );
    }

    #[test]
    fn requests_are_counted_by_the_words_of_the_api() {
        for (path, expected) in [
            ("/api/v1/pods?fieldSelector=x&resourceVersion=0", "list"),
            ("/api/v1/pods?watch=true&timeoutSeconds=290", "watch"),
            ("/api/v1/namespaces/n/pods/a", "get"),
            ("/apis/apps/v1/namespaces/n/daemonsets/istio-cni-node", "get"),
            ("/api/v1/namespaces", "list"),
        ] {
            assert_eq!(verb(&http::Method::GET, &path.parse().unwrap()), expected, "{path}");
        }
        assert_eq!(verb(&http::Method::POST, &"/api/v1/namespaces/n/events".parse().unwrap()), "create");
    }
}
