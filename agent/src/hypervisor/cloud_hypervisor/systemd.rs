//! Processes as instances of `dagger-vm@.service`, started by the host's service manager over
//! D-Bus.
//!
//! Owns the few words that are said to the manager. The manager owns the processes: it confines
//! them, and it keeps them when the agent ends. A connection lives for one call. Called through
//! [`Supervisor`].

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use dagger_payload::id::VmId;
use zbus::OwnedObjectPath;

use super::limits::{GONE_LOOK_EVERY, KILL_WAIT_MAX, MANAGER_WAIT_MAX};
use super::place::Place;
use super::supervisor::Supervisor;

/// Exists where systemd is PID 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// The manager's name for "no such unit is loaded".
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
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
type Listed =
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
pub(super) fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// The unit of a VM.
fn unit(vm: VmId) -> String {
    format!("dagger-vm@{vm}.service")
}

/// The VM of a unit.
fn vm_of_unit(unit: &str) -> Option<VmId> {
    unit.strip_prefix("dagger-vm@")?.strip_suffix(".service")?.parse().ok()
}

/// The host's service manager.
pub(super) struct Systemd;

impl Systemd {
    /// Says something to the manager; on a runtime of its own, since callers are plain threads.
    fn tell<T, F: Future<Output = zbus::Result<T>>>(
        &self,
        what: impl FnOnce(zbus::Connection) -> F,
    ) -> io::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let told = runtime.block_on(tokio::time::timeout(MANAGER_WAIT_MAX, async {
            what(zbus::Connection::system().await?).await
        }));
        match told {
            Ok(answer) => answer.map_err(|error| io::Error::other(format!("systemd: {error}"))),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "systemd does not answer")),
        }
    }

    fn active_state(&self, vm: VmId) -> io::Result<String> {
        self.tell(|bus| async move {
            let path = ManagerProxy::new(&bus).await?.load_unit(&unit(vm)).await?;
            UnitProxy::builder(&bus).path(path).build().await?.active_state().await
        })
    }

    fn wait_inactive(&self, vm: VmId, wait: Duration) -> io::Result<()> {
        let end = Instant::now() + wait;
        while self.may_live(vm)? {
            if Instant::now() >= end {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the unit does not end"));
            }
            std::thread::sleep(GONE_LOOK_EVERY);
        }
        Ok(())
    }
}

impl Supervisor for Systemd {
    fn start(&self, vm: VmId, _: &Place) -> io::Result<()> {
        self.tell(|bus| async move {
            let manager = ManagerProxy::new(&bus).await?;
            // Only forgets how the last process ended; there may be nothing to forget.
            let _ = manager.reset_failed_unit(&unit(vm)).await;
            manager.start_unit(&unit(vm), "fail").await.map(drop)
        })
    }

    fn failure(&self, vm: VmId) -> Option<String> {
        let state = self.active_state(vm).ok()?;
        let ended = matches!(state.as_str(), "failed" | "inactive");
        ended.then(|| format!("{} is {state}; see `journalctl -u {0}`", unit(vm)))
    }

    fn kill(&self, vm: VmId, _: &Place) -> io::Result<()> {
        self.tell(|bus| async move {
            match ManagerProxy::new(&bus).await?.kill_unit(&unit(vm), "all", libc_kill()).await {
                Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
                // A unit that is loaded but has no process: there is nothing to kill.
                Err(error) if error.to_string().contains("No main process") => Ok(()),
                killed => killed,
            }
        })?;
        self.wait_inactive(vm, KILL_WAIT_MAX)
    }

    fn living(&self) -> io::Result<Vec<VmId>> {
        let units = self.tell(|bus| async move {
            let states = ["active", "activating", "deactivating", "reloading"];
            ManagerProxy::new(&bus).await?.list_units_by_patterns(&states, &["dagger-vm@*"]).await
        })?;
        Ok(units.iter().filter_map(|unit| vm_of_unit(&unit.0)).collect())
    }

    fn may_live(&self, vm: VmId) -> io::Result<bool> {
        Ok(!matches!(self.active_state(vm)?.as_str(), "failed" | "inactive"))
    }
}

fn libc_kill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}
