//! How a machine's process ends.
//!
//! Owns the order in which it is told, killed and cleaned up after, and that nothing of a machine
//! that is off may live. Never decides that a machine is to end. Called by the implementation.

use dagger_payload::id::VmId;

use super::api::Api;
use super::limits::{ASK_WAIT_MAX, END_WAIT_MAX};
use super::supervisor::{Listener, listener, wait_end};
use super::{CloudHypervisor, Process, Supervision, failed, unavailable};
use crate::hypervisor::HypervisorError;

impl CloudHypervisor {
    /// Ends the process: told first, so that disks are closed in order, then killed.
    pub(super) fn end(&self, vm: VmId) -> Result<(), HypervisorError> {
        let place = self.place(vm);
        match listener(&place.api()) {
            Ok(Listener::Process(process)) => {
                // It may go before its answer is out, and some releases hang here while a guest is
                // paused.
                let _ = Api::new(&place.api()).put("vmm.shutdown", ASK_WAIT_MAX);
                let _ = wait_end(&process, END_WAIT_MAX);
            }
            Ok(Listener::Nobody | Listener::Unreachable) => {}
            // Whoever that is, systemd kills its own unit's process and no other.
            Err(_) if self.supervision == Supervision::Systemd => {}
            Err(error) => return Err(failed(&error)),
        }
        let killed = self.supervisor.kill(vm, &place);
        let ended = killed.and_then(|()| place.unplug()).and_then(|()| self.attached(vm).clear());
        ended.map_err(|error| failed(&error))
    }

    /// Sees that nothing of a machine that is off is left: what it had may be another's from now
    /// on. That it is off is what its process says, or that nobody listens at its socket; both are
    /// up to that process, which its guest may have taken over, so it is ended where one may live.
    pub(super) fn take_off(&self, vm: VmId, process: &Process) -> Result<(), HypervisorError> {
        match process {
            Process::Guest(_) | Process::Silent => Ok(()),
            Process::Idle => self.end(vm),
            Process::Gone => match self.supervisor.may_live(vm) {
                Ok(true) => self.end(vm),
                Ok(false) => self.attached(vm).clear().map_err(|error| failed(&error)),
                Err(error) => Err(unavailable(&error)),
            },
        }
    }
}
