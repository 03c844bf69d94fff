//! The kinds of payload and the exact shape of each body.
//!
//! Owns field names, units and ranges. Never judges whether a request is allowed:
//! `dagger-processor` does. Called by whoever writes or reads a payload. All numbers are checked
//! against `limits` by [`Body::check`].

use serde::{Deserialize, Serialize};

use crate::id::{AccountId, Generation, HostId, ImageDigest, VmId};
use crate::key::PublicKey;
use crate::limits::{
    IMAGE_SOURCES_MAX, REASON_BYTES_MAX, USER_DATA_BYTES_MAX, VM_APART_MAX, VM_CPUS_MAX,
    VM_DISK_GIB_MAX, VM_MEMORY_MIB_MAX, VM_SSH_KEYS_MAX,
};
use crate::name::{ImageName, ImageSource, Labels, Name, SshKeyLine, labels_are_within_limits};
use crate::refusal::{Refusal, RefusalCode};

/// What a host offers or an account may use.
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
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// Virtual CPUs.
    #[n(0)]
    pub cpus: u32,
    /// Memory, in MiB.
    #[n(1)]
    pub memory_mib: u64,
    /// Disk, in GiB.
    #[n(2)]
    pub disk_gib: u64,
}

impl Capacity {
    /// Whether `wanted` fits into this in every dimension.
    pub fn covers(&self, wanted: &Self) -> bool {
        self.cpus >= wanted.cpus
            && self.memory_mib >= wanted.memory_mib
            && self.disk_gib >= wanted.disk_gib
    }

    /// The sum, saturating.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_add(other.cpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }

    /// The difference, never below zero.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self {
            cpus: self.cpus.saturating_sub(other.cpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }
}

/// Format of an image file; never guessed from its bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ImageFormat {
    /// A plain disk image.
    #[n(0)]
    Raw,
    /// QEMU's copy-on-write format, without backing file, data file or encryption.
    #[n(1)]
    Qcow2,
}

/// An IPv4 network for a host's guests: the network's first address and its prefix length. The host
/// itself takes the first usable address; guests get the others, decided by the judge.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct GuestSubnet {
    /// The network address; its host bits are zero.
    #[n(0)]
    #[cbor(with = "ipv4")]
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub network: std::net::Ipv4Addr,
    /// Prefix length, 16 to 29.
    #[n(1)]
    pub prefix_length: u8,
}

impl GuestSubnet {
    /// Address number `index` of the network (1 is the host's own); `None` outside it or for the
    /// broadcast address.
    pub fn address(&self, index: u32) -> Option<std::net::Ipv4Addr> {
        let size = 1_u32.checked_shl(32 - u32::from(self.prefix_length))?;
        let usable = index > 0 && index < size.checked_sub(1)?;
        usable.then(|| std::net::Ipv4Addr::from(u32::from(self.network) + index))
    }

    fn is_valid(&self) -> bool {
        let in_range = (16..=29).contains(&self.prefix_length);
        in_range
            && u32::from(self.network) & ((1 << (32 - u32::from(self.prefix_length))) - 1) == 0
            && self.network.is_private()
    }
}

/// An IPv4 address as a CBOR unsigned integer.
pub(crate) mod ipv4 {
    use std::net::Ipv4Addr;

    pub(crate) fn encode<C, W: minicbor::encode::Write>(
        value: &Ipv4Addr,
        encoder: &mut minicbor::Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.u32(u32::from(*value))?.ok()
    }

    pub(crate) fn decode<C>(
        decoder: &mut minicbor::Decoder<'_>,
        _: &mut C,
    ) -> Result<Ipv4Addr, minicbor::decode::Error> {
        Ok(Ipv4Addr::from(decoder.u32()?))
    }
}

/// `host.join`, signed by the host's operator: the host offers this from now on. Repeated to change
/// the offer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostJoin {
    /// The member's key from the genesis document.
    pub ledger_key: PublicKey,
    /// The key that signs the host's reports.
    pub agent_key: PublicKey,
    /// What the host is called.
    pub name: Name,
    /// Where it stands.
    pub region: Name,
    /// The building or fire compartment inside the region; a host without one is a site of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<Name>,
    /// What it has for guests and for itself.
    pub capacity: Capacity,
    /// How much of the capacity no VM may take.
    #[serde(default)]
    pub reserve: Capacity,
    /// Addresses for its guests.
    pub guest_subnet: GuestSubnet,
    /// Labels for placement.
    #[serde(default)]
    pub labels: Labels,
}

/// `host.drain` and `host.resume`, signed by the host's operator: no VM is offered to the host, or
/// again. VMs that it carries stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// Which host.
    pub host: HostId,
}

/// `account.grant`, signed by an operator: the account may use this much on that operator's hosts.
/// Replaces the operator's earlier grant to the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountGrant {
    /// The account's key.
    pub key: PublicKey,
    /// How much in all.
    pub capacity: Capacity,
    /// How many VMs.
    pub vms: u32,
    /// Until when, in ledger time, milliseconds.
    pub until_ms: u64,
}

/// `account.revoke`, signed by an operator: takes back his grant. VMs that run stay and may be
/// stopped and deleted; nothing new is placed on his hosts, and what is stopped there stays so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountRevoke {
    /// Whose grant.
    pub account: AccountId,
}

/// `image.register`, signed by an operator or an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRegister {
    /// `publisher/name`.
    pub name: ImageName,
    /// Digest of the file.
    pub digest: ImageDigest,
    /// Format of the file.
    pub format: ImageFormat,
    /// Size of the file, in bytes.
    pub size_bytes: u64,
    /// Size of the disk that the guest sees, in bytes.
    pub virtual_size_bytes: u64,
    /// Where hosts may fetch it.
    #[serde(default)]
    pub sources: Vec<ImageSource>,
}

/// `image.retire`, signed by the image's publisher: no new VM boots it. The name stays his.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRetire {
    /// `publisher/name`.
    pub name: ImageName,
}

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
    /// What it boots.
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
}

/// `vm.start`, `vm.stop`, `vm.reboot` and `vm.delete`, signed by the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmChange {
    /// Which VM.
    pub vm: VmId,
    /// Refuse with `conflict` unless the VM is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// Whether a VM may be deleted.
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

/// What a host says it did or saw.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ReportPhase {
    /// The placed host takes the VM; it acts only once this is ordered.
    #[n(0)]
    Accepted,
    /// The placed host refuses by its operator's local policy; the next host is tried.
    #[n(1)]
    Refused,
    /// Seen running.
    #[n(2)]
    Running,
    /// Seen stopped (asked for or not: compare with what is wanted).
    #[n(3)]
    Stopped,
    /// Cannot be brought to what is wanted; the reason says why.
    #[n(4)]
    Degraded,
    /// Undefined, its disk in quarantine.
    #[n(5)]
    Deleted,
}

/// `report.vm`, signed with the host's agent key; sent on change only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportVm {
    /// Which VM.
    pub vm: VmId,
    /// The generation that this is about.
    pub generation: Generation,
    /// What happened.
    pub phase: ReportPhase,
    /// Why, in one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The guest's SSH host key, once known, so that the first log-in can be checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_host_key: Option<SshKeyLine>,
}

/// The body of a payload, by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// `host.join`
    HostJoin(Box<HostJoin>),
    /// `host.drain`
    HostDrain(HostChange),
    /// `host.resume`
    HostResume(HostChange),
    /// `account.grant`
    AccountGrant(AccountGrant),
    /// `account.revoke`
    AccountRevoke(AccountRevoke),
    /// `image.register`
    ImageRegister(ImageRegister),
    /// `image.retire`
    ImageRetire(ImageRetire),
    /// `vm.create`
    VmCreate(Box<VmCreate>),
    /// `vm.start`
    VmStart(VmChange),
    /// `vm.stop`
    VmStop(VmChange),
    /// `vm.reboot`
    VmReboot(VmChange),
    /// `vm.resize`
    VmResize(VmResize),
    /// `vm.protect`
    VmProtect(VmProtect),
    /// `vm.delete`
    VmDelete(VmChange),
    /// `report.vm`
    ReportVm(ReportVm),
}

impl Body {
    /// The text that stands in a payload's `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::HostJoin(_) => "host.join",
            Self::HostDrain(_) => "host.drain",
            Self::HostResume(_) => "host.resume",
            Self::AccountGrant(_) => "account.grant",
            Self::AccountRevoke(_) => "account.revoke",
            Self::ImageRegister(_) => "image.register",
            Self::ImageRetire(_) => "image.retire",
            Self::VmCreate(_) => "vm.create",
            Self::VmStart(_) => "vm.start",
            Self::VmStop(_) => "vm.stop",
            Self::VmReboot(_) => "vm.reboot",
            Self::VmResize(_) => "vm.resize",
            Self::VmProtect(_) => "vm.protect",
            Self::VmDelete(_) => "vm.delete",
            Self::ReportVm(_) => "report.vm",
        }
    }

    /// Reads the JSON text of a body of `kind`.
    ///
    /// # Errors
    /// `kind_unknown`, `payload_malformed`, and `limit_exceeded` from [`Body::check`].
    pub fn read(kind: &str, json: &str) -> Result<Self, Refusal> {
        fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Refusal> {
            serde_json::from_str(json).map_err(|error| {
                Refusal::new(RefusalCode::PayloadMalformed, format!("body: {error}"))
            })
        }
        let body = match kind {
            "host.join" => Self::HostJoin(Box::new(parse(json)?)),
            "host.drain" => Self::HostDrain(parse(json)?),
            "host.resume" => Self::HostResume(parse(json)?),
            "account.grant" => Self::AccountGrant(parse(json)?),
            "account.revoke" => Self::AccountRevoke(parse(json)?),
            "image.register" => Self::ImageRegister(parse(json)?),
            "image.retire" => Self::ImageRetire(parse(json)?),
            "vm.create" => Self::VmCreate(Box::new(parse(json)?)),
            "vm.start" => Self::VmStart(parse(json)?),
            "vm.stop" => Self::VmStop(parse(json)?),
            "vm.reboot" => Self::VmReboot(parse(json)?),
            "vm.resize" => Self::VmResize(parse(json)?),
            "vm.protect" => Self::VmProtect(parse(json)?),
            "vm.delete" => Self::VmDelete(parse(json)?),
            "report.vm" => Self::ReportVm(parse(json)?),
            _ => {
                let detail = format!("no rule knows the kind {kind:?}");
                return Err(Refusal::new(RefusalCode::KindUnknown, detail));
            }
        };
        body.check()?;
        Ok(body)
    }

    /// The JSON value of the body.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::HostJoin(body) => serde_json::to_value(body),
            Self::HostDrain(body) | Self::HostResume(body) => serde_json::to_value(body),
            Self::AccountGrant(body) => serde_json::to_value(body),
            Self::AccountRevoke(body) => serde_json::to_value(body),
            Self::ImageRegister(body) => serde_json::to_value(body),
            Self::ImageRetire(body) => serde_json::to_value(body),
            Self::VmCreate(body) => serde_json::to_value(body),
            Self::VmStart(body)
            | Self::VmStop(body)
            | Self::VmReboot(body)
            | Self::VmDelete(body) => serde_json::to_value(body),
            Self::VmResize(body) => serde_json::to_value(body),
            Self::VmProtect(body) => serde_json::to_value(body),
            Self::ReportVm(body) => serde_json::to_value(body),
        }
        .expect("bodies have string keys only")
    }

    /// Checks every number and length against the table of limits.
    ///
    /// # Errors
    /// `limit_exceeded`, with the field's name and its range.
    pub fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::HostJoin(body) => {
                require(
                    body.guest_subnet.is_valid(),
                    "guest_subnet: a private IPv4 network /16../29",
                )?;
                let reserve = body.capacity.covers(&body.reserve);
                require(reserve, "reserve: no more than the capacity")?;
                require(labels_are_within_limits(&body.labels), "labels: at most 32")
            }
            Self::HostDrain(_)
            | Self::HostResume(_)
            | Self::AccountGrant(_)
            | Self::AccountRevoke(_)
            | Self::ImageRetire(_)
            | Self::VmStart(_)
            | Self::VmStop(_)
            | Self::VmReboot(_)
            | Self::VmProtect(_)
            | Self::VmDelete(_) => Ok(()),
            Self::VmResize(body) => body.check(),
            Self::ImageRegister(body) => {
                require(body.sources.len() <= IMAGE_SOURCES_MAX, "sources: at most 8")?;
                require(body.size_bytes > 0, "size_bytes: above 0")?;
                require(body.virtual_size_bytes > 0, "virtual_size_bytes: above 0")
            }
            Self::VmCreate(body) => body.check(),
            Self::ReportVm(body) => {
                let reason = body.reason.as_ref().map_or(0, String::len);
                require(reason <= REASON_BYTES_MAX, "reason: at most 512 bytes")
            }
        }
    }
}

fn require(holds: bool, rule: &str) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal::new(RefusalCode::LimitExceeded, rule)) }
}

fn require_cpus(cpus: u32) -> Result<(), Refusal> {
    require((1..=VM_CPUS_MAX).contains(&cpus), "cpus: 1 to 256")
}

fn require_memory(memory_mib: u64) -> Result<(), Refusal> {
    require((64..=VM_MEMORY_MIB_MAX).contains(&memory_mib), "memory_mib: 64 to 4194304")
}

impl VmResize {
    fn check(&self) -> Result<(), Refusal> {
        let named = self.cpus.is_some() || self.memory_mib.is_some();
        require(named, "cpus or memory_mib: at least one of them")?;
        self.cpus.map_or(Ok(()), require_cpus)?;
        self.memory_mib.map_or(Ok(()), require_memory)
    }
}

impl VmCreate {
    fn check(&self) -> Result<(), Refusal> {
        require_cpus(self.cpus)?;
        require_memory(self.memory_mib)?;
        require((1..=VM_DISK_GIB_MAX).contains(&self.disk_gib), "disk_gib: 1 to 65536")?;
        let image_fits = self.image.virtual_size_bytes <= self.disk_gib << 30;
        require(image_fits, "disk_gib: at least the image's virtual size")?;
        require(self.ssh_keys.len() <= VM_SSH_KEYS_MAX, "ssh_keys: at most 16")?;
        let user_data = self.public_user_data.as_ref().map_or(0, String::len);
        require(user_data <= USER_DATA_BYTES_MAX, "public_user_data: at most 32768 bytes")?;
        require(labels_are_within_limits(&self.labels), "labels: at most 32")?;
        require(labels_are_within_limits(&self.host_labels), "host_labels: at most 32")?;
        require(self.apart.len() <= VM_APART_MAX, "apart: at most 8")?;
        let named = |apart: &Apart| !apart.from.is_empty() && labels_are_within_limits(&apart.from);
        require(self.apart.iter().all(named), "apart: from has 1 to 32 labels")
    }

    /// What the VM takes of a host and of a grant.
    pub fn size(&self) -> Capacity {
        Capacity { cpus: self.cpus, memory_mib: self.memory_mib, disk_gib: self.disk_gib }
    }
}
