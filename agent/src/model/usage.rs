//! What an account has used, as of a commit: from the meters in the judged objects alone.
//!
//! Owns which objects count and the order in which they are shown, so that every host says the same
//! about the same commit. Never decides when a meter runs. Called by the API.

use std::collections::BTreeMap;

use dagger_api::{HostUsageView, UsageView, VmUsageView, VolumeUsageView};
use dagger_payload::id::{AccountId, CommitIndex, HostId, LedgerTime, VmId, VolumeId};
use dagger_payload::object::{Effect, Vm, VmState};
use dagger_payload::usage::{PastUsage, Used};
use dagger_payload::volume::{Volume, VolumeState};

use super::Model;

/// The objects that say what was used.
#[derive(Debug, Default)]
struct Meters<'m> {
    vms: BTreeMap<VmId, &'m Vm>,
    volumes: BTreeMap<VolumeId, &'m Volume>,
    past: BTreeMap<HostId, &'m PastUsage>,
}

impl<'m> Meters<'m> {
    fn take(&mut self, account: &AccountId, effect: &'m Effect) {
        match effect {
            Effect::Vm(vm) if vm.account == *account => {
                self.vms.insert(vm.id, vm);
            }
            Effect::Volume(volume) if volume.account == *account => {
                self.volumes.insert(volume.id, volume);
            }
            Effect::Usage(past) if past.account == *account => {
                self.past.insert(past.host, past);
            }
            _ => {}
        }
    }
}

impl Model {
    /// What `account` has used up to `commit`, or up to the newest folded one; `None` when that
    /// commit is not folded yet.
    pub fn usage(&self, account: &AccountId, commit: Option<CommitIndex>) -> Option<UsageView> {
        if commit.is_some_and(|commit| commit > self.judged()) {
            return None;
        }
        let mut meters = Meters::default();
        let (mut at, mut now) = (CommitIndex(0), LedgerTime(0));
        let upto = |index: CommitIndex| commit.is_none_or(|commit| index <= commit);
        for release in self.log.iter().take_while(|release| upto(release.end.index)) {
            (at, now) = (release.end.index, release.ledger_time);
            let ordered = release.releases.iter().flat_map(|release| &release.effects);
            ordered.chain(&release.time_effects).for_each(|effect| meters.take(account, effect));
        }
        let hosts = self.usage_by_host(&meters, now);
        let used = hosts.iter().fold(Used::default(), |sum, host| sum.plus(&host.used));
        Some(UsageView { account: *account, commit: at, ledger_time_ms: now, hosts, used })
    }

    fn usage_by_host(&self, meters: &Meters<'_>, now: LedgerTime) -> Vec<HostUsageView> {
        let mut hosts: BTreeMap<HostId, HostUsageView> = BTreeMap::new();
        let empty = |id: &HostId| HostUsageView {
            host: *id,
            name: self.host_name(id).cloned(),
            vms: Vec::new(),
            volumes: Vec::new(),
            deleted_vms: 0,
            deleted_used: Used::default(),
            used: Used::default(),
        };
        for (id, past) in &meters.past {
            let host = hosts.entry(*id).or_insert_with(|| empty(id));
            (host.deleted_vms, host.deleted_used) = (past.vms, past.used);
            host.used = past.used;
        }
        // A deleted VM or volume counts in its host's sum.
        for vm in meters.vms.values().filter(|vm| vm.state() != VmState::Deleted) {
            let Some(id) = vm.placement.host() else { continue };
            let host = hosts.entry(id).or_insert_with(|| empty(&id));
            let used = vm.meter.read(&vm.size, now);
            host.used = host.used.plus(&used);
            host.vms.push(VmUsageView { vm: vm.id, name: vm.name.clone(), used });
        }
        let is_there = |volume: &&&Volume| volume.state() != VolumeState::Deleted;
        for volume in meters.volumes.values().filter(is_there) {
            let host = hosts.entry(volume.host).or_insert_with(|| empty(&volume.host));
            let used = volume.meter.read(&volume.size(), now);
            host.used = host.used.plus(&used);
            let (volume, name) = (volume.id, volume.name.clone());
            host.volumes.push(VolumeUsageView { volume, name, used });
        }
        hosts.into_values().collect()
    }
}
