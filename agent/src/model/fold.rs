//! Folding one release into the model.
//!
//! Objects are replaced by their new versions as they come, and what changed of a VM is put onto
//! the version before; nothing is decided here. What is deleted leaves the model: the archive has
//! it. Called by the model's writer.

use std::sync::Arc;

use dagger_payload::id::LedgerTime;
use dagger_payload::object::{Effect, Vm, VmState};
use dagger_payload::release::{CommitRelease, Verdict};
use dagger_payload::volume::{Volume, VolumeState};

use super::Model;
use super::addition::Addition;

impl Model {
    /// Takes in the next release; the caller has verified it, has written `addition` and keeps the
    /// order.
    pub(super) fn fold(&mut self, commit: Arc<CommitRelease>, addition: &Addition) {
        for release in &commit.releases {
            if let Verdict::Refused(refusal) = &release.verdict {
                *self.refused.entry(refusal.code.as_str()).or_default() += 1;
                self.junk.note(release, refusal.code);
            }
        }
        commit.effects().for_each(|effect| self.fold_effect(effect, commit.ledger_time));
        self.steps = self.steps.saturating_add(addition.steps);
        (self.judged, self.ledger_time) = (commit.end.index, commit.ledger_time);
        self.tail.push(commit, addition.size_bytes());
    }

    fn fold_effect(&mut self, effect: &Effect, time: LedgerTime) {
        match effect {
            Effect::Host(host) => {
                self.hosts.insert(host.id, (**host).clone());
            }
            Effect::Account(account) => {
                let keys = account.keys.iter().map(|own| (own.key.clone(), account.id));
                self.account_keys.extend(keys);
                self.accounts.insert(account.id, (**account).clone());
            }
            Effect::Image(image) => {
                self.images.insert(image.name.clone(), (**image).clone());
            }
            Effect::Vm(vm) => self.fold_vm(Vm::clone(vm), time),
            Effect::VmChanged(change) => {
                // Whoever made `addition` has seen to it that there is one.
                let vm = self.vms.get(&change.id).and_then(|before| change.of(before).ok());
                if let Some(vm) = vm {
                    self.fold_vm(vm, time);
                }
            }
            Effect::Volume(volume) => self.fold_volume(volume),
            // Read from the archive when it is asked for.
            Effect::Usage(_) => {}
            Effect::Seat(_) | Effect::Epoch(_) | Effect::Operator(_) | Effect::Proposal(_) => {
                self.members.fold(effect);
            }
        }
    }

    fn fold_vm(&mut self, vm: Vm, time: LedgerTime) {
        let before = self.vms.get(&vm.id).map(Arc::as_ref);
        if vm.state() == VmState::Deleted {
            self.deleted_vms += u64::from(before.is_some());
            self.vms.remove(&vm.id);
            self.running_sizes.forget(&vm.id);
            self.reported_at.remove(&vm.id);
            return;
        }
        let cause = |vm: &Vm| vm.reported.as_ref().map(|report| report.cause);
        if cause(&vm) != before.and_then(cause) {
            self.reported_at.insert(vm.id, time);
        }
        self.running_sizes.note(before, &vm);
        self.vms.insert(vm.id, Arc::new(vm));
    }

    fn fold_volume(&mut self, volume: &Volume) {
        if volume.state() == VolumeState::Deleted {
            self.volumes.remove(&volume.id);
        } else {
            self.volumes.insert(volume.id, volume.clone());
        }
    }
}
