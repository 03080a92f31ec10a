// SPDX-License-Identifier: Apache-2.0
//! HTTP: `/metrics` on one port, `/readyz` and `/healthz` on the other.
//!
//! Anybody on the node's network may connect, so connections are few and short-lived, the newest always gets a place, and
//! nothing is read but the path.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::metrics::Metrics;

/// Open connections per port: Prometheus and the kubelet need one or two. The oldest makes room for one more.
const CONNECTIONS: usize = 32;
/// Time to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest life of a connection: one request and its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before another attempt to bind a port that is taken, or to accept when descriptors are used up.
const RETRY: Duration = Duration::from_secs(1);

/// What must hold before the agent counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Blocker {
    /// The pod source has not read everything yet.
    Pods,
    /// Neither this agent nor one that it could replace serves the socket.
    Socket,
}

/// The blockers that are left.
#[derive(Debug)]
pub(crate) struct Readiness(Mutex<BTreeSet<Blocker>>);

/// Which of the two ports.
#[derive(Clone)]
pub(crate) enum Endpoint {
    /// `/metrics`.
    Metrics(Arc<Metrics>),
    /// `/readyz`, `/healthz`.
    Health(Arc<Readiness>),
}

impl Readiness {
    /// Nothing is ready.
    pub(crate) fn new() -> Self {
        Self(Mutex::new([Blocker::Pods, Blocker::Socket].into()))
    }

    /// `blocker` is gone.
    pub(crate) fn clear(&self, blocker: Blocker) {
        self.lock().remove(&blocker);
    }

    /// `blocker` is there again.
    pub(crate) fn block(&self, blocker: Blocker) {
        self.lock().insert(blocker);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<Blocker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn left(&self) -> Vec<Blocker> {
        self.lock().iter().copied().collect()
    }
}

impl Endpoint {
    fn name(&self) -> &'static str {
        match self {
            Self::Metrics(_) => "metrics",
            Self::Health(_) => "health",
        }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only\n");
        }
        match (self, path) {
            (Self::Metrics(metrics), "/metrics") => {
                let mut response = text(StatusCode::OK, metrics.render());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response
                    .headers_mut()
                    .insert(CONTENT_TYPE, kind.parse().expect("visible ASCII is a header value"));
                response
            }
            (Self::Health(_), "/healthz") => text(StatusCode::OK, "ok\n"),
            (Self::Health(readiness), "/readyz") => match readiness.left().as_slice() {
                [] => text(StatusCode::OK, "ready\n"),
                left => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {left:?}\n")),
            },
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
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
    let mut open = VecDeque::<JoinHandle<()>>::with_capacity(CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|task| !task.is_finished());
                if open.len() >= CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                let endpoint = endpoint.clone();
                open.push_back(tokio::spawn(async move {
                    // A peer that breaks off or is too slow is no news.
                    let _ = timeout(CONNECTION_TIMEOUT, connection(stream, endpoint)).await;
                }));
            }
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

async fn connection(stream: TcpStream, endpoint: Endpoint) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = endpoint.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(endpoint: &Endpoint, path: &str) -> u16 {
        endpoint.answer(&Method::GET, path).status().as_u16()
    }

    #[test]
    fn readiness_needs_every_blocker_cleared_and_health_none() {
        let readiness = Arc::new(Readiness::new());
        let endpoint = Endpoint::Health(Arc::clone(&readiness));
        assert_eq!((status(&endpoint, "/readyz"), status(&endpoint, "/healthz")), (503, 200));
        readiness.clear(Blocker::Pods);
        assert_eq!(readiness.left(), [Blocker::Socket]);
        assert_eq!(status(&endpoint, "/readyz"), 503);
        readiness.clear(Blocker::Socket);
        assert_eq!(status(&endpoint, "/readyz"), 200);
        readiness.block(Blocker::Socket);
        assert_eq!(status(&endpoint, "/readyz"), 503);
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let endpoint = Endpoint::Metrics(Arc::new(Metrics::new()));
        assert_eq!((status(&endpoint, "/metrics"), status(&endpoint, "/")), (200, 404));
        assert_eq!(endpoint.answer(&Method::POST, "/metrics").status().as_u16(), 405);
    }
}
