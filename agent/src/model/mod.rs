//! The read model: everything that the API shows, folded from releases.
//!
//! Owns the newest version of every object that exists, in memory, and everything else that was
//! ever released in an archive on disk, so that its memory does not grow with the history. The
//! model itself is pure: it repeats no rule of the judge, and knows no clock, file or socket.
//! [`SharedModel`] puts a lock, the archive and a signal around it. Written by
//! [`crate::link::releases`], read by API, reports and orders.

mod addition;
mod archive;
mod fold;
mod history;
mod junk;
mod log;
mod look;
mod members;
mod past;
mod shared;
mod sizes;
mod tail;
mod usage;
mod views;
mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_api::{Attested, PayloadState, PayloadView, StreamEvent};
use dagger_payload::changed_vm::WholeRelease;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AccountId, AuthorIndex, CommitIndex, HostId, LedgerTime, VmId, VolumeId};
use dagger_payload::key::PublicKey;
use dagger_payload::name::ImageName;
use dagger_payload::object::{Account, Effect, Host, HostDuty, Image, Vm};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{Release, Verdict};
use dagger_payload::volume::Volume;

use self::addition::vm_named_by;
use self::junk::Junk;
use self::sizes::RunningSizes;
use self::tail::Tail;

pub use archive::{Archive, ArchiveError, Archives};
pub use junk::JunkCount;
pub use log::LogQuery;
pub use look::{LookBack, LookExtent, LookProblem, Walker};
pub use members::Members;
pub use shared::SharedModel;
pub use views::{NameProblem, VmQuery};
pub use volumes::VolumeQuery;

/// What the releases so far have made.
#[derive(Debug, Clone)]
pub struct Model {
    judged: CommitIndex,
    ledger_time: LedgerTime,
    members: Members,
    /// The newest releases.
    tail: Tail,
    hosts: BTreeMap<HostId, Host>,
    accounts: BTreeMap<AccountId, Account>,
    /// Keys that sign for an account, or once did.
    account_keys: BTreeMap<PublicKey, AccountId>,
    images: BTreeMap<ImageName, Image>,
    /// Those that exist; shared with whoever tells what was released of them.
    vms: BTreeMap<VmId, Arc<Vm>>,
    /// When each of them was reported on last.
    reported_at: BTreeMap<VmId, LedgerTime>,
    running_sizes: RunningSizes,
    /// How many VMs were deleted.
    deleted_vms: u64,
    /// Those that exist.
    volumes: BTreeMap<VolumeId, Volume>,
    /// How many steps of all VMs' histories were told.
    steps: u64,
    refused: BTreeMap<&'static str, u64>,
    junk: Junk,
}

impl Model {
    /// Nothing but what the genesis says.
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            judged: CommitIndex(0),
            ledger_time: LedgerTime(0),
            members: Members::founding(genesis),
            tail: Tail::default(),
            hosts: BTreeMap::new(),
            accounts: BTreeMap::new(),
            account_keys: BTreeMap::new(),
            images: BTreeMap::new(),
            vms: BTreeMap::new(),
            reported_at: BTreeMap::new(),
            running_sizes: RunningSizes::default(),
            deleted_vms: 0,
            volumes: BTreeMap::new(),
            steps: 0,
            refused: BTreeMap::new(),
            junk: Junk::default(),
        }
    }

    /// The last folded commit.
    pub fn judged(&self) -> CommitIndex {
        self.judged
    }

    /// Ledger time of the last folded commit.
    pub fn ledger_time(&self) -> LedgerTime {
        self.ledger_time
    }

    /// The newest version of a VM that exists.
    pub fn vm(&self, id: &VmId) -> Option<&Vm> {
        self.vms.get(id).map(Arc::as_ref)
    }

    /// The newest versions of all VMs that exist.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.vms.values().map(Arc::as_ref)
    }

    /// How many VMs were deleted.
    pub fn deleted_vms(&self) -> u64 {
        self.deleted_vms
    }

    /// The newest versions of all volumes that exist.
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

    /// What each seat has carried that no honest host takes in at its door.
    pub fn junk(&self) -> impl Iterator<Item = (AuthorIndex, JunkCount)> {
        self.junk.counts()
    }

    /// How many entries it has that a longer history could have made more: for tests.
    pub fn entries(&self) -> usize {
        let of_vms = self.vms.len() + self.reported_at.len() + self.volumes.len();
        let of_others = self.hosts.len() + self.accounts.len() + self.account_keys.len();
        of_vms + of_others + self.images.len() + self.tail.len() + self.refused.len()
    }

    /// What the event stream tells of one commit, when everything up to `attested` is attested: of
    /// what belongs to accounts, those that the reader `sees`. Each event is made when it is asked
    /// for: VMs are whole in them.
    pub fn stream_events<'c>(
        &self,
        commit: &'c WholeRelease,
        attested: CommitIndex,
        sees: &dyn Fn(AccountId) -> bool,
    ) -> impl ExactSizeIterator<Item = StreamEvent> + 'c + use<'c> {
        let mut events = Vec::new();
        let (whole, commit) = (commit, commit.release());
        let index = commit.end.index;
        let told =
            |effect: &'c Effect| owner(effect).is_none_or(sees).then_some(Told::Effect(effect));
        for release in &commit.releases {
            // What its signer did not sign is noise under nobody's name.
            let noise = matches!(&release.verdict, Verdict::Refused(refusal)
                if refusal.code == RefusalCode::SignatureInvalid);
            let document = release.ordered.payload.read().ok();
            // Reports are their host's, and each shows in the objects that it changes.
            let signer = document.as_ref().map(|payload| self.account_signed_by(&payload.signer));
            if !noise && signer.is_none_or(sees) {
                let vm = document.and_then(|payload| vm_named_by(&payload.body, release));
                events.push(Told::Payload(Box::new(payload_view(index, release, vm, attested))));
            }
            events.extend(release.effects.iter().filter_map(&told));
        }
        events.extend(commit.time_effects.iter().filter_map(told));
        events.into_iter().map(move |told| match told {
            Told::Payload(payload) => StreamEvent::Payload { commit: index, payload: *payload },
            Told::Effect(effect) => effect_event(index, &whole.whole(effect)),
        })
    }
}

/// What becomes an event.
enum Told<'c> {
    Payload(Box<PayloadView>),
    Effect(&'c Effect),
}

/// The account that an object belongs to; hosts and images are for all to see.
fn owner(effect: &Effect) -> Option<AccountId> {
    match effect {
        Effect::Vm(vm) => Some(vm.account),
        Effect::VmChanged(change) => Some(change.account),
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
        Effect::VmChanged(change) => ("vm", change.id.to_string()),
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
    commit: CommitIndex,
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
        attested: if commit <= attested { Attested::Yes } else { Attested::No },
        refusal,
        vm,
    }
}
