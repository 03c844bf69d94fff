//! A look at the past: the archive as it is when the look begins, and the model's names as they are
//! now.
//!
//! Owns that no look holds the model's lock while it reads the disk, and that it ends when nobody
//! waits for it any more. Made by [`SharedModel::look_back`]; what is shown stands in `log`,
//! `history` and `usage`.

use std::sync::Arc;

use dagger_api::PayloadView;
use dagger_payload::id::{AccountId, CommitIndex, PayloadDigest, VmId, VolumeId};
use dagger_payload::object::Vm;
use dagger_payload::sshsig::{self, Namespace};
use dagger_payload::volume::Volume;
use tokio_util::sync::CancellationToken;

use super::addition::vm_named_by;
use super::archive::{Archive, ArchiveError, Reading};
use super::past::Named;
use super::views::{NameProblem, VmQuery};
use super::volumes::VolumeQuery;
use super::{Model, SharedModel, payload_view};

/// How long a look takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookExtent {
    /// A few records.
    Glance,
    /// Perhaps very many.
    Walk(Walker),
}

/// For whom many records are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walker {
    /// For an operator, whose turns no account takes.
    Operator,
    /// For one account, which waits for its own walk before.
    Account(AccountId),
}

/// Why nothing of the past is told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookProblem {
    /// *Unavailable*: so many read that there was no turn in time.
    #[error("too many read the history at the same time")]
    Busy,
    /// *Unavailable*: there is no room for what is read of it.
    #[error(
        "the history is not read yet: the disk of the agent's state directory has no room left"
    )]
    Unbegun,
    /// *Broken*: the daemon ends, and builds the archive anew.
    #[error("the archive of the history cannot be read: {0}")]
    Broken(String),
}

/// One look.
pub struct LookBack {
    model: SharedModel,
    archive: Arc<Archive>,
    until: CommitIndex,
    given_up: CancellationToken,
}

impl LookBack {
    pub(super) fn new(
        model: SharedModel,
        archive: Arc<Archive>,
        until: CommitIndex,
        given_up: CancellationToken,
    ) -> Self {
        Self { model, archive, until, given_up }
    }

    /// The last commit that is shown.
    pub fn until(&self) -> CommitIndex {
        self.until
    }

    /// Looks at the model.
    pub(super) fn model<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        self.model.read(look)
    }

    /// Reads the archive: not for long, since whoever reads keeps old pages alive.
    pub(super) fn read<T>(
        &self,
        look: impl FnOnce(&Reading<'_>) -> Result<T, ArchiveError>,
    ) -> Result<T, ArchiveError> {
        if self.given_up.is_cancelled() {
            return Err(ArchiveError::GivenUp);
        }
        self.archive.read(self.until, look)
    }

    /// Where the judged payload `digest` stands, when everything up to `attested` is attested.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn payload_view(
        &self,
        digest: &PayloadDigest,
        attested: CommitIndex,
    ) -> Result<Option<PayloadView>, ArchiveError> {
        let placed = self.read(|past| past.payload(digest))?;
        Ok(placed.map(|placed| {
            let document = placed.release.ordered.payload.read().ok();
            let vm = document.and_then(|document| vm_named_by(&document.body, &placed.release));
            payload_view(placed.commit, &placed.release, vm, attested)
        }))
    }

    /// A judged payload's exact text and its armoured signature.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn signed_document(
        &self,
        digest: &PayloadDigest,
    ) -> Result<Option<(String, String)>, ArchiveError> {
        let placed = self.read(|past| past.payload(digest))?;
        Ok(placed.and_then(|placed| {
            let payload = &placed.release.ordered.payload;
            let signer = payload.read().ok()?.signer;
            let text = String::from_utf8(payload.bytes.to_vec()).ok()?;
            Some((text, sshsig::to_armor(&signer, Namespace::Payload, &payload.signature)))
        }))
    }

    /// The last versions of those of `vms` that are deleted.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn gone_vms(&self, vms: &[VmId]) -> Result<Vec<Vm>, ArchiveError> {
        let each = |vm| self.read(|past| past.gone_vm(vm)).transpose();
        vms.iter().filter_map(each).collect()
    }

    /// The last versions of those of `volumes` that are deleted.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn gone_volumes(&self, volumes: &[VolumeId]) -> Result<Vec<Volume>, ArchiveError> {
        let each = |volume| self.read(|past| past.gone_volume(volume)).transpose();
        volumes.iter().filter_map(each).collect()
    }

    /// The deleted VM that is meant.
    pub(super) fn gone_vm(&self, query: &VmQuery) -> Result<Result<Vm, NameProblem>, ArchiveError> {
        self.read(|past| {
            if let Ok(id) = query.text.parse::<VmId>()
                && let Some(vm) = past.gone_vm(&id)?
                && query.account.is_none_or(|account| vm.account == account)
            {
                return Ok(Ok(vm));
            }
            let Ok(name) = query.text.parse() else { return Ok(Err(NameProblem::Unknown)) };
            Ok(match past.gone_vm_named(&name, query.account)? {
                Named::Nobody => Err(NameProblem::Unknown),
                Named::One(id) => past.gone_vm(&id)?.ok_or(NameProblem::Unknown),
                Named::Several(accounts) => Err(NameProblem::Ambiguous(accounts)),
            })
        })
    }

    /// The deleted volume that is meant.
    pub(super) fn gone_volume(
        &self,
        query: &VolumeQuery,
    ) -> Result<Result<Volume, NameProblem>, ArchiveError> {
        self.read(|past| {
            if let Ok(id) = query.text.parse::<VolumeId>()
                && let Some(volume) = past.gone_volume(&id)?
                && query.account.is_none_or(|account| volume.account == account)
            {
                return Ok(Ok(volume));
            }
            let Ok(name) = query.text.parse() else { return Ok(Err(NameProblem::Unknown)) };
            Ok(match past.gone_volume_named(&name, query.account)? {
                Named::Nobody => Err(NameProblem::Unknown),
                Named::One(id) => past.gone_volume(&id)?.ok_or(NameProblem::Unknown),
                Named::Several(accounts) => Err(NameProblem::Ambiguous(accounts)),
            })
        })
    }
}
