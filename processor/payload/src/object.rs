//! Objects of the judged state: what the ordered history has made so far.
//!
//! Owns their shape. Never decides a
//! change: the judge in `dagger-processor` does, and publishes the new version of each object
//! as an [`Effect`]. Called by the processor (writes), the agent (folds and shows) and `daggerctl`
//! (shows). CBOR maps with the keys below.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::changed_vm::ChangedVm;
use crate::id::{
    AccountId, Generation, HostId, ImageDigest, LedgerTime, OperatorId, PayloadDigest, Position,
    ProtocolVersion, VmId,
};
use crate::key::PublicKey;
use crate::kind::{
    Apart, Capacity, GuestSubnet, ImageFormat, KeyRole, Protection, ReportPhase, RestartPolicy,
    StopManner, VmBoot, VmImage,
};
use crate::membership::{Operator, Proposal};
use crate::name::{ImageName, ImageSource, Labels, Name, SshKeyLine};
use crate::network::VmNetwork;
use crate::roster::{EpochMembers, Seat};
use crate::usage::{Meter, PastUsage};
pub use crate::vm_state::VmState;
use crate::volume::{VmVolume, Volume};

/// Which payload made a version of an object.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Cause {
    /// Its identity.
    #[n(0)]
    pub digest: PayloadDigest,
    /// Its place.
    #[n(1)]
    pub position: Position,
}

/// Whether a host is offered VMs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum HostDuty {
    /// It is.
    #[n(0)]
    Open,
    /// Its operator asked for no new VMs.
    #[n(1)]
    Draining,
    /// It has left the cluster: this is its last version, kept since usage and history name it.
    #[n(2)]
    Left,
}

/// A host and what it offers.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Host {
    /// Its id.
    #[n(0)]
    pub id: HostId,
    /// Its name.
    #[n(1)]
    pub name: Name,
    /// Whose it is.
    #[n(2)]
    pub operator: OperatorId,
    /// Where it stands.
    #[n(3)]
    pub region: Name,
    /// Labels for placement.
    #[n(4)]
    #[cfg_attr(feature = "schema", schema(value_type = std::collections::BTreeMap<String, String>))]
    pub labels: Labels,
    /// Signs its events.
    #[n(5)]
    pub ledger_key: PublicKey,
    /// Signs its reports.
    #[n(6)]
    pub agent_key: PublicKey,
    /// What it offers.
    #[n(7)]
    pub capacity: Capacity,
    /// Addresses for its guests.
    #[n(8)]
    pub guest_subnet: GuestSubnet,
    /// Version.
    #[n(9)]
    pub generation: Generation,
    /// What made this version.
    #[n(10)]
    pub cause: Cause,
    /// The building or compartment inside the region; without one it is a site of its own.
    #[n(11)]
    pub site: Option<Name>,
    /// How much of the capacity no VM may take.
    #[n(12)]
    pub reserve: Capacity,
    /// Whether it is offered VMs.
    #[n(13)]
    pub duty: HostDuty,
    /// The first of its own ports that lead to guests; without one none does.
    #[n(14)]
    pub forward_ports_first: Option<u16>,
    /// The newest rules that its build knows, as its operator declared; without a word the first.
    #[n(15)]
    pub protocol_max: Option<ProtocolVersion>,
    /// Bridges that guests may be on.
    #[n(16)]
    #[cbor(skip_if = "Vec::is_empty")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<Name>,
}

impl Host {
    /// What all its VMs together may take.
    pub fn offered(&self) -> Capacity {
        self.capacity.minus(&self.reserve)
    }
}

/// What one operator lets an account use.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Grant {
    /// Whose hosts.
    #[n(0)]
    pub operator: OperatorId,
    /// How much in all.
    #[n(1)]
    pub capacity: Capacity,
    /// How many VMs.
    #[n(2)]
    pub vms: u32,
    /// Until when.
    #[n(3)]
    pub until: LedgerTime,
    /// What made it.
    #[n(4)]
    pub cause: Cause,
}

/// A developer's account.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Account {
    /// Its id.
    #[n(0)]
    pub id: AccountId,
    /// Its first key, which gave it its id and under which it publishes; whether it still signs
    /// stands in `keys`.
    #[n(1)]
    pub key: PublicKey,
    /// Grants, by operator; at most one of each.
    #[n(2)]
    pub grants: Vec<Grant>,
    /// Version.
    #[n(3)]
    pub generation: Generation,
    /// What made this version.
    #[n(4)]
    pub cause: Cause,
    /// Who signs for it, in the order in which they came; at most `ACCOUNT_KEYS_MAX`.
    #[n(5)]
    pub keys: Vec<AccountKey>,
    /// Who granted it something first.
    #[n(6)]
    pub opened_by: OperatorId,
}

/// A key that signs for an account.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AccountKey {
    /// The key.
    #[n(0)]
    pub key: PublicKey,
    /// What it may do.
    #[n(1)]
    pub role: KeyRole,
    /// What gave it that.
    #[n(2)]
    pub cause: Cause,
}

impl Account {
    /// What `key` may do for the account; none if it does not sign for it (any more).
    pub fn role_of(&self, key: &PublicKey) -> Option<KeyRole> {
        self.keys.iter().find(|own| own.key == *key).map(|own| own.role)
    }
}

/// Whether new VMs may boot an image.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ImageStatus {
    /// They may.
    #[n(0)]
    Offered,
    /// Its publisher withdrew it; VMs that have it keep it.
    #[n(1)]
    Retired,
}

/// A registered image.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Image {
    /// `publisher/name`.
    #[n(0)]
    pub name: ImageName,
    /// Who registered it.
    #[n(1)]
    pub publisher: PublicKey,
    /// Digest of the file.
    #[n(2)]
    pub digest: ImageDigest,
    /// Format of the file.
    #[n(3)]
    pub format: ImageFormat,
    /// Size of the file, in bytes.
    #[n(4)]
    pub size_bytes: u64,
    /// Size of the guest's disk, in bytes; of what is no disk, the size of the file.
    #[n(5)]
    pub virtual_size_bytes: u64,
    /// Where hosts may fetch it.
    #[n(6)]
    pub sources: Vec<ImageSource>,
    /// Version.
    #[n(7)]
    pub generation: Generation,
    /// What made this version.
    #[n(8)]
    pub cause: Cause,
    /// Whether new VMs may boot it.
    #[n(9)]
    pub status: ImageStatus,
}

/// What the owner wants of a VM.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Wanted {
    /// It should run.
    #[n(0)]
    Running,
    /// It should exist, switched off.
    #[n(1)]
    Stopped,
    /// It should be gone.
    #[n(2)]
    Deleted,
    /// It should be in memory and not run.
    #[n(3)]
    Paused,
}

/// Where a VM is to be, and whether that host has agreed.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case", tag = "status")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Placement {
    /// The host was chosen and has until the deadline to accept.
    #[n(0)]
    Offered {
        /// Which host.
        #[n(0)]
        host: HostId,
        /// The guest's address there.
        #[n(1)]
        #[cbor(with = "crate::kind::ipv4")]
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        address: Ipv4Addr,
        /// When the next host is tried.
        #[n(2)]
        deadline: LedgerTime,
    },
    /// The host's acceptance is ordered: from here on this host, and no other, acts.
    #[n(1)]
    Accepted {
        /// Which host.
        #[n(0)]
        host: HostId,
        /// The guest's address there.
        #[n(1)]
        #[cbor(with = "crate::kind::ipv4")]
        #[cfg_attr(feature = "schema", schema(value_type = String))]
        address: Ipv4Addr,
        /// Position of the acceptance.
        #[n(2)]
        position: Position,
    },
    /// Every candidate refused or let its deadline pass.
    #[n(2)]
    NoHost {},
    /// The host that had accepted it left the cluster without giving it up, with its operator:
    /// nobody knows what still runs there. So no other host ever gets the VM; it can be deleted.
    #[n(3)]
    Lost {
        /// Which host it was.
        #[n(0)]
        host: HostId,
    },
}

impl Placement {
    /// The host that is to carry the VM, accepted or not.
    pub fn host(&self) -> Option<HostId> {
        match self {
            Self::Offered { host, .. } | Self::Accepted { host, .. } => Some(*host),
            Self::NoHost {} | Self::Lost { .. } => None,
        }
    }

    /// The guest's address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Self::Offered { address, .. } | Self::Accepted { address, .. } => Some(*address),
            Self::NoHost {} | Self::Lost { .. } => None,
        }
    }
}

/// The last thing that the host said about a VM.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmReport {
    /// Which host said it.
    #[n(0)]
    pub host: HostId,
    /// About which generation.
    #[n(1)]
    pub generation: Generation,
    /// What.
    #[n(2)]
    pub phase: ReportPhase,
    /// Why.
    #[n(3)]
    pub reason: Option<String>,
    /// The report itself.
    #[n(4)]
    pub cause: Cause,
    /// Whether it fits what was ordered.
    #[n(5)]
    pub agreement: Agreement,
}

/// Whether a report fits what was ordered.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Agreement {
    /// It does.
    #[n(0)]
    WithOrder,
    /// The host says that a guest runs whose owner has ordered it to be off or gone: it is marked,
    /// and not metered as running.
    #[n(1)]
    AgainstOrder,
}

/// A virtual machine: what is wanted, where, and what was last reported.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Vm {
    /// Its id.
    #[n(0)]
    pub id: VmId,
    /// Whose it is.
    #[n(1)]
    pub account: AccountId,
    /// Its name, unique in the account.
    #[n(2)]
    pub name: Name,
    /// Grows with every accepted change of what is wanted or where; reports do not change it.
    #[n(3)]
    pub generation: Generation,
    /// What created it.
    #[n(4)]
    pub created: Cause,
    /// What made this generation.
    #[n(5)]
    pub changed: Cause,
    /// What its owner wants.
    #[n(6)]
    pub wanted: Wanted,
    /// What its disk began with.
    #[n(7)]
    pub image: VmImage,
    /// Its size.
    #[n(8)]
    pub size: Capacity,
    /// Keys that may log in.
    #[n(9)]
    pub ssh_keys: Vec<SshKeyLine>,
    /// Public cloud-init user-data.
    #[n(10)]
    pub public_user_data: Option<String>,
    /// Its labels.
    #[n(11)]
    #[cfg_attr(feature = "schema", schema(value_type = std::collections::BTreeMap<String, String>))]
    pub labels: Labels,
    /// Only hosts of this region.
    #[n(12)]
    pub region: Option<Name>,
    /// Only hosts with these labels.
    #[n(13)]
    #[cfg_attr(feature = "schema", schema(value_type = std::collections::BTreeMap<String, String>))]
    pub host_labels: Labels,
    /// Only this host.
    #[n(14)]
    pub pinned_host: Option<HostId>,
    /// Where it is to be.
    #[n(15)]
    pub placement: Placement,
    /// Hosts that were tried and did not take it.
    #[n(16)]
    pub tried: Vec<HostId>,
    /// The host's last report.
    #[n(17)]
    pub reported: Option<VmReport>,
    /// The guest's SSH host key, once reported.
    #[n(18)]
    pub guest_host_key: Option<SshKeyLine>,
    /// Whether it may be deleted.
    #[n(19)]
    pub protection: Protection,
    /// Which VMs of the account it is kept away from.
    #[n(20)]
    pub apart: Vec<Apart>,
    /// The guest must have been switched on for this generation or a later one: a reboot asks for
    /// that.
    #[n(21)]
    pub booted_since: Generation,
    /// What it has used.
    #[n(22)]
    pub meter: Meter,
    /// How it is switched off, while it is wanted stopped.
    #[n(23)]
    pub stop_manner: StopManner,
    /// What happens when it stops by itself.
    #[n(24)]
    pub restart: RestartPolicy,
    /// The volumes that it uses besides its own disk, in the order in which they came; at most
    /// `VM_VOLUMES_MAX`.
    #[n(25)]
    pub volumes: Vec<VmVolume>,
    /// The machine must have been given its volumes for this generation or a later one.
    #[n(26)]
    pub volumes_since: Generation,
    /// Its first network card, and how that is reached.
    #[n(27)]
    pub network: VmNetwork,
    /// The kernel that it boots directly; without one, what the boot loader on its disk finds.
    #[n(28)]
    pub boot: Option<VmBoot>,
    /// Its other network cards, each on a bridge.
    #[n(30)]
    #[cbor(skip_if = "Vec::is_empty")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_cards: Vec<VmNetwork>,
}

impl Vm {
    /// The registered files that it is made of and boots: what its host has to have.
    pub fn images(&self) -> impl Iterator<Item = &VmImage> {
        let boot = self.boot.iter().flat_map(VmBoot::images);
        std::iter::once(&self.image).chain(boot)
    }
}

/// The new version of an object, so that a reader folds without knowing a rule: the whole of it, or
/// of a VM that was there before, all that may change ([`ChangedVm::of`] puts it onto the version
/// before).
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Effect {
    /// A host.
    #[n(0)]
    Host(#[n(0)] Box<Host>),
    /// An account.
    #[n(1)]
    Account(#[n(0)] Box<Account>),
    /// An image.
    #[n(2)]
    Image(#[n(0)] Box<Image>),
    /// A VM, whole: a new one where releases tell of it. When its state is `Deleted` this is its
    /// last version: the judge has forgotten it.
    #[n(3)]
    Vm(#[n(0)] Box<Vm>),
    /// What an account's deleted VMs have used on one host.
    #[n(4)]
    Usage(#[n(0)] Box<PastUsage>),
    /// A volume. When its state is `Deleted` this is its last version: the judge has forgotten it.
    #[n(5)]
    Volume(#[n(0)] Box<Volume>),
    /// A seat.
    #[n(6)]
    Seat(#[n(0)] Box<Seat>),
    /// The next epoch, once it is decided where the present one ends.
    #[n(7)]
    Epoch(#[n(0)] Box<EpochMembers>),
    /// An operator.
    #[n(8)]
    Operator(#[n(0)] Box<Operator>),
    /// A proposal. When it is pending no more this is its last version: the judge has forgotten it.
    #[n(9)]
    Proposal(#[n(0)] Box<Proposal>),
    /// A new version of a VM that was there before. Never in the state or a snapshot, which hold
    /// whole VMs.
    #[n(10)]
    VmChanged(#[n(0)] Box<ChangedVm>),
}
