//! What passes between the agent's two halves: the one that follows the ledger (link,
//! verification, read model, API) and the one that works on machines (controller, journal,
//! actuator, hypervisors).
//!
//! Owns only these shapes, and those of the controller that pass here. Never decides. The first
//! half sends [`Order`]s through a bounded channel, the second answers with [`HostReport`]s
//! through a bounded channel and keeps a [`SightBoard`] for the API to show.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use dagger_api::ImageDownload;
pub use dagger_controller::order::{AttestedVm, AttestedVolume, Order, ReportSubject, VmSight};
use dagger_payload::id::{Generation, HostId, ImageDigest, VmId};
use dagger_payload::kind::{Body, ReportSnapshot, ReportVm, ReportVolume, StopManner};

use crate::exports::Exporter;
use crate::inspection::Inspector;

/// What this host says about one of its VMs or volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostReport {
    /// About a VM.
    Vm(ReportVm),
    /// About a volume.
    Volume(ReportVolume),
    /// About a volume's snapshot.
    Snapshot(ReportSnapshot),
}

impl From<ReportVm> for HostReport {
    fn from(report: ReportVm) -> Self {
        Self::Vm(report)
    }
}

impl From<ReportVolume> for HostReport {
    fn from(report: ReportVolume) -> Self {
        Self::Volume(report)
    }
}

impl From<ReportSnapshot> for HostReport {
    fn from(report: ReportSnapshot) -> Self {
        Self::Snapshot(report)
    }
}

impl HostReport {
    /// What it is about.
    pub fn subject(&self) -> ReportSubject {
        match self {
            Self::Vm(report) => ReportSubject::Vm(report.vm),
            Self::Volume(report) => ReportSubject::Volume(report.volume),
            Self::Snapshot(report) => ReportSubject::Snapshot(report.volume, report.snapshot),
        }
    }

    /// Its reason.
    pub fn reason_mut(&mut self) -> &mut Option<String> {
        match self {
            Self::Vm(report) => &mut report.reason,
            Self::Volume(report) => &mut report.reason,
            Self::Snapshot(report) => &mut report.reason,
        }
    }

    /// The body of the payload that says it.
    pub fn body(&self) -> Body {
        match self {
            Self::Vm(report) => Body::ReportVm(report.clone()),
            Self::Volume(report) => Body::ReportVolume(report.clone()),
            Self::Snapshot(report) => Body::ReportSnapshot(report.clone()),
        }
    }
}

/// Reports on their way to the ledger. The submitting half signs each with the agent key and
/// repeats it until it is ordered or superseded by a later one about the same subject.
pub type ReportSender = tokio::sync::mpsc::Sender<HostReport>;

/// Somebody wants to sit down at a guest's serial console.
#[derive(Debug)]
pub struct ConsoleRequest {
    /// Whose.
    pub vm: VmId,
    /// Where to type.
    pub reply: tokio::sync::oneshot::Sender<Result<ConsoleTyping, ConsoleProblem>>,
}

/// What is typed at a guest's console; closes when the guest takes nothing more.
pub type ConsoleTyping = tokio::sync::mpsc::Sender<Bytes>;

/// Why nobody can type at a console.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleProblem {
    /// There is no guest.
    #[error("the VM does not run")]
    NotRunning,
    /// The hypervisor does not give it.
    #[error("the hypervisor does not open the console: {0}")]
    Unavailable(String),
}

/// The way to the consoles of this host.
pub type ConsoleSender = tokio::sync::mpsc::Sender<ConsoleRequest>;

/// This host's operator wants a machine off, whatever the ledger says.
#[derive(Debug)]
pub struct LocalStopRequest {
    /// Which.
    pub vm: VmId,
    /// How.
    pub manner: StopManner,
    /// Why.
    pub reason: String,
    /// Once it is written down: from then on the machine goes off, and stays off.
    pub reply: tokio::sync::oneshot::Sender<Result<Generation, NoSuchMachine>>,
}

/// This host neither sees the machine nor has written anything down about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSuchMachine;

/// The way to this host's switches.
pub type LocalStopSender = tokio::sync::mpsc::Sender<LocalStopRequest>;

/// What is asked of the machines' half by people rather than by the ledger.
#[derive(Debug)]
pub struct Requests {
    /// Somebody sits down at a console.
    pub consoles: tokio::sync::mpsc::Receiver<ConsoleRequest>,
    /// The operator switches a machine off.
    pub local_stops: tokio::sync::mpsc::Receiver<LocalStopRequest>,
}

/// Introduces this host to others of the cluster, which let their like read images.
#[derive(Clone)]
pub struct Introduction {
    introduce: Arc<dyn Fn(HostId) -> (String, String) + Send + Sync>,
}

impl Introduction {
    /// Introduces by what this makes for the host that is asked: a session document, and its
    /// signature.
    pub fn new(introduce: impl Fn(HostId) -> (String, String) + Send + Sync + 'static) -> Self {
        Self { introduce: Arc::new(introduce) }
    }

    /// For this host.
    pub fn to(&self, host: HostId) -> (String, String) {
        (self.introduce)(host)
    }
}

impl Default for Introduction {
    /// Says nothing, and is let in nowhere.
    fn default() -> Self {
        Self::new(|_| Default::default())
    }
}

impl std::fmt::Debug for Introduction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Introduction").finish_non_exhaustive()
    }
}

/// What this host sees of the VMs that it carries; written by the observation, read by the API.
#[derive(Debug, Clone, Default)]
pub struct SightBoard {
    shared: Arc<RwLock<SightContents>>,
}

/// Contents of a [`SightBoard`].
#[derive(Debug, Clone, Default)]
pub struct SightContents {
    /// By VM.
    pub vms: BTreeMap<VmId, VmSight>,
    /// How the hypervisor is: `Ok` with a description, or why it cannot be asked.
    pub hypervisor: Option<Result<String, String>>,
    /// Why this host holds, if so.
    pub hold: Option<String>,
    /// Images that are being fetched.
    pub downloads: BTreeMap<ImageDigest, ImageDownload>,
    /// Looks at everything on this host, once the machines' half has begun.
    pub inspector: Option<Inspector>,
    /// Copies disks of this host, once the machines' half has begun.
    pub exporter: Option<Exporter>,
}

impl SightBoard {
    /// Changes the contents.
    pub fn update(&self, change: impl FnOnce(&mut SightContents)) {
        let mut contents = self.shared.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut contents);
    }

    /// Reads the contents.
    pub fn read<T>(&self, look: impl FnOnce(&SightContents) -> T) -> T {
        look(&self.shared.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
