// SPDX-License-Identifier: Apache-2.0
//! The installer as part of the agent: while this agent holds the role, the plugin and its configuration are on the node.
//!
//! Owns when the installer may write and where its state is told; never touches a file itself.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use cni::conflist::Entry;
use install::{Health, Installer, Kind, Leaving, Mode, SettingsError, Watch};

use crate::lookout::Since;
use crate::observability::metrics::Metrics;
use crate::observability::readiness::{Blocker, Readiness};
use crate::plugin_server;
use crate::settings::{InstallSettings, Place};

/// Who is told how the node stands.
pub(crate) struct Told {
    /// What makes the agent ready.
    pub(crate) readiness: Arc<Readiness>,
    /// The metrics.
    pub(crate) metrics: Arc<Metrics>,
    /// Given a reason code and a message whenever a person must come.
    pub(crate) alarm: Box<dyn Fn(&'static str, String) + Send>,
}

/// Keep the node as `installer` says for as long as `may_write`, and tell how it stands. Until the first turn, which
/// `had_a_turn` tells, that is unknown.
///
/// # Errors
/// Those of starting a thread.
pub(crate) fn keep(
    installer: Installer,
    may_write: impl Fn() -> bool + Send + Sync + 'static,
    had_a_turn: impl Fn() -> bool + Send + 'static,
    told: Told,
) -> io::Result<Watch> {
    let mut before = Health::default();
    Watch::start(installer.while_allowed(may_write), move |health| {
        told.tell(&before, health, had_a_turn());
        before = health.clone();
    })
}

/// An installer for `settings`.
///
/// # Errors
/// All that is wrong with them.
pub(crate) fn installer(settings: &InstallSettings) -> Result<Installer, Vec<SettingsError>> {
    let entry = &settings.entry;
    Installer::new(install::InstallSettings {
        plugin: settings.bin_source.clone(),
        bin_dirs: settings.bin_dirs.clone(),
        conf_dir: settings.net_dir.clone(),
        mode: match settings.place.clone() {
            Place::Chained { primary } => Mode::Chained { file: primary },
            Place::OwnFile { name, primary } => Mode::OwnFile { name, primary },
            Place::Standalone { name } => Mode::Standalone { name },
        },
        entry: Entry {
            log_level: entry.plugin_log_level.to_owned(),
            run_dir: entry.cni_agent_run_dir.to_string_lossy().into_owned(),
            ambient_enabled: entry.ambient_enabled,
            exclude_namespaces: entry.exclude_namespaces.clone(),
            pod_namespace: entry.pod_namespace.clone(),
            deadline_seconds: entry.agent_deadline_seconds,
            observe: entry.observe,
        },
        file_mode: if settings.group_read { 0o640 } else { 0o600 },
        downgrade: false,
    })
}

/// Take everything off the node; tells what was changed.
///
/// # Errors
/// A line for each thing that did not succeed.
pub(crate) fn uninstall(settings: &InstallSettings, leaving: Leaving) -> Result<Vec<PathBuf>, String> {
    fn lines<E: ToString>(errors: Vec<E>) -> String {
        errors.iter().map(E::to_string).collect::<Vec<_>>().join("\n")
    }
    let changed = installer(settings).map_err(lines)?.remove(leaving).map_err(lines)?;
    // From now on others may redirect pods: an agent that comes later must not miss records of them. In this order, see
    // `Since::load`.
    let run_dir = &settings.entry.cni_agent_run_dir;
    Since::forget(run_dir)
        .and_then(|()| plugin_server::forget(run_dir))
        .map_err(|error| format!("{}: {error}", run_dir.display()))?;
    Ok(changed)
}

impl Told {
    fn tell(&self, before: &Health, health: &Health, had_a_turn: bool) {
        let Self { readiness, metrics, alarm } = self;
        // An agent that stands by has nothing to put in place: the one that holds the role does.
        match health.blockers.iter().find(|blocker| blocker.kind != Kind::NotHolder) {
            Some(blocker) => readiness.block(Blocker::Install, &blocker.to_string()),
            None if !health.is_ready() && (health.blockers.is_empty() || !had_a_turn) => {}
            None => readiness.clear(Blocker::Install),
        }
        for blocker in health.blockers.iter().filter(|blocker| !before.blockers.contains(blocker)) {
            match blocker.kind {
                Kind::NotHolder => tracing::debug!("{blocker}"),
                _ => tracing::warn!(reason = "not_installed", "{blocker}"),
            }
        }
        if let Some(report) = &health.report {
            if before
                .report
                .as_ref()
                .is_none_or(|old| old.changed != report.changed || old.file != report.file)
            {
                tracing::info!(file = %report.file.display(), changed = ?report.changed, "in place");
            }
            let known = |notice| before.report.as_ref().is_some_and(|old| old.notices.contains(notice));
            for notice in report.notices.iter().filter(|notice| !known(notice)) {
                tracing::warn!(reason = "install_notice", "{notice}");
            }
        }
        if health.polling && !before.polling {
            tracing::warn!(
                "the kernel grants no file watch; the directories are looked at every two seconds"
            );
        }
        let ready = health.is_ready();
        metrics.install_ready.set(i64::from(ready));
        if ready && !before.is_ready() {
            metrics.install("SUCCESS");
        }
        for blocker in health.blockers.iter().filter(|blocker| !before.blockers.contains(blocker)) {
            if blocker.kind == Kind::Refused {
                let binary = blocker.path.file_name().is_some_and(|name| *name == *cni::conflist::TYPE);
                metrics.install(if binary { "COPY_BINARIES_FAILURE" } else { "CREATE_CNI_CONFIG_FAILURE" });
            }
        }
        metrics.install_restored.inc_by(health.restored.saturating_sub(before.restored));
        metrics.install_fight.set(i64::from(health.fight.is_some()));
        let Some(fight) = &health.fight else { return };
        let place = health
            .report
            .as_ref()
            .map_or_else(|| "the CNI configuration".to_owned(), |report| report.file.display().to_string());
        let restored = fight.restored;
        let reason = "install_fight";
        let message = format!(
            "something on the node takes our entry out of {place} again and again (restored {restored} times): pods that \
             start meanwhile may go past their proxy; find who writes there, and have it leave the files of others alone"
        );
        if before.fight.is_none() {
            tracing::error!(reason, restored, pause = ?fight.pause, "{message}");
        }
        alarm(reason, message);
    }
}
