// SPDX-License-Identifier: Apache-2.0
//! HTTP: `/metrics` on one port, `/readyz`, `/healthz` and `/config` on the other, and all of it on the admin socket.
//!
//! Anybody on the node's network may connect, so connections are few and short-lived, the newest always gets a place, and
//! nothing is read but the path.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::view::View;

/// Open connections per port: Prometheus and the kubelet need one or two. The oldest makes room for one more.
const CONNECTIONS: usize = 32;
/// Time to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest life of a connection: one request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before another attempt to bind a port that is taken, or to accept when descriptors are used up.
const RETRY: Duration = Duration::from_secs(1);
/// Type of what programs read.
const JSON: &str = "application/json";

/// Where something is served, and so what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The port of `/metrics`.
    Metrics,
    /// The port of `/readyz`, `/healthz` and `/config`.
    Health,
    /// The admin socket: all of that, `/status` and `/pods`.
    Admin,
}

/// A place, and what can be seen there.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// Which place.
    pub(crate) place: Place,
    /// What can be seen.
    pub(crate) view: Arc<View>,
}

/// The connections of one place that are open.
#[derive(Default)]
struct Open(VecDeque<JoinHandle<()>>);

impl Endpoint {
    fn name(&self) -> &'static str {
        match self.place {
            Place::Metrics => "metrics",
            Place::Health => "health",
            Place::Admin => "admin",
        }
    }

    fn answer(&self, method: &Method, path: &str, query: Option<&str>) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only\n");
        }
        let view = &self.view;
        let verbose = query.is_some_and(|q| q.split('&').any(|p| p.split('=').next() == Some("verbose")));
        match (self.place, path) {
            (Place::Metrics | Place::Admin, "/metrics") => {
                typed("application/openmetrics-text; version=1.0.0; charset=utf-8", view.metrics.render())
            }
            (Place::Health | Place::Admin, "/healthz") => text(StatusCode::OK, "ok\n"),
            (Place::Health | Place::Admin, "/readyz") => match view.readiness.report() {
                (true, _) if !verbose => text(StatusCode::OK, "ok\n"),
                (true, report) => text(StatusCode::OK, report),
                (false, report) => text(StatusCode::SERVICE_UNAVAILABLE, report),
            },
            (Place::Health | Place::Admin, "/config") => typed(JSON, view.effective.json()),
            (Place::Admin, "/status") => typed(JSON, view.status().to_string()),
            (Place::Admin, "/pods") => typed(JSON, view.pods().to_string()),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

impl Open {
    /// Serve one request on `stream`; the oldest connection makes room for it.
    fn serve(&mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, endpoint: &Endpoint) {
        self.0.retain(|task| !task.is_finished());
        if self.0.len() >= CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        let endpoint = endpoint.clone();
        self.0.push_back(tokio::spawn(async move {
            // A peer that breaks off or is too slow is no news.
            let _ = timeout(CONNECTION_TIMEOUT, connection(stream, endpoint)).await;
        }));
    }
}

/// Serve `endpoint` on the admin socket for ever.
pub(crate) async fn serve_socket(listener: UnixListener, endpoint: Endpoint) {
    let listener = match tokio::net::UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "serve the admin socket"),
    };
    let mut open = Open::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) => {
                open.serve(stream, &endpoint)
            }
            Ok(_) => endpoint.view.metrics.refuse("peer_uid"),
            Err(error) => {
                tracing::warn!(%error, "accept on the admin socket");
                sleep(RETRY).await;
            }
        }
    }
}

/// Serve `endpoint` for ever. A port that is taken is logged and tried again: on the host network the older agent may
/// have it for a while.
pub(crate) async fn serve(address: Option<IpAddr>, port: u16, endpoint: Endpoint) {
    let mut told = false;
    let listener = loop {
        match bind(address, port).await {
            Ok(listener) => break listener,
            Err(error) if !told => {
                tracing::warn!(port, %error, "bind the {} port; trying again", endpoint.name());
                told = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    };
    let mut open = Open::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => open.serve(stream, &endpoint),
            Err(error) => {
                tracing::warn!(port, %error, "accept on the {} port", endpoint.name());
                sleep(RETRY).await;
            }
        }
    }
}

async fn bind(address: Option<IpAddr>, port: u16) -> io::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind(SocketAddr::new(address, port)).await;
    }
    match TcpListener::bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
        // The kernel has no IPv6.
        Err(_) => TcpListener::bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).await,
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    endpoint: Endpoint,
) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let endpoint = endpoint.clone();
        async move {
            let uri = request.uri();
            if (endpoint.place, uri.path()) == (Place::Health, "/readyz") {
                endpoint.view.readiness.settle().await;
            }
            Ok::<_, Infallible>(endpoint.answer(request.method(), uri.path(), uri.query()))
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn typed(kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::observability::metrics::Metrics;
    use crate::observability::readiness::{Blocker, Readiness};
    use crate::settings::{Effective, Settings, Values};

    fn endpoint(place: Place) -> Endpoint {
        let metrics = Arc::new(Metrics::new());
        let mut values =
            Values::gather(|_| None, |name| (name == "POD_MANIFEST_DIR").then(|| "/pods".to_owned()));
        let view = View {
            started: SystemTime::UNIX_EPOCH,
            readiness: Arc::new(Readiness::new(vec![Blocker::Pods, Blocker::Socket], Arc::clone(&metrics))),
            metrics,
            records: Arc::new(Mutex::default()),
            effective: Effective::new(Settings::resolve(&mut values).unwrap(), &values),
        };
        Endpoint { place, view: Arc::new(view) }
    }

    async fn get(endpoint: &Endpoint, path: &str, query: Option<&str>) -> (u16, String) {
        let response = endpoint.answer(&Method::GET, path, query);
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_needs_every_blocker_cleared_and_health_none() {
        let endpoint = endpoint(Place::Health);
        let readiness = &endpoint.view.readiness;
        assert_eq!(get(&endpoint, "/healthz", None).await.0, 200);
        let (status, text) = get(&endpoint, "/readyz", None).await;
        assert_eq!((status, text.lines().count()), (503, 3), "{text}");
        readiness.clear(Blocker::Pods);
        assert_eq!(get(&endpoint, "/readyz", None).await.0, 503);
        readiness.clear(Blocker::Socket);
        assert_eq!(get(&endpoint, "/readyz", None).await, (200, "ok\n".to_owned()));
        for query in ["verbose", "verbose=1", "a&verbose"] {
            let expected = "[+]pods ok\n[+]socket ok\nreadyz check passed\n";
            assert_eq!(get(&endpoint, "/readyz", Some(query)).await, (200, expected.to_owned()), "{query}");
        }
        readiness.block(Blocker::Socket, "lost");
        assert_eq!(get(&endpoint, "/readyz", None).await.0, 503);
    }

    #[tokio::test]
    async fn each_place_has_its_paths_and_the_admin_socket_all() {
        for (place, served) in [
            (Place::Metrics, &["/metrics"][..]),
            (Place::Health, &["/readyz", "/healthz", "/config"]),
            (Place::Admin, &["/metrics", "/readyz", "/healthz", "/config", "/status", "/pods"]),
        ] {
            let endpoint = endpoint(place);
            for path in ["/metrics", "/readyz", "/healthz", "/config", "/status", "/pods", "/"] {
                let status = get(&endpoint, path, None).await.0;
                assert_eq!(status != 404, served.contains(&path), "{place:?} {path}");
            }
            assert_eq!(endpoint.answer(&Method::POST, "/metrics", None).status().as_u16(), 405);
        }
    }
}
