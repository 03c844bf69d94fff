//! Volumes as the API shows them.
//!
//! Owns look-up by name and the words of a volume's trouble. Never decides. Called by the API.

use dagger_api::{SnapshotView, VolumeView};
use dagger_payload::id::{AccountId, VolumeId};
use dagger_payload::volume::{Snapshot, SnapshotState, Volume, VolumeDisk};

use super::{Model, NameProblem};

/// Which volume is meant: an id, or a name that may exist in several accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeQuery {
    /// 32 hex digits or a name.
    pub text: String,
    /// Only volumes of this account.
    pub account: Option<AccountId>,
}

impl Model {
    /// The volume that is meant, of those that exist; for others see
    /// [`super::SharedModel::find_volume`].
    ///
    /// # Errors
    /// [`NameProblem`].
    pub fn find_volume(&self, query: &VolumeQuery) -> Result<&Volume, NameProblem> {
        let of_account =
            |volume: &&Volume| query.account.is_none_or(|account| volume.account == account);
        if let Ok(id) = query.text.parse::<VolumeId>()
            && let Some(volume) = self.volumes.get(&id).filter(of_account)
        {
            return Ok(volume);
        }
        let is_named = |volume: &&Volume| volume.name.as_str() == query.text;
        let named: Vec<&Volume> =
            self.volumes.values().filter(is_named).filter(of_account).collect();
        let mut accounts: Vec<AccountId> = named.iter().map(|volume| volume.account).collect();
        accounts.sort_unstable();
        accounts.dedup();
        if accounts.len() > 1 {
            return Err(NameProblem::Ambiguous(accounts));
        }
        let newest = named.into_iter().max_by_key(|volume| volume.created.position);
        newest.ok_or(NameProblem::Unknown)
    }

    /// What the API shows of a volume.
    pub fn volume_view(&self, volume: &Volume) -> VolumeView {
        let reported =
            volume.reported.as_ref().filter(|report| report.generation == volume.generation);
        let user = volume.used_by.vm().and_then(|vm| self.vm(&vm));
        let due = volume.due_snapshot().and_then(|due| due.reported.as_ref());
        let lost = (volume.disk == VolumeDisk::Lost)
            .then(|| "lost: its host left the cluster with its operator; it can be deleted".into());
        let reason = lost.or_else(|| reported.and_then(|report| report.reason.clone()));
        VolumeView {
            state: volume.state(),
            reason: reason.or_else(|| due.and_then(|report| report.reason.clone())),
            host_name: self.host_name(&volume.host).cloned(),
            vm_name: user.map(|vm| vm.name.clone()),
            snapshots: volume.snapshots.iter().map(snapshot_view).collect(),
            volume: volume.clone(),
        }
    }

    /// The volumes that still exist, all or those of one account.
    pub fn volume_views(&self, account: Option<AccountId>) -> Vec<VolumeView> {
        let views =
            self.volumes().filter(|volume| account.is_none_or(|account| volume.account == account));
        views.map(|volume| self.volume_view(volume)).collect()
    }
}

fn snapshot_view(snapshot: &Snapshot) -> SnapshotView {
    let state = snapshot.state();
    let reported = snapshot.reported.as_ref().filter(|_| state == SnapshotState::Degraded);
    SnapshotView {
        snapshot: snapshot.id,
        name: snapshot.name.clone(),
        state,
        reason: reported.and_then(|report| report.reason.clone()),
    }
}
