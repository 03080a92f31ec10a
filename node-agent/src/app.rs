// SPDX-License-Identifier: Apache-2.0
//! Starts everything in its order, and ends it in its order.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use agent_api::PROTOCOL;
use agent_api::netns::Netns;
use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::capabilities;
use crate::cli::Settings;
use crate::observability::admin::{Blocker, Endpoint, Readiness, serve};
use crate::observability::metrics::Metrics;
use crate::plugin_server::{self, Handler, Lost, Names, Records, Sockets};
use crate::pods::Directory;
use crate::pool::{Closer, Pool, QUEUE, THREADS};

/// How long accepted requests may take to end after the signal.
const ENDING: Duration = Duration::from_secs(5);

/// Run until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps the agent from starting.
pub(crate) fn run(settings: Settings) -> Result<()> {
    #[cfg(feature = "fault-injection")]
    let _ = kernel::HOOK.set(plugin_server::fault);
    let run_dir = &settings.run_dir;
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(run_dir)
        .with_context(|| format!("make the run directory {}", run_dir.display()))?;
    // Before the first thread: capabilities belong to threads.
    let kept = capabilities::prepare(run_dir)?;
    let open_files = capabilities::raise_open_files()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), capabilities = ?kept, open_files, ?settings, "start");

    plugin_server::sweep(run_dir);
    let (sockets, names) = plugin_server::bind_beside(run_dir)
        .with_context(|| format!("bind the sockets in {}", run_dir.display()))?;
    let metrics = Arc::new(Metrics::new());
    let readiness = Arc::new(Readiness::new());
    let (synced, pods_synced) = mpsc::sync_channel(1);
    let pods = Directory::watch(settings.pod_manifest_dir.clone(), metrics.bad_manifests.clone(), {
        let readiness = Arc::clone(&readiness);
        move || {
            readiness.clear(Blocker::Pods);
            let _ = synced.send(());
        }
    })
    .context("start the pod source")?;
    let handler = Arc::new(Handler {
        versions: PROTOCOL,
        own_netns: Netns::own()
            .and_then(|n| n.id().map_err(agent_api::netns::NetnsError::Io))
            .context("identify the own netns")?,
        pods: Arc::new(pods),
        pool: Pool::start(THREADS, QUEUE, metrics.queue.clone()).context("start the pool")?,
        closer: Closer::start().context("start the closer")?,
        metrics: Arc::clone(&metrics),
        ipv6_policy: settings.ipv6_policy,
        records: Arc::new(Mutex::new(Records::default())),
    });
    let names = Arc::new(names);
    let ending = Arc::new(AtomicBool::new(false));
    let lost = start_role(&names, &ending, &metrics, &readiness, pods_synced).context("start the role")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    let ended =
        runtime.block_on(serve_until_end(&settings, sockets, handler, metrics, readiness, &ending, lost));
    names.withdraw();
    ended
}

/// Take the public names as soon as an ADD could be answered. What comes out is why that became impossible.
fn start_role(
    names: &Arc<Names>,
    ending: &Arc<AtomicBool>,
    metrics: &Metrics,
    readiness: &Arc<Readiness>,
    pods_synced: mpsc::Receiver<()>,
) -> std::io::Result<oneshot::Receiver<Lost>> {
    let (names, ending, readiness) = (Arc::clone(names), Arc::clone(ending), Arc::clone(readiness));
    let held = metrics.role.clone();
    let (lose, lost) = oneshot::channel();
    thread::Builder::new().name("role".to_owned()).spawn(move || {
        let backed = |backed| {
            if backed { readiness.clear(Blocker::Socket) } else { readiness.block(Blocker::Socket) }
        };
        if pods_synced.recv().is_ok()
            && let Err(error) = plugin_server::hold_role(&names, PROTOCOL, &ending, &held, backed)
        {
            readiness.block(Blocker::Socket);
            let _ = lose.send(error);
        }
    })?;
    Ok(lost)
}

async fn serve_until_end(
    settings: &Settings,
    sockets: Sockets,
    handler: Arc<Handler>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    ending: &AtomicBool,
    lost: oneshot::Receiver<Lost>,
) -> Result<()> {
    let (end, ends) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let mut accepting = tokio::spawn(plugin_server::accept(sockets.requests, Arc::clone(&handler), ends));
    tokio::spawn(plugin_server::take_notices(sockets.notices, handler));
    if let Some(port) = settings.monitoring_port {
        tokio::spawn(serve(settings.bind_address, port, Endpoint::Metrics(Arc::clone(&metrics))));
    }
    if let Some(port) = settings.health_port {
        tokio::spawn(serve(settings.bind_address, port, Endpoint::Health(readiness)));
    }
    let (signal, result) = tokio::select! {
        _ = terminate.recv() => ("SIGTERM", Ok(())),
        _ = interrupt.recv() => ("SIGINT", Ok(())),
        Ok(lost) = lost => ("none", Err(lost.into())),
        // Never before the signal but by a defect: better a restart than an agent that answers nobody.
        ended = &mut accepting => return ended.context("accept connections")?.context("accept connections"),
    };
    tracing::info!(signal, open_connections = metrics.connections.get(), "end");
    // The names stay, so that a plugin finds a socket that refuses, and asks again. Not taken back from here on.
    ending.store(true, Ordering::Release);
    end.send_replace(true);
    // The listener is closed with its task.
    accepting.await.context("accept connections")?.context("accept connections")?;
    let drained = async {
        while metrics.connections.get() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(ENDING, drained).await.is_err() {
        tracing::warn!(
            open_connections = metrics.connections.get(),
            "ended before all requests were answered"
        );
    }
    result
}
