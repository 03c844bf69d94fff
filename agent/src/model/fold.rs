//! Folding one release into the model.
//!
//! Objects are replaced by their new versions as they come; nothing is decided here. Called by the
//! model's writer.

use std::sync::Arc;

use dagger_payload::id::{Generation, VmId};
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::object::{Effect, Vm};
use dagger_payload::payload::Payload;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{CommitRelease, Release, Verdict};

use super::{Model, Place, history};

/// A step in a VM's history: a payload that named it, or what the passing of ledger time did to it.
#[derive(Debug, Clone)]
pub struct VmStep {
    /// Which release of the log.
    pub(super) log: usize,
    /// Which payload of it; none for the passing of time.
    pub(super) within: Option<usize>,
    /// What happened, in one sentence.
    pub(super) summary: String,
    /// The VM's generation after it.
    pub(super) generation: Option<Generation>,
    /// For reports: what the host said.
    pub(super) phase: Option<ReportPhase>,
}

impl Model {
    /// Takes in the next release; the caller has verified it and keeps the order.
    pub fn fold(&mut self, commit: Arc<CommitRelease>) {
        let log = self.log.len();
        for (within, release) in commit.releases.iter().enumerate() {
            self.fold_payload(log, within, release);
        }
        for effect in &commit.time_effects {
            if let Effect::Vm(vm) = effect {
                let summary = history::passing_of_time(self, self.vms.get(&vm.id), vm);
                self.push_step(vm, log, None, summary, None);
            }
            self.fold_effect(effect);
        }
        self.log.push(commit);
    }

    fn fold_payload(&mut self, log: usize, within: usize, release: &Release) {
        let document = release.ordered.payload.read().ok();
        let vm = document.as_ref().and_then(|payload| vm_named_by(&payload.body, release));
        match &release.verdict {
            Verdict::Accepted => self.fold_accepted(log, within, release, document.as_ref(), vm),
            Verdict::Refused(refusal) => {
                *self.refused.entry(refusal.code.as_str()).or_default() += 1;
                self.fold_refused(log, within, release, document.as_ref(), vm);
            }
        }
    }

    fn fold_accepted(
        &mut self,
        log: usize,
        within: usize,
        release: &Release,
        document: Option<&Payload>,
        vm: Option<VmId>,
    ) {
        // Before this one the same bytes may have been refused; the accepted copy is the one that
        // counts.
        self.payloads.insert(release.digest, Place { log, within, vm });
        let phase = document.and_then(|payload| reported_phase(&payload.body));
        let mut told = false;
        for effect in &release.effects {
            if let Effect::Vm(after) = effect {
                told |= vm == Some(after.id);
                let before = self.vms.get(&after.id);
                let summary = history::accepted(self, document, before, after);
                self.push_step(after, log, Some(within), summary, phase);
            }
            self.fold_effect(effect);
        }
        let unchanged = vm.filter(|_| !told).and_then(|vm| self.vms.get(&vm));
        if let Some(vm) = unchanged.cloned() {
            let summary = history::accepted(self, document, Some(&vm), &vm);
            self.push_step(&vm, log, Some(within), summary, phase);
        }
    }

    fn fold_refused(
        &mut self,
        log: usize,
        within: usize,
        release: &Release,
        document: Option<&Payload>,
        vm: Option<VmId>,
    ) {
        let Verdict::Refused(refusal) = &release.verdict else {
            return;
        };
        // Bytes that their signer did not sign are noise under nobody's name; of copies the first
        // one counts.
        if matches!(refusal.code, RefusalCode::SignatureInvalid | RefusalCode::Duplicate) {
            return;
        }
        let place = Place { log, within, vm };
        self.payloads.entry(release.digest).or_insert(place);
        let named = vm.and_then(|vm| self.vms.get(&vm)).cloned();
        if let (Some(vm), Some(document)) = (named, document) {
            let summary = history::refused(self, document, refusal);
            let phase = reported_phase(&document.body);
            self.push_step(&vm, log, Some(within), summary, phase);
        }
    }

    fn push_step(
        &mut self,
        vm: &Vm,
        log: usize,
        within: Option<usize>,
        summary: String,
        phase: Option<ReportPhase>,
    ) {
        self.steps.entry(vm.id).or_default().push(VmStep {
            log,
            within,
            summary,
            generation: Some(vm.generation),
            phase,
        });
    }

    fn fold_effect(&mut self, effect: &Effect) {
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
            Effect::Vm(vm) => {
                self.running_sizes.note(self.vms.get(&vm.id), vm);
                self.vms.insert(vm.id, (**vm).clone());
            }
            Effect::Volume(volume) => {
                self.volumes.insert(volume.id, (**volume).clone());
            }
            // Read from the log when it is asked for.
            Effect::Usage(_) => {}
            Effect::Seat(_) | Effect::Epoch(_) | Effect::Operator(_) | Effect::Proposal(_) => {
                self.members.fold(effect);
            }
        }
    }
}

/// The VM that a payload made (once accepted) or names.
pub(super) fn vm_named_by(body: &Body, release: &Release) -> Option<VmId> {
    match body {
        Body::VmCreate(_) if release.verdict != Verdict::Accepted => None,
        _ => body.vm(&release.digest),
    }
}

fn reported_phase(body: &Body) -> Option<ReportPhase> {
    if let Body::ReportVm(report) = body { Some(report.phase) } else { None }
}
