// SPDX-License-Identifier: Apache-2.0
//! Starts everything in its order, and ends it in its order.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use ::install::{Installer, Leaving, Watch};
use agent_api::PROTOCOL;
use agent_api::netns::Netns;
use anyhow::{Context as _, Result, anyhow};
use kube::Client;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;
use tokio::time::{sleep, timeout};

use crate::capabilities;
use crate::install;
use crate::leave::{self, Stop};
use crate::observability::admin::{Endpoint, Place, serve, serve_socket};
use crate::observability::admin_socket::AdminSocket;
use crate::observability::lines;
use crate::observability::metrics::Metrics;
use crate::observability::readiness::{Blocker, Readiness};
use crate::observability::view::View;
use crate::plugin_server::{self, Handler, Lost, Names, Records, Sockets};
use crate::pod_source::{Source, pod_source};
use crate::pool::{Closer, Pool, QUEUE, THREADS};
use crate::settings::{Effective, InstallSettings, Place as SettingsPlace, Settings};

/// How long accepted requests may take to end after the signal.
const ENDING: Duration = Duration::from_secs(5);

/// What answering needs, once it was started.
struct Started {
    sockets: Sockets,
    names: Arc<Names>,
    handler: Arc<Handler>,
    client: Option<Client>,
    lost: oneshot::Receiver<Lost>,
}

/// Run until SIGTERM or SIGINT. The process began at `started`.
///
/// # Errors
/// What keeps the agent from starting.
pub(crate) fn run(effective: Effective, started: SystemTime) -> Result<()> {
    #[cfg(feature = "fault-injection")]
    let _ = kernel::HOOK.set(plugin_server::fault);
    let settings = effective.settings.clone();
    let run_dir = &settings.run_dir;
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(run_dir)
        .with_context(|| format!("make the run directory {}", run_dir.display()))?;
    // Before the first thread: capabilities belong to threads.
    let InstallSettings { enabled, net_dir, bin_dirs, .. } = &settings.install;
    let installed = [net_dir].into_iter().chain(bin_dirs).filter(|dir| *enabled && dir.exists());
    let dirs: Vec<&Path> = [run_dir].into_iter().chain(installed).map(PathBuf::as_path).collect();
    let kept = capabilities::prepare(&dirs)?;
    let open_files = capabilities::raise_open_files()?;
    lines::start().context("start a thread for the log")?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), capabilities = ?kept, open_files, "start");
    effective.log();

    let metrics = Arc::new(Metrics::new());
    let installer = match settings.install.enabled {
        true => Some(install::installer(&settings.install).map_err(|errors| {
            anyhow!("{}", errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        })?),
        false => None,
    };
    let mut checks = vec![Blocker::Pods, Blocker::Socket];
    checks.extend(installer.is_some().then_some(Blocker::Install));
    checks.extend(settings.ambient_enabled.then_some(Blocker::Ambient));
    let view = Arc::new(View {
        started,
        readiness: Arc::new(Readiness::new(checks, Arc::clone(&metrics))),
        metrics,
        records: Arc::new(Mutex::new(
            Records::open(run_dir)
                .with_context(|| format!("read the records of sandboxes in {}", run_dir.display()))?,
        )),
        effective,
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the event loop")?;
    runtime.block_on(live(settings, installer, view))
}

/// Serve the ports, then start the rest beside the event loop: a probe is answered from the beginning, whatever the rest
/// takes.
async fn live(settings: Settings, installer: Option<Installer>, view: Arc<View>) -> Result<()> {
    let installs = installer.is_some();
    let signals = (
        signal(SignalKind::terminate()).context("handle SIGTERM")?,
        signal(SignalKind::interrupt()).context("handle SIGINT")?,
    );
    for (place, port) in [(Place::Health, settings.health_port), (Place::Metrics, settings.monitoring_port)] {
        if let Some(port) = port {
            tokio::spawn(serve(settings.bind_address, port, Endpoint { place, view: Arc::clone(&view) }));
        }
    }
    // The ports are bound when their tasks have had a turn.
    tokio::task::yield_now().await;
    // Without it pods are served all the same.
    let mut admin = AdminSocket::bind(&settings.run_dir)
        .inspect_err(
            |error| tracing::error!(%error, "bind the admin socket: no status and pods for this agent"),
        )
        .ok();
    if let Some(listener) = admin.as_mut().and_then(|admin| admin.listener.take()) {
        tokio::spawn(serve_socket(listener, Endpoint { place: Place::Admin, view: Arc::clone(&view) }));
    }
    let ending = Arc::new(AtomicBool::new(false));
    let (started, starts) = oneshot::channel();
    let (seen, ends, runtime) = (Arc::clone(&view), Arc::clone(&ending), Handle::current());
    let given = settings.clone();
    thread::Builder::new()
        .name("start".to_owned())
        .spawn(move || {
            let _ = started.send(start(&given, installer, &seen, &ends, &runtime));
        })
        .context("start a thread")?;
    let Started { sockets, names, handler, client, lost } = starts.await.context("start")??;
    // Asked while pods are served as ever: until it is known, the stop changes nothing.
    let stop = async {
        if !installs {
            return Stop::Keep("install_disabled");
        }
        match client {
            Some(client) => leave::of(client, &settings.leave, || !names.are_ours()).await,
            None => Stop::Keep("no_api"),
        }
    };
    let (stop, ended) = serve_until_end(signals, stop, sockets, handler, &ending, lost).await;
    let ours = names.are_ours();
    names.withdraw();
    if installs {
        finish(stop, ours, &settings.install);
    }
    ended
}

/// Leave the node as it is to be left.
fn finish(stop: Stop, ours: bool, settings: &InstallSettings) {
    match stop {
        Stop::Uninstall(reason) if ours => match install::uninstall(settings, leaving(&settings.place)) {
            Ok(changed) => tracing::info!(reason, ?changed, "uninstalled: the node is as it was before"),
            Err(error) => {
                tracing::error!(
                    reason,
                    error,
                    "uninstall; on the node run: install-cni uninstall, or node-cleanup.sh"
                );
            }
        },
        Stop::Uninstall(reason) | Stop::Keep(reason) => tracing::info!(
            reason,
            "the plugin and its CNI configuration stay on the node; to remove them run: install-cni uninstall"
        ),
    }
}

/// Whether an agent was here before, and not uninstalled: of Multus the plugin's file stays then.
fn was_installed(installer: &Installer, InstallSettings { place, net_dir, .. }: &InstallSettings) -> bool {
    let entry = match place {
        SettingsPlace::Standalone { name } => net_dir.join(name).exists(),
        SettingsPlace::Chained { .. } | SettingsPlace::OwnFile { .. } => true,
    };
    entry && installer.has_plugin()
}

/// What stays for the pods that outlive the agent: Multus calls the plugin for their DEL.
fn leaving(place: &SettingsPlace) -> Leaving {
    match place {
        SettingsPlace::Standalone { .. } => Leaving::Plugin,
        SettingsPlace::Chained { .. } | SettingsPlace::OwnFile { .. } => Leaving::Nothing,
    }
}

/// Start all but the ports.
fn start(
    settings: &Settings,
    installer: Option<Installer>,
    view: &View,
    ending: &Arc<AtomicBool>,
    runtime: &Handle,
) -> Result<Started> {
    let run_dir = &settings.run_dir;
    let metrics = &view.metrics;
    plugin_server::sweep(run_dir);
    let (sockets, names) = plugin_server::bind_beside(run_dir)
        .with_context(|| format!("bind the sockets in {}", run_dir.display()))?;
    let (synced, pods_synced) = mpsc::sync_channel(1);
    let was_installed =
        || installer.as_ref().is_some_and(|installer| was_installed(installer, &settings.install));
    let readiness = Arc::clone(&view.readiness);
    let Source { pods, events, client, own, since } =
        pod_source(settings, was_installed, runtime, view, move || {
            readiness.clear(Blocker::Pods);
            let _ = synced.send(());
        })
        .context("start the pod source")?;
    let said = events.clone();
    let alarm = move |reason, message| own.say(&said, reason, message);
    let handler = Arc::new(Handler {
        versions: PROTOCOL,
        own_netns: Netns::own()
            .and_then(|n| n.id().map_err(agent_api::netns::NetnsError::Io))
            .context("identify the own netns")?,
        pods,
        pool: Pool::start(THREADS, QUEUE, metrics.queue.clone()).context("start the pool")?,
        late: Pool::start(1, QUEUE, metrics.queue.clone()).context("start the pool")?,
        closer: Closer::start().context("start the closer")?,
        metrics: Arc::clone(metrics),
        policy: settings.policy.clone(),
        events,
        records: Arc::clone(&view.records),
    });
    let names = Arc::new(names);
    let had_role = Arc::new(AtomicBool::new(false));
    let watch = installer.map(|installer| {
        // Installer and socket are one role: who lost the socket writes nothing more, from that moment on.
        let (names, ending) = (Arc::clone(&names), Arc::clone(ending));
        let may_write = move || !ending.load(Ordering::Acquire) && names.are_ours();
        let had_role = Arc::clone(&had_role);
        let had_a_turn = move || had_role.load(Ordering::Acquire);
        let told = install::Told {
            readiness: Arc::clone(&view.readiness),
            metrics: Arc::clone(metrics),
            alarm: Box::new(alarm),
        };
        install::keep(installer, may_write, had_a_turn, told)
    });
    let watch = watch.transpose().context("start the installer")?;
    let held = {
        let (gauge, records, run_dir) = (metrics.role.clone(), Arc::clone(&view.records), run_dir.clone());
        let ending = Arc::clone(ending);
        move |held: bool| {
            had_role.fetch_or(held, Ordering::AcqRel);
            if held && !ending.load(Ordering::Acquire) {
                let restored = records.lock().unwrap_or_else(PoisonError::into_inner).restore();
                if let Err(error) =
                    restored.and_then(|()| since.map_or(Ok(()), |since| since.restore(&run_dir)))
                {
                    tracing::warn!(%error, "write the records of sandboxes again; after a restart they are not known");
                }
            }
            if gauge.set(i64::from(held)) != i64::from(held) {
                watch.iter().for_each(Watch::look);
            }
        }
    };
    let lost = start_role(&names, ending, &view.readiness, pods_synced, held).context("start the role")?;
    Ok(Started { sockets, names, handler, client, lost })
}

/// Take the public names as soon as an ADD could be answered. What comes out is why that became impossible.
fn start_role(
    names: &Arc<Names>,
    ending: &Arc<AtomicBool>,
    readiness: &Arc<Readiness>,
    pods_synced: mpsc::Receiver<()>,
    held: impl Fn(bool) + Send + 'static,
) -> io::Result<oneshot::Receiver<Lost>> {
    let (names, ending, readiness) = (Arc::clone(names), Arc::clone(ending), Arc::clone(readiness));
    let (lose, lost) = oneshot::channel();
    thread::Builder::new().name("role".to_owned()).spawn(move || {
        let backed = |unfit: Option<&str>| match unfit {
            None => readiness.clear(Blocker::Socket),
            Some(reason) => readiness.block(Blocker::Socket, reason),
        };
        if pods_synced.recv().is_ok()
            && let Err(error) = plugin_server::hold_role(&names, PROTOCOL, &ending, held, backed)
        {
            readiness.block(Blocker::Socket, &error.to_string());
            let _ = lose.send(error);
        }
    })?;
    Ok(lost)
}

/// Serve until a signal, and while `stop` is being found out.
async fn serve_until_end(
    (mut terminate, mut interrupt): (Signal, Signal),
    stop: impl Future<Output = Stop>,
    sockets: Sockets,
    handler: Arc<Handler>,
    ending: &AtomicBool,
    lost: oneshot::Receiver<Lost>,
) -> (Stop, Result<()>) {
    let (end, ends) = watch::channel(false);
    let metrics = Arc::clone(&handler.metrics);
    let mut accepting = tokio::spawn(plugin_server::accept(sockets.requests, Arc::clone(&handler), ends));
    tokio::spawn(plugin_server::take_notices(sockets.notices, handler));
    let failed = |result: Result<io::Result<()>, JoinError>| {
        (
            Stop::Keep("failed"),
            result.context("accept connections").and_then(|r| r.context("accept connections")),
        )
    };
    let (signal, result) = tokio::select! {
        _ = terminate.recv() => ("SIGTERM", Ok(())),
        _ = interrupt.recv() => ("SIGINT", Ok(())),
        Ok(lost) = lost => ("none", Err(lost.into())),
        // Never before the signal but by a defect: better a restart than an agent that answers nobody.
        ended = &mut accepting => return failed(ended),
    };
    tracing::info!(signal, open_connections = metrics.connections.get(), "end");
    let stop = if result.is_ok() {
        tokio::select! {
            stop = stop => stop,
            ended = &mut accepting => return failed(ended),
        }
    } else {
        Stop::Keep("failed")
    };
    // The names stay, so that a plugin finds a socket that refuses, and asks again. Not taken back from here on.
    ending.store(true, Ordering::Release);
    end.send_replace(true);
    // The listener is closed with its task.
    if let (_, Err(error)) = failed(accepting.await) {
        return (stop, Err(error));
    }
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
    (stop, result)
}
