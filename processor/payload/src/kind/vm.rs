//! Bodies of `vm.*`: what an account asks of its machines.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of VMs.

use serde::{Deserialize, Serialize};

use super::boot::VmBoot;
use super::capacity::Capacity;
use super::image::ImageFormat;
use super::{Checked, require};
use crate::bridge::broken_rule_of_cards;
use crate::id::{Generation, HostId, ImageDigest, VmId};
use crate::limits::{
    USER_DATA_BYTES_MAX, VM_APART_MAX, VM_CPUS_MAX, VM_DISK_GIB_MAX, VM_MEMORY_MIB_MAX,
    VM_SSH_KEYS_MAX,
};
use crate::name::{Labels, Name, SshKeyLine, labels_are_within_limits};
use crate::network::VmNetwork;
use crate::refusal::Refusal;

/// What two VMs that are kept apart may not share.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ApartBy {
    /// The host.
    #[n(0)]
    Host,
    /// The operator.
    #[n(1)]
    Operator,
    /// The site.
    #[n(2)]
    Site,
}

/// What happens when VMs cannot be kept apart.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ApartStrength {
    /// The VM is placed nowhere.
    #[n(0)]
    Required,
    /// The VM is placed where the fewest such wishes are broken.
    #[n(1)]
    Preferred,
}

/// Anti-affinity: keep the VM away from others of the same account.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Apart {
    /// Away from the account's VMs that carry all these labels; at least one.
    #[n(0)]
    #[cfg_attr(feature = "schema", schema(value_type = std::collections::BTreeMap<String, String>))]
    pub from: Labels,
    /// What they may not share.
    #[n(1)]
    pub by: ApartBy,
    /// What if that is impossible.
    #[n(2)]
    pub strength: ApartStrength,
}

/// The image of a new VM, as registered.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmImage {
    /// Digest of the image file.
    #[n(0)]
    pub digest: ImageDigest,
    /// Its format.
    #[n(1)]
    pub format: ImageFormat,
    /// Its virtual size, in bytes.
    #[n(2)]
    pub virtual_size_bytes: u64,
}

/// `vm.create`, signed by an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Unique within the account; also the guest's host name.
    pub name: Name,
    /// What its disk begins with.
    pub image: VmImage,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Disk, in GiB; at least the image's virtual size.
    pub disk_gib: u64,
    /// Keys that may log in.
    pub ssh_keys: Vec<SshKeyLine>,
    /// Only hosts of this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Name>,
    /// Only this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostId>,
    /// Only hosts that carry all these labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub host_labels: Labels,
    /// Which VMs of the account it is kept away from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub apart: Vec<Apart>,
    /// Labels of the VM itself.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// cloud-init user-data. **Public**: it is kept in the ledger for ever; put no secret here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_user_data: Option<String>,
    /// What happens when the guest stops by itself; it is switched on again if not given.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Its first network card: by NAT, reached from everywhere and by no port of its host, if not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<VmNetwork>,
    /// The kernel that it boots directly; the boot loader on its disk, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<VmBoot>,
    /// More network cards, each on a bridge.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_cards: Vec<VmNetwork>,
}

/// `vm.start`, `vm.pause`, `vm.resume`, `vm.reboot` and `vm.delete`, signed by the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// Which VM.
    pub vm: VmId,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// How a guest is switched off.
#[derive(
    Debug,
    Default,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum StopManner {
    /// The guest is asked, and switched off when it does not go in time.
    #[default]
    #[n(0)]
    Graceful,
    /// At once, as by pulling the plug.
    #[n(1)]
    Forced,
}

/// What happens when a guest stops by itself, or its host was switched off.
#[derive(
    Debug,
    Default,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    minicbor::Encode,
    minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum RestartPolicy {
    /// It is switched on again, a few times.
    #[default]
    #[n(0)]
    Always,
    /// It stays off until it is started.
    #[n(1)]
    Never,
}

/// `vm.stop`, signed by the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmStop {
    /// Which VM.
    pub vm: VmId,
    /// How; gracefully if not given. A second stop may turn a graceful one into a forced one.
    #[serde(default)]
    pub manner: StopManner,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// Whether a VM or a volume may be deleted.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Protection {
    /// Yes.
    #[n(0)]
    Unprotected,
    /// Not before it is unprotected.
    #[n(1)]
    Protected,
}

/// `vm.protect`, signed by the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmProtect {
    /// Which VM.
    pub vm: VmId,
    /// What it becomes.
    pub protection: Protection,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `vm.resize`, signed by the account: takes effect when the VM is switched on the next time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmResize {
    /// Which VM.
    pub vm: VmId,
    /// Virtual CPUs, if they change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory, if it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `vm.network`, signed by the account: how one network card is reached from now on, running or
/// not. Replaces what was asked before; the card stays on the bridge or the NAT that it is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmNetworkChange {
    /// Which VM.
    pub vm: VmId,
    /// How.
    pub network: VmNetwork,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
    /// Which card, from 0; the first, if not given.
    #[serde(default)]
    pub card: u8,
}

fn require_network(network: &VmNetwork) -> Result<(), Refusal> {
    network.broken_rule().map_or(Ok(()), |rule| require(false, rule))
}

impl Checked for VmNetworkChange {
    fn check(&self) -> Result<(), Refusal> {
        require_network(&self.network)
    }
}

fn require_cpus(cpus: u32) -> Result<(), Refusal> {
    require((1..=VM_CPUS_MAX).contains(&cpus), "cpus must be 1 to 256")
}

fn require_memory(memory_mib: u64) -> Result<(), Refusal> {
    require((64..=VM_MEMORY_MIB_MAX).contains(&memory_mib), "memory_mib must be 64 to 4194304")
}

impl Checked for VmResize {
    fn check(&self) -> Result<(), Refusal> {
        let named = self.cpus.is_some() || self.memory_mib.is_some();
        require(named, "cpus or memory_mib: at least one of them")?;
        self.cpus.map_or(Ok(()), require_cpus)?;
        self.memory_mib.map_or(Ok(()), require_memory)
    }
}

impl Checked for VmCreate {
    fn check(&self) -> Result<(), Refusal> {
        require_cpus(self.cpus)?;
        require_memory(self.memory_mib)?;
        require((1..=VM_DISK_GIB_MAX).contains(&self.disk_gib), "disk_gib must be 1 to 65536")?;
        let image_fits = self.image.virtual_size_bytes <= self.disk_gib << 30;
        require(image_fits, "disk_gib: at least the image's virtual size")?;
        require(self.ssh_keys.len() <= VM_SSH_KEYS_MAX, "ssh_keys: at most 16")?;
        let user_data = self.public_user_data.as_ref().map_or(0, String::len);
        require(user_data <= USER_DATA_BYTES_MAX, "public_user_data: at most 32768 bytes")?;
        self.require_cards()?;
        let boot_fits = self.boot.as_ref().is_none_or(|boot| boot.fits_memory(self.memory_mib));
        require(boot_fits, "boot: kernel and initrd take at most half of memory_mib")?;
        require(labels_are_within_limits(&self.labels), "labels: at most 32")?;
        require(labels_are_within_limits(&self.host_labels), "host_labels: at most 32")?;
        require(self.apart.len() <= VM_APART_MAX, "apart: at most 8")?;
        let named = |apart: &Apart| !apart.from.is_empty() && labels_are_within_limits(&apart.from);
        require(self.apart.iter().all(named), "apart: from has 1 to 32 labels")
    }
}

impl VmCreate {
    fn require_cards(&self) -> Result<(), Refusal> {
        let first = self.network.clone().unwrap_or_default();
        require_network(&first)?;
        let together = broken_rule_of_cards(&first, &self.more_cards);
        together.map_or(Ok(()), |rule| require(false, rule))?;
        self.more_cards.iter().try_for_each(require_network)
    }

    /// What the VM takes of a host and of a grant.
    pub fn size(&self) -> Capacity {
        Capacity { cpus: self.cpus, memory_mib: self.memory_mib, disk_gib: self.disk_gib }
    }
}

impl Checked for VmChange {}

impl Checked for VmStop {}

/// Gracefully.
impl From<VmChange> for VmStop {
    fn from(VmChange { vm, expected_generation }: VmChange) -> Self {
        Self { vm, manner: StopManner::Graceful, expected_generation }
    }
}

impl Checked for VmProtect {}
