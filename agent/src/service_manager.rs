//! The host's service manager, systemd, over D-Bus.
//!
//! Owns the few words that are said to it about units of ours. A connection lives for one call.
//! Never names a unit itself. Called by whoever has units: Cloud Hypervisor's machines and the
//! helper for networks.

use std::io;
use std::path::Path;

use zbus::OwnedObjectPath;

use crate::limits::SERVICE_MANAGER_WAIT_MAX;

/// Exists where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// The manager's words, as far as we use them.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub(crate) trait Manager {
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<Listed>>;
}

/// One unit of a listing, as systemd tells it: its name, its description, three states, what it
/// follows, its path, and its job.
pub(crate) type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
}

/// Whether systemd runs this host.
pub(crate) fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Says something to the manager; on a runtime of its own, since callers are plain threads.
pub(crate) fn tell<T, F: Future<Output = zbus::Result<T>>>(
    what: impl FnOnce(zbus::Connection) -> F,
) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The clock of the wait is the runtime's: it can be made only inside.
    let told = runtime.block_on(async {
        let telling = async { what(zbus::Connection::system().await?).await };
        tokio::time::timeout(SERVICE_MANAGER_WAIT_MAX, telling).await
    });
    match told {
        Ok(answer) => answer.map_err(|error| io::Error::other(format!("systemd: {error}"))),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "systemd does not answer")),
    }
}

/// Begins to start a unit, whatever came of it the last time.
pub(crate) fn start(unit: &str) -> io::Result<()> {
    tell(|bus| async move {
        let manager = ManagerProxy::new(&bus).await?;
        // Only forgets how the last process ended; there may be nothing to forget.
        let _ = manager.reset_failed_unit(unit).await;
        manager.start_unit(unit, "fail").await.map(drop)
    })
}

/// The state of a unit in the manager's words.
pub(crate) fn active_state(unit: &str) -> io::Result<String> {
    tell(|bus| async move {
        let path = ManagerProxy::new(&bus).await?.load_unit(unit).await?;
        UnitProxy::builder(&bus).path(path).build().await?.active_state().await
    })
}
