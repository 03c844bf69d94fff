//! The read model: everything that the API shows, folded from releases.
//!
//! Owns the newest version of every object, the history of every VM, and where each payload stands.
//! Pure: it repeats no rule of the judge, and knows no clock or socket. [`SharedModel`] puts a lock
//! and a signal around it. Written by [`crate::link::releases`], read by API, reports and orders.
//! The whole history is held in memory in this version.

mod fold;
mod history;
mod log;
mod members;
mod shared;
mod sizes;
mod usage;
mod views;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_api::{Attested, PayloadState, PayloadView, StreamEvent};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{
    AccountId, CommitIndex, HostId, LedgerTime, PayloadDigest, VmId, VolumeId,
};
use dagger_payload::key::PublicKey;
use dagger_payload::name::ImageName;
use dagger_payload::object::{Account, Effect, Host, HostDuty, Image, Vm};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{CommitRelease, Release, Verdict};
use dagger_payload::volume::Volume;

use self::sizes::RunningSizes;

pub use fold::VmStep;
pub use log::LogQuery;
pub use members::Members;
pub use shared::SharedModel;
pub use views::{NameProblem, VmQuery};
pub use volumes::VolumeQuery;

/// Where a judged payload stands in the log.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Which release of the log.
    log: usize,
    /// Which payload of it.
    within: usize,
    /// The VM that it made or named.
    vm: Option<VmId>,
}

/// What the releases so far have made.
#[derive(Debug, Clone)]
pub struct Model {
    members: Members,
    log: Vec<Arc<CommitRelease>>,
    hosts: BTreeMap<HostId, Host>,
    accounts: BTreeMap<AccountId, Account>,
    /// Keys that sign for an account, or once did.
    account_keys: BTreeMap<PublicKey, AccountId>,
    images: BTreeMap<ImageName, Image>,
    vms: BTreeMap<VmId, Vm>,
    running_sizes: RunningSizes,
    volumes: BTreeMap<VolumeId, Volume>,
    steps: BTreeMap<VmId, Vec<VmStep>>,
    payloads: BTreeMap<PayloadDigest, Place>,
    refused: BTreeMap<&'static str, u64>,
}

impl Model {
    /// Nothing but what the genesis says.
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            members: Members::founding(genesis),
            log: Vec::new(),
            hosts: BTreeMap::new(),
            accounts: BTreeMap::new(),
            account_keys: BTreeMap::new(),
            images: BTreeMap::new(),
            vms: BTreeMap::new(),
            running_sizes: RunningSizes::default(),
            volumes: BTreeMap::new(),
            steps: BTreeMap::new(),
            payloads: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    /// The last folded commit.
    pub fn judged(&self) -> CommitIndex {
        self.log.last().map_or(CommitIndex(0), |release| release.end.index)
    }

    /// Ledger time of the last folded commit.
    pub fn ledger_time(&self) -> LedgerTime {
        self.log.last().map_or(LedgerTime(0), |release| release.ledger_time)
    }

    /// At most `count_max` releases of the commits after `after`, oldest first.
    pub fn releases_after(&self, after: CommitIndex, count_max: usize) -> Vec<Arc<CommitRelease>> {
        let start = self.log.partition_point(|release| release.end.index <= after);
        self.log[start..].iter().take(count_max).cloned().collect()
    }

    /// A VM's newest version.
    pub fn vm(&self, id: &VmId) -> Option<&Vm> {
        self.vms.get(id)
    }

    /// All VMs' newest versions.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values()
    }

    /// All volumes' newest versions.
    pub fn volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.values()
    }

    /// The account for which `key` signs, or did so last; for a key that nobody has named, the one
    /// that a first grant to it would open.
    pub fn account_signed_by(&self, key: &PublicKey) -> AccountId {
        self.account_keys.get(key).copied().unwrap_or_else(|| AccountId::of(key))
    }

    /// An account's newest version.
    pub fn account(&self, id: &AccountId) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// A host as its operator declared it.
    pub fn host(&self, id: &HostId) -> Option<&Host> {
        self.hosts.get(id)
    }

    /// The host whose reports this key signs, while it is a member.
    pub fn host_signed_by(&self, agent_key: &PublicKey) -> Option<&Host> {
        let is_member = |host: &&Host| host.duty != HostDuty::Left;
        self.hosts.values().filter(is_member).find(|host| host.agent_key == *agent_key)
    }

    /// All registered images.
    pub fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    /// Refused payloads by code.
    pub fn refused(&self) -> &BTreeMap<&'static str, u64> {
        &self.refused
    }

    /// The judged payload `digest`, with the commit that ordered it.
    pub fn payload(&self, digest: &PayloadDigest) -> Option<(&CommitRelease, &Release)> {
        let place = self.payloads.get(digest)?;
        let release = self.log.get(place.log)?;
        Some((release, release.releases.get(place.within)?))
    }

    /// What the event stream tells of one commit, when everything up to `attested` is attested: of
    /// what belongs to accounts, those that the reader `sees`.
    pub fn stream_events(
        &self,
        commit: &CommitRelease,
        attested: CommitIndex,
        sees: &dyn Fn(AccountId) -> bool,
    ) -> Vec<StreamEvent> {
        let mut events = Vec::new();
        let index = commit.end.index;
        let told =
            |effect: &Effect| owner(effect).is_none_or(sees).then(|| effect_event(index, effect));
        for release in &commit.releases {
            // What its signer did not sign is noise under nobody's name.
            let noise = matches!(&release.verdict, Verdict::Refused(refusal)
                if refusal.code == RefusalCode::SignatureInvalid);
            let document = release.ordered.payload.read().ok();
            // Reports are their host's, and each shows in the objects that it changes.
            let signer = document.as_ref().map(|payload| self.account_signed_by(&payload.signer));
            if !noise && signer.is_none_or(sees) {
                let vm = document.and_then(|payload| fold::vm_named_by(&payload.body, release));
                let payload = payload_view(commit, release, vm, attested);
                events.push(StreamEvent::Payload { commit: index, payload });
            }
            events.extend(release.effects.iter().filter_map(&told));
        }
        events.extend(commit.time_effects.iter().filter_map(told));
        events
    }

    /// Where the judged payload `digest` stands, when everything up to `attested` is attested.
    pub fn payload_view(
        &self,
        digest: &PayloadDigest,
        attested: CommitIndex,
    ) -> Option<PayloadView> {
        let place = self.payloads.get(digest)?;
        let (commit, release) = self.payload(digest)?;
        Some(payload_view(commit, release, place.vm, attested))
    }
}

/// The account that an object belongs to; hosts and images are for all to see.
fn owner(effect: &Effect) -> Option<AccountId> {
    match effect {
        Effect::Vm(vm) => Some(vm.account),
        Effect::Account(account) => Some(account.id),
        Effect::Volume(volume) => Some(volume.account),
        Effect::Usage(past) => Some(past.account),
        Effect::Host(_)
        | Effect::Image(_)
        | Effect::Seat(_)
        | Effect::Epoch(_)
        | Effect::Operator(_)
        | Effect::Proposal(_) => None,
    }
}

fn effect_event(commit: CommitIndex, effect: &Effect) -> StreamEvent {
    let (kind, id) = match effect {
        Effect::Vm(vm) => {
            return StreamEvent::Vm { commit, state: vm.state(), vm: vm.clone() };
        }
        Effect::Host(host) => ("host", host.id.to_string()),
        Effect::Account(account) => ("account", account.id.to_string()),
        Effect::Image(image) => ("image", image.name.to_string()),
        Effect::Volume(volume) => ("volume", volume.id.to_string()),
        Effect::Usage(past) => ("usage", past.host.to_string()),
        Effect::Seat(seat) => ("seat", seat.index.to_string()),
        Effect::Epoch(members) => ("epoch", members.epoch.to_string()),
        Effect::Operator(operator) => ("operator", operator.id.to_string()),
        Effect::Proposal(proposal) => ("proposal", proposal.id.to_string()),
    };
    StreamEvent::Object { commit, kind: kind.to_owned(), id }
}

/// What the API shows of one judged payload.
pub fn payload_view(
    commit: &CommitRelease,
    release: &Release,
    vm: Option<VmId>,
    attested: CommitIndex,
) -> PayloadView {
    let (state, refusal) = match &release.verdict {
        Verdict::Accepted => (PayloadState::Accepted, None),
        Verdict::Refused(refusal) => (PayloadState::Refused, Some(refusal.clone())),
    };
    PayloadView {
        digest: release.digest,
        state,
        position: Some(release.position),
        attested: if commit.end.index <= attested { Attested::Yes } else { Attested::No },
        refusal,
        vm,
    }
}
