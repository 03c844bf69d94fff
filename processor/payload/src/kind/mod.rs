//! The kinds of payload: one table, and the shapes of bodies by subject.
//!
//! Owns which kinds there are and how a body is read and written. Never judges whether a request is
//! allowed: `dagger-processor` does. Called by whoever writes or reads a payload. All numbers are
//! checked against `limits` by [`Body::check`].

mod account;
mod boot;
mod capacity;
mod host;
mod image;
mod operator;
mod report;
mod snapshot;
mod vm;
mod volume;

use serde::Deserialize;

use crate::id::{PayloadDigest, VmId};
use crate::refusal::{Refusal, RefusalCode};

pub use account::{
    AccountAddKey, AccountGrant, AccountRemoveKey, AccountRevoke, AccountRotateKey, KeyRole,
};
pub use boot::VmBoot;
pub use capacity::Capacity;
pub(crate) use host::ipv4;
pub use host::{GuestSubnet, HostChange, HostJoin, HostRotateLedgerKey};
pub use image::{ImageFormat, ImageRegister, ImageRetire, ImageUse};
pub use operator::{OperatorPropose, OperatorRotateKey, ProposalChange};
pub use report::{ReportPhase, ReportVm};
pub use snapshot::{ReportSnapshot, SnapshotDelete, VolumeClone, VolumeRestore, VolumeSnapshot};
pub use vm::{
    Apart, ApartBy, ApartStrength, Protection, RestartPolicy, StopManner, VmChange, VmCreate,
    VmImage, VmNetworkChange, VmProtect, VmResize, VmStop,
};
pub use volume::{
    ReportVolume, VolumeAttach, VolumeCreate, VolumeDelete, VolumeDetach, VolumeGrow, VolumePhase,
    VolumeProtect,
};

/// What of a body its types alone do not promise: numbers and lengths within the table of limits.
trait Checked {
    fn check(&self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// From the table of kinds: the enumeration, its texts, its reader, its writer and its check.
macro_rules! kinds {
    ($($variant:ident($body:ty) = $kind:literal,)*) => {
        /// The body of a payload, by kind.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Body {
            $(#[doc = concat!("`", $kind, "`")] $variant($body),)*
        }

        impl Body {
            /// The texts of all kinds.
            pub const KINDS: &[&str] = &[$($kind),*];

            /// The text that stands in a payload's `kind`.
            pub fn kind(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $kind,)*
                }
            }

            fn parse(kind: &str, json: &str) -> Result<Self, Refusal> {
                match kind {
                    $($kind => parse(json).map(Self::$variant),)*
                    _ => {
                        let detail = format!("no rule knows the kind {kind:?}");
                        Err(Refusal::new(RefusalCode::KindUnknown, detail))
                    }
                }
            }

            /// The JSON value of the body.
            pub fn to_json(&self) -> serde_json::Value {
                match self {
                    $(Self::$variant(body) => serde_json::to_value(body),)*
                }
                .expect("bodies have string keys only")
            }

            /// Checks every number and length against the table of limits.
            ///
            /// # Errors
            /// `limit_exceeded`, with the field's name and its range.
            pub fn check(&self) -> Result<(), Refusal> {
                match self {
                    $(Self::$variant(body) => body.check(),)*
                }
            }
        }
    };
}

kinds! {
    OperatorPropose(Box<OperatorPropose>) = "operator.propose",
    OperatorApprove(ProposalChange) = "operator.approve",
    OperatorWithdraw(ProposalChange) = "operator.withdraw",
    OperatorRotateKey(OperatorRotateKey) = "operator.rotate_key",
    HostJoin(Box<HostJoin>) = "host.join",
    HostDrain(HostChange) = "host.drain",
    HostResume(HostChange) = "host.resume",
    HostLeave(HostChange) = "host.leave",
    HostRotateLedgerKey(HostRotateLedgerKey) = "host.rotate_ledger_key",
    AccountGrant(AccountGrant) = "account.grant",
    AccountRevoke(AccountRevoke) = "account.revoke",
    AccountAddKey(AccountAddKey) = "account.add_key",
    AccountRemoveKey(AccountRemoveKey) = "account.remove_key",
    AccountRotateKey(AccountRotateKey) = "account.rotate_key",
    ImageRegister(ImageRegister) = "image.register",
    ImageRetire(ImageRetire) = "image.retire",
    VmCreate(Box<VmCreate>) = "vm.create",
    VmStart(VmChange) = "vm.start",
    VmStop(VmStop) = "vm.stop",
    VmPause(VmChange) = "vm.pause",
    VmResume(VmChange) = "vm.resume",
    VmReboot(VmChange) = "vm.reboot",
    VmResize(VmResize) = "vm.resize",
    VmProtect(VmProtect) = "vm.protect",
    VmNetwork(VmNetworkChange) = "vm.network",
    VmDelete(VmChange) = "vm.delete",
    VolumeCreate(VolumeCreate) = "volume.create",
    VolumeAttach(VolumeAttach) = "volume.attach",
    VolumeDetach(VolumeDetach) = "volume.detach",
    VolumeGrow(VolumeGrow) = "volume.grow",
    VolumeProtect(VolumeProtect) = "volume.protect",
    VolumeDelete(VolumeDelete) = "volume.delete",
    VolumeSnapshot(VolumeSnapshot) = "volume.snapshot",
    VolumeRestore(VolumeRestore) = "volume.restore",
    VolumeClone(VolumeClone) = "volume.clone",
    SnapshotDelete(SnapshotDelete) = "snapshot.delete",
    ReportVm(ReportVm) = "report.vm",
    ReportVolume(ReportVolume) = "report.volume",
    ReportSnapshot(ReportSnapshot) = "report.snapshot",
}

impl Body {
    /// Reads the JSON text of a body of `kind`.
    ///
    /// # Errors
    /// `kind_unknown`, `payload_malformed`, and `limit_exceeded` from [`Body::check`].
    pub fn read(kind: &str, json: &str) -> Result<Self, Refusal> {
        let body = Self::parse(kind, json)?;
        body.check()?;
        Ok(body)
    }

    /// The VM that a payload with this body and `digest` makes or names.
    pub fn vm(&self, digest: &PayloadDigest) -> Option<VmId> {
        match self {
            Self::VmCreate(_) => Some(VmId::of(digest)),
            Self::VmStart(change)
            | Self::VmPause(change)
            | Self::VmResume(change)
            | Self::VmReboot(change)
            | Self::VmDelete(change) => Some(change.vm),
            Self::VmStop(change) => Some(change.vm),
            Self::VmResize(change) => Some(change.vm),
            Self::VmProtect(change) => Some(change.vm),
            Self::VmNetwork(change) => Some(change.vm),
            Self::VolumeAttach(change) => Some(change.vm),
            Self::ReportVm(report) => Some(report.vm),
            _ => None,
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Refusal> {
    serde_json::from_str(json)
        .map_err(|error| Refusal::new(RefusalCode::PayloadMalformed, format!("body: {error}")))
}

fn require(holds: bool, rule: &str) -> Result<(), Refusal> {
    if holds { Ok(()) } else { Err(Refusal::new(RefusalCode::LimitExceeded, rule)) }
}
