//! What an account has used, as of a commit: from the releases up to it alone.
//!
//! Owns which objects count and the order in which they are shown, so that every host, and whoever
//! has the releases, says the same about the same commit. Never decides when a meter runs. Called
//! by the agent's model and by `daggerctl`.

use std::collections::{BTreeMap, VecDeque};

use dagger_payload::changed_vm::{ChangedVm, UnknownVm};
use dagger_payload::id::{AccountId, CommitIndex, HostId, LedgerTime, VmId, VolumeId};
use dagger_payload::kind::Capacity;
use dagger_payload::name::Name;
use dagger_payload::object::{Effect, Placement, VmState};
use dagger_payload::release::CommitRelease;
use dagger_payload::usage::{Meter, PastUsage, Used};
use dagger_payload::volume::{Volume, VolumeState};

use crate::{HostUsageView, UsageView, VmUsageView, VolumeUsageView};

/// What one VM or volume has used on its host.
#[derive(Debug, Clone)]
struct Line {
    host: HostId,
    name: Name,
    size: Capacity,
    meter: Meter,
}

/// The bill of one account, after some releases.
#[derive(Debug, Clone)]
pub struct Bill {
    account: AccountId,
    at: CommitIndex,
    now: LedgerTime,
    /// What the account's VMs are called that exist.
    names: BTreeMap<VmId, Name>,
    vms: BTreeMap<VmId, Line>,
    volumes: BTreeMap<VolumeId, Line>,
    past: BTreeMap<HostId, PastUsage>,
    /// The newest deleted VMs, each with its host.
    deleted: VecDeque<(HostId, VmUsageView)>,
}

/// Deleted VMs that a bill names one by one; older ones are in the sums alone.
pub const DELETED_NAMED_MAX: usize = 1000;

/// Whose meter a VM's is: also when it was lost with its host.
fn billed_on(placement: &Placement) -> Option<HostId> {
    match placement {
        Placement::Offered { host, .. }
        | Placement::Accepted { host, .. }
        | Placement::Lost { host } => Some(*host),
        Placement::NoHost {} => None,
    }
}

impl Bill {
    /// Before the first commit.
    pub fn new(account: AccountId) -> Self {
        Self {
            account,
            at: CommitIndex(0),
            now: LedgerTime(0),
            names: BTreeMap::new(),
            vms: BTreeMap::new(),
            volumes: BTreeMap::new(),
            past: BTreeMap::new(),
            deleted: VecDeque::new(),
        }
    }

    /// After the next release, too.
    ///
    /// # Errors
    /// It changes a VM of the account that is not there; the bill is worthless then.
    pub fn take(&mut self, release: &CommitRelease) -> Result<(), UnknownVm> {
        // Nobody has to have heard of one without content.
        if release.is_empty() {
            return Ok(());
        }
        (self.at, self.now) = (release.end.index, release.ledger_time);
        for effect in release.effects() {
            match effect {
                Effect::Vm(vm) if vm.account == self.account => {
                    self.names.insert(vm.id, vm.name.clone());
                    self.take_vm(&vm.change())?;
                }
                Effect::VmChanged(change) if change.account == self.account => {
                    self.take_vm(change)?;
                }
                Effect::Volume(volume) if volume.account == self.account => {
                    self.take_volume(volume);
                }
                Effect::Usage(past) if past.account == self.account => {
                    self.past.insert(past.host, PastUsage::clone(past));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A deleted VM counts in its host's sum, and so does a deleted volume.
    fn take_vm(&mut self, vm: &ChangedVm) -> Result<(), UnknownVm> {
        let name = self.names.get(&vm.id).ok_or(UnknownVm(vm.id))?.clone();
        let before = self.vms.remove(&vm.id);
        if vm.state() == VmState::Deleted {
            self.names.remove(&vm.id);
            if let Some(Line { host, .. }) = before {
                let used = vm.meter.used;
                self.deleted.push_back((host, VmUsageView { vm: vm.id, name, used }));
                let surplus = self.deleted.len().saturating_sub(DELETED_NAMED_MAX);
                self.deleted.drain(..surplus);
            }
        } else if let Some(host) = billed_on(&vm.placement) {
            self.vms.insert(vm.id, Line { host, name, size: vm.size, meter: vm.meter });
        }
        Ok(())
    }

    fn take_volume(&mut self, volume: &Volume) {
        if volume.state() == VolumeState::Deleted {
            self.volumes.remove(&volume.id);
            return;
        }
        let (host, name) = (volume.host, volume.name.clone());
        let line = Line { host, name, size: volume.size(), meter: volume.meter };
        self.volumes.insert(volume.id, line);
    }

    /// What was used up to the last release; `name` says what a host is or was called.
    pub fn read(&self, name: impl Fn(&HostId) -> Option<Name>) -> UsageView {
        let mut hosts: BTreeMap<HostId, HostUsageView> = BTreeMap::new();
        let empty = |id: HostId| HostUsageView {
            host: id,
            name: name(&id),
            vms: Vec::new(),
            volumes: Vec::new(),
            deleted: Vec::new(),
            deleted_vms: 0,
            deleted_used: Used::default(),
            used: Used::default(),
        };
        for (id, past) in &self.past {
            let host = hosts.entry(*id).or_insert_with(|| empty(*id));
            (host.deleted_vms, host.deleted_used) = (past.vms, past.used);
            host.used = past.used;
        }
        for (host, vm) in &self.deleted {
            hosts.entry(*host).or_insert_with(|| empty(*host)).deleted.push(vm.clone());
        }
        for (vm, line) in &self.vms {
            let host = hosts.entry(line.host).or_insert_with(|| empty(line.host));
            let used = line.meter.read(&line.size, self.now);
            host.used = host.used.plus(&used);
            host.vms.push(VmUsageView { vm: *vm, name: line.name.clone(), used });
        }
        for (volume, line) in &self.volumes {
            let host = hosts.entry(line.host).or_insert_with(|| empty(line.host));
            let used = line.meter.read(&line.size, self.now);
            host.used = host.used.plus(&used);
            host.volumes.push(VolumeUsageView { volume: *volume, name: line.name.clone(), used });
        }
        let hosts: Vec<_> = hosts.into_values().collect();
        let used = hosts.iter().fold(Used::default(), |sum, host| sum.plus(&host.used));
        let (account, commit, ledger_time_ms) = (self.account, self.at, self.now);
        UsageView { account, commit, ledger_time_ms, hosts, used }
    }
}
