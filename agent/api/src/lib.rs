//! JSON shapes of the developers' HTTP API (`/v1/...`), shared by the agent, which serves them, and
//! `daggerctl`, which reads them. Objects of the judged state are shown as they are
//! (`dagger_payload::object`).
//!
//! Owns names and units of what is shown. Never opens a connection and never decides.
#![forbid(unsafe_code)]

pub mod bill;
pub mod export;
pub mod log;
pub mod proof;

use dagger_payload::id::{
    AccountId, ClusterId, CommitIndex, Generation, HostId, ImageDigest, LedgerTime, PayloadDigest,
    Position, ProtocolVersion, SnapshotId, VmId, VolumeId,
};
use dagger_payload::kind::{Capacity, ReportPhase};
use dagger_payload::name::{ImageName, Name};
use dagger_payload::network::Protocol;
use dagger_payload::object::{Account, Image, Vm, VmState};
use dagger_payload::prediction::HostOutlook;
use dagger_payload::refusal::Refusal;
use dagger_payload::usage::Used;
use dagger_payload::volume::{SnapshotState, Volume, VolumeState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod host;
mod ledger;
mod members;

pub use host::{FsckFinding, FsckKind, FsckView, LocalStop, LocalStopView};
pub use ledger::{ForkView, JunkView, LedgerView, MemberView};
pub use members::{EpochView, HostLink, HostView, OperatorView, ProposalView, Vote};

/// The header that carries a payload's signature on `POST /v1/payloads`: the base64 text of an
/// OpenSSH signature (what stands between the first and the last line of a `.sig` file), on one
/// line.
pub const SIGNATURE_HEADER: &str = "dagger-signature";

/// Media type of errors (RFC 9457).
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";

/// An error (RFC 9457, problem details).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:dagger:problem:CODE`: names the code, leads nowhere. `GET /v1/problems` lists all.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The code's meaning in a few words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code: one of the refusal codes, or one of [`Problem`]'s own (`no_quorum`,
    /// `not_found`, ...).
    pub code: String,
    /// What is wrong here.
    pub detail: String,
    /// Which rule was broken, for a refusal code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What to do next.
    pub advice: String,
    /// Who is missing, for `no_quorum`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quorum: Option<QuorumProblem>,
}

/// `GET /v1/problems` (a list): what an error can be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemKind {
    /// The stable code. `not_found` stands there three times: for a path, for an object that is
    /// looked up, and for one that a signed request names.
    pub code: String,
    /// HTTP status.
    pub status: u16,
    /// Its meaning in a few words.
    pub title: String,
    /// Which rule is broken, if it is the cluster that refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What to do next.
    pub advice: String,
}

/// Why there is no quorum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuorumProblem {
    /// Members that can be reached, this one included.
    pub have: u16,
    /// Members that it takes.
    pub need: u16,
    /// Names of those that are missing.
    pub missing: Vec<Name>,
}

/// `GET /v1/cluster`: what a client needs to make a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClusterView {
    /// Goes into every payload.
    pub cluster: ClusterId,
    /// What the cluster is called.
    pub name: Name,
    /// The host that answers.
    pub host: HostId,
    /// Its name.
    pub host_name: Name,
    /// Ledger time to count `not_after_ms` from: the later of the newest commit's and this host's
    /// clock.
    pub ledger_time: LedgerTime,
    /// Version of the agent.
    pub version: String,
    /// The newest rules that its build knows.
    #[schema(value_type = u32)]
    pub protocol_max: ProtocolVersion,
}

/// Where a payload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PayloadState {
    /// Durable on the answering host, not yet ordered.
    Received,
    /// Ordered; not yet judged here.
    Ordered,
    /// Judged and accepted.
    Accepted,
    /// Judged and refused; see `refusal`.
    Refused,
}

/// `POST /v1/payloads` and `GET /v1/payloads/{digest}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PayloadView {
    /// Identity of the payload.
    pub digest: PayloadDigest,
    /// Where it stands.
    pub state: PayloadState,
    /// Its position, once ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// Whether a quorum attests that position.
    pub attested: Attested,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The VM that it made or changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
}

/// `POST /v1/predictions`: what would come of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PredictionView {
    /// Why it would be refused, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// The VM as it would be, if the document makes or changes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    /// For a new VM: the hosts that a grant with room allows, the best first.
    pub hosts: Vec<HostOutlook>,
    /// How many more of them there are.
    pub hosts_left_out: u64,
}

/// Whether a quorum attests a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attested {
    /// Yes.
    Yes,
    /// Not yet.
    No,
}

/// What the answering host itself sees of a VM that it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// The hypervisor shows it running.
    Running,
    /// The hypervisor shows it switched off.
    Stopped,
    /// A full listing does not show it.
    Absent,
    /// The hypervisor cannot be asked.
    Unknown,
    /// Another host carries it.
    Elsewhere,
}

/// `GET /v1/vms` (a list) and `GET /v1/vms/{id or name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmView {
    /// The judged object.
    pub vm: Vm,
    /// Its state in one word.
    pub state: VmState,
    /// Why, when degraded or held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name of the host that is to carry it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<Name>,
    /// Name of its image, while registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<ImageName>,
    /// Name of the kernel that it boots directly, while registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_name: Option<ImageName>,
    /// Name of that kernel's initial RAM disk, while registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_name: Option<ImageName>,
    /// Which ports of its host lead to it, once it has a host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forwards: Vec<HostForward>,
    /// What the answering host sees.
    pub sight: Sight,
    /// The VM's host is out of sight: everything that is shown of the VM is as old as its last
    /// report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<Unproven>,
    /// The size that its guest has until its next start, where that is not yet `vm.size`: it was
    /// resized while it was switched on, and its host has not reported a start since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_size: Option<Capacity>,
    /// How far its image, kernel or initial RAM disk has come, while the answering host fetches it
    /// for this VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_download: Option<ImageDownload>,
    /// The generation that the carrying host has applied, if the answering host knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_generation: Option<Generation>,
}

/// Why nothing proves that a VM is still as its host reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unproven {
    /// How the answering host's ledger sees the VM's host: `missing`, or `unknown` while that
    /// ledger cannot be asked.
    pub link: HostLink,
    /// Ledger time of the host's last report about the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported_at: Option<LedgerTime>,
}

/// A port of a VM's host that leads to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostForward {
    /// The host's.
    pub host_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The guest's.
    pub guest_port: u16,
}

/// `GET /v1/volumes` (a list) and `GET /v1/volumes/{id or name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeView {
    /// The judged object.
    pub volume: Volume,
    /// Its state in one word.
    pub state: VolumeState,
    /// Why, when degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Name of its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<Name>,
    /// Name of the VM that has it, or that is to lose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_name: Option<Name>,
    /// Its snapshots, in the order in which they were asked for.
    pub snapshots: Vec<SnapshotView>,
}

/// How one of a volume's snapshots is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotView {
    /// Which.
    pub snapshot: SnapshotId,
    /// What it is called.
    pub name: Name,
    /// Its state in one word.
    pub state: SnapshotState,
    /// Why, when degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// One step in a VM's history: an ordered payload that named it, or a deadline that passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryEntry {
    /// The payload's position; none for what the passing of ledger time did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// The commit that ordered it.
    pub commit: CommitIndex,
    /// The commit's ledger time.
    pub ledger_time: LedgerTime,
    /// The payload, if one caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<HistoryPayload>,
    /// One sentence: what happened.
    pub summary: String,
    /// The VM's generation after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// For reports: what the host said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ReportPhase>,
    /// Why it was refused, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Refusal>,
    /// Names of the hosts whose signed headers attest this commit.
    pub attested_by: Vec<Name>,
}

/// The payload behind a step: who signed it, and everything to check that with stock OpenSSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryPayload {
    /// Its identity.
    pub digest: PayloadDigest,
    /// Its kind.
    pub kind: String,
    /// Who signed it, as an OpenSSH public key.
    pub signer: String,
    /// Who that is: `account ...`, `operator NAME`, `host NAME`.
    pub signer_name: String,
    /// Name of the host whose event carried it.
    pub carried_by: Name,
    /// The exact signed text.
    pub document: String,
    /// The armoured signature for `ssh-keygen -Y verify -n dagger`.
    pub signature: String,
}

/// `GET /v1/vms/{id or name}/history`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    /// The VM.
    pub vm: VmId,
    /// Its name.
    pub name: Name,
    /// Steps, oldest first.
    pub entries: Vec<HistoryEntry>,
    /// There are earlier ones: give this back as `before` to see them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earlier: Option<u64>,
}

/// `GET /v1/accounts/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountView {
    /// The judged object.
    pub account: Account,
    /// What its VMs take.
    pub used: Capacity,
    /// How many VMs it has.
    pub vms: u32,
}

/// `GET /v1/accounts/{id}/usage`: the same bytes from every host that has judged `commit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageView {
    /// Whose VMs.
    pub account: AccountId,
    /// The commit after which the meters are read: the last one with content, up to the one that
    /// was asked for.
    pub commit: CommitIndex,
    /// Its ledger time.
    pub ledger_time_ms: LedgerTime,
    /// The hosts that carried VMs of the account, by id.
    pub hosts: Vec<HostUsageView>,
    /// In all.
    pub used: Used,
}

/// What an account has used on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostUsageView {
    /// Which.
    pub host: HostId,
    /// What it is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// VMs that exist, by id.
    pub vms: Vec<VmUsageView>,
    /// Volumes that exist, by id.
    pub volumes: Vec<VolumeUsageView>,
    /// Deleted VMs, oldest deletion first: the account's newest thousand, on all hosts together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deleted: Vec<VmUsageView>,
    /// How many VMs there were that are deleted.
    pub deleted_vms: u64,
    /// What they and deleted volumes have used.
    pub deleted_used: Used,
    /// In all.
    pub used: Used,
}

/// What one VM has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmUsageView {
    /// Which.
    pub vm: VmId,
    /// What it is called.
    pub name: Name,
    /// How much.
    pub used: Used,
}

/// What one volume has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeUsageView {
    /// Which.
    pub volume: VolumeId,
    /// What it is called.
    pub name: Name,
    /// How much.
    pub used: Used,
}

/// `GET /v1/accounts` (a list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AccountSummary {
    /// Its id.
    pub id: AccountId,
    /// Its key's fingerprint.
    pub fingerprint: String,
    /// How many VMs it has.
    pub vms: u32,
}

/// `GET /v1/images` (a list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    /// The judged object.
    pub image: Image,
    /// Whether the answering host holds the file.
    pub held: Held,
    /// How far it has come, while the answering host fetches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<ImageDownload>,
}

/// An image on its way to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageDownload {
    /// Bytes that are here.
    pub bytes_done: u64,
    /// Bytes that there are, as it was registered.
    pub bytes_total: u64,
    /// Where it comes from, once a source is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// The label of a host, `address:port`, under which its operator says where it serves images to
/// other hosts.
pub const IMAGE_ENDPOINT_LABEL: &str = "image-endpoint";

/// Whether a host holds an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// Yes: verified when it was taken in, and again before each use.
    Yes,
    /// No.
    No,
}

/// `POST /v1/images` (Unix socket only): a file of this host was taken into its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageImport {
    /// Absolute path of the file on this host.
    pub path: String,
    /// Digest that it must have.
    pub digest: ImageDigest,
}

/// `GET /v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Whether everything below is well.
    pub status: HealthStatus,
    /// One entry per part: `ledger`, `processor`, `hypervisor`, `quorum`.
    pub parts: Vec<HealthPart>,
}

/// Well or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// Works.
    Ok,
    /// Does not; see why.
    Degraded,
}

/// One part's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthPart {
    /// Which part.
    pub name: String,
    /// How it is.
    pub status: HealthStatus,
    /// Why, in one sentence.
    pub detail: String,
}

/// One event of `GET /v1/events` (server-sent events; the event's id is the commit index, and
/// `?after=COMMIT` or `Last-Event-ID` resumes).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum StreamEvent {
    /// A payload was judged.
    Payload {
        /// Its commit.
        commit: CommitIndex,
        /// Where it stands.
        payload: PayloadView,
    },
    /// A VM changed.
    Vm {
        /// The commit that changed it.
        commit: CommitIndex,
        /// The new version.
        vm: Box<Vm>,
        /// Its state in one word.
        state: VmState,
    },
    /// Another object changed.
    Object {
        /// The commit that changed it.
        commit: CommitIndex,
        /// `host`, `account`, `image`, `volume`, `operator`, `proposal`, `seat` or `epoch`.
        kind: String,
        /// Its id or name.
        id: String,
    },
    /// A quorum attests everything up to this commit.
    Attested {
        /// The commit.
        commit: CommitIndex,
    },
}
