//! What a release adds to the archive.
//!
//! Owns which records are written, and the names that its sentences use: those of the model as it
//! is at that point of the commit. Pure: changes no model and writes nothing, so that what is shown
//! has been written, and a write that failed is simply tried again. Called by [`super::look`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use dagger_payload::changed_vm::UnknownVm;
use dagger_payload::id::{AccountId, HostId, Position, VmId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Body, ReportPhase};
use dagger_payload::name::Name;
use dagger_payload::object::{Effect, Host, Vm, VmState};
use dagger_payload::payload::Payload;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{CommitRelease, Release, Verdict};
use dagger_payload::volume::VolumeState;

use super::archive::{Earlier, Put};
use super::past::{self, VmStep};
use super::{Members, Model, history};

/// Deleted VMs that a commit names.
pub(super) type GoneVms = BTreeMap<VmId, Vm>;

/// What is to be written before a commit is folded.
#[derive(Debug)]
pub(super) struct Addition {
    pub(super) puts: Vec<Put>,
    /// How many steps it has told of VMs.
    pub(super) steps: u64,
}

impl Addition {
    /// How many bytes it has.
    pub(super) fn size_bytes(&self) -> usize {
        self.puts.iter().map(|put| put.key.len() + put.value.len()).sum()
    }
}

/// The VM that a payload made (once accepted) or names.
pub(super) fn vm_named_by(body: &Body, release: &Release) -> Option<VmId> {
    match body {
        Body::VmCreate(_) if release.verdict != Verdict::Accepted => None,
        _ => body.vm(&release.digest),
    }
}

/// A commit with the documents of its payloads, in order; none of what is no document.
pub(super) struct ReadCommit<'c> {
    commit: &'c CommitRelease,
    documents: Vec<Option<Payload>>,
}

impl<'c> ReadCommit<'c> {
    pub(super) fn of(commit: &'c CommitRelease) -> Self {
        let read = |release: &Release| release.ordered.payload.read().ok();
        Self { commit, documents: commit.releases.iter().map(read).collect() }
    }

    /// The VMs that it names or changes.
    pub(super) fn named_vms(&self) -> impl Iterator<Item = VmId> {
        let read = self.commit.releases.iter().zip(&self.documents);
        let named = read.filter_map(|(release, document)| {
            document.as_ref().and_then(|document| vm_named_by(&document.body, release))
        });
        named.chain(self.commit.effects().filter_map(Effect::vm))
    }
}

/// What is known at one point of a commit: the model, and what it and those before it that are not
/// folded yet have changed so far.
pub(super) struct Known<'m> {
    model: &'m Model,
    gone: Option<&'m GoneVms>,
    members: Cow<'m, Members>,
    hosts: Cow<'m, BTreeMap<HostId, Host>>,
    account_keys: BTreeMap<PublicKey, AccountId>,
    vms: BTreeMap<VmId, Vm>,
}

impl<'m> Known<'m> {
    /// What is known now.
    pub(super) fn now(model: &'m Model) -> Self {
        Self {
            model,
            gone: None,
            members: Cow::Borrowed(&model.members),
            hosts: Cow::Borrowed(&model.hosts),
            account_keys: BTreeMap::new(),
            vms: BTreeMap::new(),
        }
    }

    /// A VM's newest version, also of a deleted one.
    pub(super) fn vm(&self, id: &VmId) -> Option<&Vm> {
        let here = self.vms.get(id).or_else(|| self.model.vm(id));
        here.or_else(|| self.gone?.get(id))
    }

    /// An effect, in which a VM is whole: what changed is put onto the version before.
    fn whole<'e>(&self, effect: &'e Effect) -> Result<Cow<'e, Effect>, UnknownVm> {
        let change = match effect {
            Effect::VmChanged(change) => change,
            // Whose a VM is stays so: else what was told of it before could not be read any more.
            Effect::Vm(vm) if self.vm(&vm.id).is_some_and(|one| one.account != vm.account) => {
                return Err(UnknownVm(vm.id));
            }
            _ => return Ok(Cow::Borrowed(effect)),
        };
        let before = self.vms.get(&change.id).or_else(|| self.model.vm(&change.id));
        let before = before.filter(|vm| vm.state() != VmState::Deleted);
        let vm = change.of(before.ok_or(UnknownVm(change.id))?)?;
        Ok(Cow::Owned(Effect::Vm(Box::new(vm))))
    }

    /// Who takes part.
    pub(super) fn members(&self) -> &Members {
        &self.members
    }

    /// What a host is or was called.
    pub(super) fn host_name(&self, id: &HostId) -> Option<&Name> {
        self.members.host_name(id)
    }

    /// The host whose reports this key signs.
    pub(super) fn host_of_key(&self, agent_key: &PublicKey) -> Option<&Host> {
        self.hosts.values().find(|host| host.agent_key == *agent_key)
    }

    /// The operator for whom `key` signs or once signed.
    pub(super) fn operator_of_key(&self, key: &PublicKey) -> Option<&Name> {
        self.members.operator_of_key(key)
    }

    /// The account for which `key` signs, or did so last.
    pub(super) fn account_signed_by(&self, key: &PublicKey) -> AccountId {
        let fresh = self.account_keys.get(key).copied();
        fresh.unwrap_or_else(|| self.model.account_signed_by(key))
    }

    fn learn(&mut self, effect: &Effect) {
        match effect {
            Effect::Host(host) => {
                self.hosts.to_mut().insert(host.id, (**host).clone());
            }
            Effect::Account(account) => {
                let keys = account.keys.iter().map(|own| (own.key.clone(), account.id));
                self.account_keys.extend(keys);
            }
            Effect::Vm(vm) => {
                self.vms.insert(vm.id, (**vm).clone());
            }
            Effect::Seat(_) | Effect::Epoch(_) | Effect::Operator(_) | Effect::Proposal(_) => {
                self.members.to_mut().fold(effect);
            }
            Effect::VmChanged(_) | Effect::Image(_) | Effect::Volume(_) | Effect::Usage(_) => {}
        }
    }
}

impl Model {
    /// What each of the next commits adds; `gone` are the deleted VMs among those that they name.
    /// Releases are written as they came; all else is told of whole VMs.
    ///
    /// # Errors
    /// One changes a VM that is not there, or whose it is.
    pub(super) fn additions(
        &self,
        commits: &[ReadCommit<'_>],
        gone: &GoneVms,
    ) -> Result<Vec<Addition>, UnknownVm> {
        let mut known = Known { gone: Some(gone), ..Known::now(self) };
        let mut first_step = self.steps;
        let mut additions = Vec::new();
        for ReadCommit { commit, documents } in commits {
            let mut work = Work { commit, known, puts: Vec::new(), first_step, steps: 0 };
            work.add(documents)?;
            first_step = first_step.saturating_add(work.steps);
            additions.push(Addition { puts: work.puts, steps: work.steps });
            known = work.known;
        }
        Ok(additions)
    }
}

struct Work<'m> {
    commit: &'m CommitRelease,
    known: Known<'m>,
    puts: Vec<Put>,
    /// The number of its first step.
    first_step: u64,
    steps: u64,
}

impl Work<'_> {
    fn add(&mut self, documents: &[Option<Payload>]) -> Result<(), UnknownVm> {
        self.puts.push(past::commit_put(self.commit));
        for (release, document) in self.commit.releases.iter().zip(documents) {
            self.add_payload(release, document.as_ref())?;
        }
        for effect in &self.commit.time_effects {
            let effect = &*self.known.whole(effect)?;
            if let Effect::Vm(vm) = effect {
                let summary = history::passing_of_time(&self.known, self.known.vm(&vm.id), vm);
                self.add_step(vm, None, summary, None);
            }
            self.add_effect(effect);
        }
        Ok(())
    }

    fn add_payload(
        &mut self,
        release: &Release,
        document: Option<&Payload>,
    ) -> Result<(), UnknownVm> {
        self.puts.push(past::payload_put(self.commit, release));
        let vm = document.and_then(|payload| vm_named_by(&payload.body, release));
        match &release.verdict {
            Verdict::Accepted => self.add_accepted(release, document, vm)?,
            Verdict::Refused(refusal) => {
                // Bytes that their signer did not sign are noise under nobody's name; of copies
                // the first one counts.
                let is_noise =
                    matches!(refusal.code, RefusalCode::SignatureInvalid | RefusalCode::Duplicate);
                if is_noise {
                    return Ok(());
                }
                self.puts.push(past::digest_put(release, Earlier::Kept));
                let named = vm.and_then(|vm| self.known.vm(&vm)).cloned();
                if let (Some(vm), Some(document)) = (named, document) {
                    let summary = history::refused(&self.known, document, refusal);
                    let phase = reported_phase(&document.body);
                    self.add_step(&vm, Some(release.position), summary, phase);
                }
            }
        }
        Ok(())
    }

    fn add_accepted(
        &mut self,
        release: &Release,
        document: Option<&Payload>,
        vm: Option<VmId>,
    ) -> Result<(), UnknownVm> {
        // Before this one the same bytes may have been refused; the accepted copy is the one that
        // counts.
        self.puts.push(past::digest_put(release, Earlier::Replaced));
        let phase = document.and_then(|payload| reported_phase(&payload.body));
        let mut told = false;
        for effect in &release.effects {
            let effect = &*self.known.whole(effect)?;
            if let Effect::Vm(after) = effect {
                told |= vm == Some(after.id);
                let before = self.known.vm(&after.id);
                let summary = history::accepted(&self.known, document, before, after);
                self.add_step(after, Some(release.position), summary, phase);
            }
            self.add_effect(effect);
        }
        let unchanged = vm.filter(|_| !told).and_then(|vm| self.known.vm(&vm));
        if let Some(vm) = unchanged.cloned() {
            let summary = history::accepted(&self.known, document, Some(&vm), &vm);
            self.add_step(&vm, Some(release.position), summary, phase);
        }
        Ok(())
    }

    fn add_step(
        &mut self,
        vm: &Vm,
        position: Option<Position>,
        summary: String,
        phase: Option<ReportPhase>,
    ) {
        let step = VmStep {
            commit: self.commit.end.index,
            ledger_time: self.commit.ledger_time,
            position,
            summary,
            generation: Some(vm.generation),
            phase,
        };
        let number = self.first_step.saturating_add(self.steps);
        self.puts.push(past::step_put(&vm.id, number, &step));
        self.steps += 1;
    }

    fn add_effect(&mut self, effect: &Effect) {
        let account = match effect {
            Effect::Vm(vm) => {
                if vm.state() == VmState::Deleted {
                    self.puts.extend(past::gone_vm_puts(vm));
                }
                Some(vm.account)
            }
            Effect::Volume(volume) => {
                if volume.state() == VolumeState::Deleted {
                    self.puts.extend(past::gone_volume_puts(volume));
                }
                Some(volume.account)
            }
            Effect::Usage(past) => Some(past.account),
            _ => None,
        };
        let commit = self.commit.end.index;
        self.puts.extend(account.map(|account| past::account_put(&account, commit)));
        self.known.learn(effect);
    }
}

fn reported_phase(body: &Body) -> Option<ReportPhase> {
    if let Body::ReportVm(report) = body { Some(report.phase) } else { None }
}
