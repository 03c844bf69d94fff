//! Processes as instances of `dagger-vm@.service`, started by the host's service manager over
//! D-Bus.
//!
//! Owns the names of these units. The manager owns the processes: it confines them, and it keeps
//! them when the agent ends. Called through [`Supervisor`].

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use dagger_payload::id::VmId;

use super::limits::{GONE_LOOK_EVERY, KILL_WAIT_MAX};
use super::place::Place;
use super::supervisor::Supervisor;
use crate::service_manager::{self, ManagerProxy};

/// The manager's name for "no such unit is loaded".
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

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
    fn active_state(&self, vm: VmId) -> io::Result<String> {
        service_manager::active_state(&unit(vm))
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
        service_manager::start(&unit(vm))
    }

    fn failure(&self, vm: VmId) -> Option<String> {
        let state = self.active_state(vm).ok()?;
        let ended = matches!(state.as_str(), "failed" | "inactive");
        ended.then(|| format!("{} is {state}; see `journalctl -u {0}`", unit(vm)))
    }

    fn kill(&self, vm: VmId, _: &Place) -> io::Result<()> {
        service_manager::tell(|bus| async move {
            match ManagerProxy::new(&bus).await?.kill_unit(&unit(vm), "all", libc_kill()).await {
                Err(zbus::Error::MethodError(name, ..)) if name.as_str() == NO_SUCH_UNIT => Ok(()),
                // A unit that is loaded but has no process: there is nothing to kill.
                Err(error) if error.to_string().contains("No main process") => Ok(()),
                killed => killed,
            }
        })?;
        self.wait_inactive(vm, KILL_WAIT_MAX)
    }

    fn living(&self, _: &Path) -> io::Result<Vec<VmId>> {
        let units = service_manager::tell(|bus| async move {
            // A failed unit is forgotten at once (CollectMode) unless processes of it are left.
            let states = ["active", "activating", "deactivating", "reloading", "failed"];
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
