//! What stands in the archive: releases, payloads, steps and deleted objects as records, and how
//! they are read again.
//!
//! Owns keys and values. Never decides what is written ([`super::addition`] does) nor what is
//! shown. Called by it, by [`super::look`] and by what is shown of the past.

use std::ops::ControlFlow;
use std::sync::Arc;

use dagger_payload::codec;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::{
    AccountId, CommitIndex, Generation, LedgerTime, PayloadDigest, Position, VmId, VolumeId,
};
use dagger_payload::kind::ReportPhase;
use dagger_payload::name::Name;
use dagger_payload::object::{Effect, Vm};
use dagger_payload::release::{CommitRelease, Release};
use dagger_payload::volume::Volume;

use super::archive::{ArchiveError, Direction, Earlier, Put, Reading, Table};

/// What stands beside the payloads of a commit.
type CommitRecord = (CommitEnd, LedgerTime, u64, Vec<Effect>);
type PayloadRecord = (CommitIndex, LedgerTime, Release);
type StepRecord =
    (CommitIndex, LedgerTime, Option<Position>, String, Option<Generation>, Option<ReportPhase>);

/// A judged payload, and what is to be known of its commit.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    /// The commit that ordered it.
    pub commit: CommitIndex,
    /// Its ledger time.
    pub ledger_time: LedgerTime,
    /// The payload.
    pub release: Release,
}

/// A step in a VM's history: a payload that named it, or what the passing of ledger time did to it.
#[derive(Debug, Clone)]
pub(super) struct VmStep {
    /// In which commit.
    pub(super) commit: CommitIndex,
    /// Its ledger time.
    pub(super) ledger_time: LedgerTime,
    /// Which payload; none for the passing of time.
    pub(super) position: Option<Position>,
    /// What happened, in one sentence.
    pub(super) summary: String,
    /// The VM's generation after it.
    pub(super) generation: Option<Generation>,
    /// For reports: what the host said.
    pub(super) phase: Option<ReportPhase>,
}

fn replace(table: Table, key: &[&[u8]], value: Vec<u8>) -> Put {
    Put { table, key: key.concat(), value, earlier: Earlier::Replaced }
}

/// A commit, without its payloads.
pub(super) fn commit_put(commit: &CommitRelease) -> Put {
    let count = u64::try_from(commit.releases.len()).expect("a count fits into 64 bits");
    let record = (&commit.end, commit.ledger_time, count, &commit.time_effects);
    replace(Table::Commits, &[&commit.end.index.0.to_be_bytes()], codec::encode(&record))
}

/// A payload of a commit.
pub(super) fn payload_put(commit: &CommitRelease, release: &Release) -> Put {
    let record = (commit.end.index, commit.ledger_time, release);
    replace(Table::Payloads, &[&release.position.0.to_be_bytes()], codec::encode(&record))
}

/// Where a digest leads to.
pub(super) fn digest_put(release: &Release, earlier: Earlier) -> Put {
    let value = release.position.0.to_be_bytes().to_vec();
    Put { table: Table::Digests, key: release.digest.as_bytes().to_vec(), value, earlier }
}

/// A step of a VM; `number` grows from step to step, whichever VM's it is.
pub(super) fn step_put(vm: &VmId, number: u64, step: &VmStep) -> Put {
    let VmStep { commit, ledger_time, position, summary, generation, phase } = step;
    let record = (commit, ledger_time, position, summary, generation, phase);
    replace(Table::Steps, &[vm.as_bytes(), &number.to_be_bytes()], codec::encode(&record))
}

/// That `commit` changed what an account uses.
pub(super) fn account_put(account: &AccountId, commit: CommitIndex) -> Put {
    replace(Table::Accounts, &[account.as_bytes(), &commit.0.to_be_bytes()], Vec::new())
}

fn name_key(name: &Name, created: Position, id: &[u8]) -> Vec<u8> {
    [name.as_str().as_bytes(), &[0], &created.0.to_be_bytes(), id].concat()
}

/// A deleted VM.
pub(super) fn gone_vm_puts(vm: &Vm) -> [Put; 2] {
    let key = name_key(&vm.name, vm.created.position, vm.id.as_bytes());
    let account = vm.account.as_bytes().to_vec();
    [
        replace(Table::GoneVms, &[vm.id.as_bytes()], codec::encode(vm)),
        replace(Table::GoneVmNames, &[&key], account),
    ]
}

/// A deleted volume.
pub(super) fn gone_volume_puts(volume: &Volume) -> [Put; 2] {
    let key = name_key(&volume.name, volume.created.position, volume.id.as_bytes());
    let account = volume.account.as_bytes().to_vec();
    [
        replace(Table::GoneVolumes, &[volume.id.as_bytes()], codec::encode(volume)),
        replace(Table::GoneVolumeNames, &[&key], account),
    ]
}

/// Who is meant among the deleted ones of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named<Id> {
    Nobody,
    One(Id),
    /// One in each of these accounts.
    Several(Vec<AccountId>),
}

fn damaged(what: &'static str) -> impl Fn(codec::CodecError) -> ArchiveError {
    move |_| ArchiveError::Damaged(what)
}

fn number(bytes: &[u8], what: &'static str) -> Result<u64, ArchiveError> {
    let last = bytes.last_chunk().ok_or(ArchiveError::Damaged(what))?;
    Ok(u64::from_be_bytes(*last))
}

fn read_placed(bytes: &[u8]) -> Result<Placed, ArchiveError> {
    let record: PayloadRecord = codec::decode(bytes).map_err(damaged("a payload"))?;
    let (commit, ledger_time, release) = record;
    Ok(Placed { commit, ledger_time, release })
}

impl Reading<'_> {
    /// The copy of a judged payload that counts.
    pub(super) fn payload(&self, digest: &PayloadDigest) -> Result<Option<Placed>, ArchiveError> {
        let read = |bytes: &[u8]| number(bytes, "a digest's position");
        let position = self.get(Table::Digests, digest.as_bytes(), read)?;
        match position {
            Some(position) => self.payload_at(Position(position)),
            None => Ok(None),
        }
    }

    pub(super) fn payload_at(&self, position: Position) -> Result<Option<Placed>, ArchiveError> {
        let placed = self.get(Table::Payloads, &position.0.to_be_bytes(), read_placed)?;
        Ok(placed.filter(|placed| placed.commit <= self.until))
    }

    /// Shows payloads from `from` on, with their sizes in bytes.
    pub(super) fn walk_payloads(
        &self,
        from: Position,
        direction: Direction,
        mut visit: impl FnMut(Placed, usize) -> ControlFlow<()>,
    ) -> Result<(), ArchiveError> {
        self.walk(Table::Payloads, &from.0.to_be_bytes(), direction, |_, bytes| {
            let placed = read_placed(bytes)?;
            match (placed.commit <= self.until, direction) {
                (true, _) => Ok(visit(placed, bytes.len())),
                (false, Direction::Backward) => Ok(ControlFlow::Continue(())),
                (false, Direction::Forward) => Ok(ControlFlow::Break(())),
            }
        })
    }

    /// At most `count_max` releases of the commits after `after`, oldest first; fewer when they
    /// have more than `bytes_max` bytes, but one at least if there is one.
    pub(super) fn releases_after(
        &self,
        after: CommitIndex,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Arc<CommitRelease>>, ArchiveError> {
        let mut bytes_left = bytes_max;
        let mut releases = Vec::new();
        let from = after.next().0.to_be_bytes();
        self.walk(Table::Commits, &from, Direction::Forward, |_, bytes| {
            let record: CommitRecord = codec::decode(bytes).map_err(damaged("a commit"))?;
            if record.0.index > self.until || releases.len() >= count_max {
                return Ok(ControlFlow::Break(()));
            }
            let limit = if releases.is_empty() { usize::MAX } else { bytes_left };
            let Some((release, size)) = self.whole(record, bytes.len(), limit)? else {
                return Ok(ControlFlow::Break(()));
            };
            releases.push(Arc::new(release));
            bytes_left = bytes_left.saturating_sub(size);
            Ok(if bytes_left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(releases)
    }

    /// A commit with its payloads and its size, if it has at most `bytes_max` bytes.
    fn whole(
        &self,
        (end, ledger_time, count, time_effects): CommitRecord,
        own_bytes: usize,
        bytes_max: usize,
    ) -> Result<Option<(CommitRelease, usize)>, ArchiveError> {
        let (mut releases, mut size) = (Vec::new(), own_bytes);
        let first = end.position.0.saturating_sub(count).saturating_add(1);
        if count > 0 {
            self.walk_payloads(Position(first), Direction::Forward, |placed, bytes| {
                if placed.commit != end.index || size > bytes_max {
                    return ControlFlow::Break(());
                }
                size = size.saturating_add(bytes);
                releases.push(placed.release);
                ControlFlow::Continue(())
            })?;
        }
        if size > bytes_max {
            return Ok(None);
        }
        if u64::try_from(releases.len()).ok() != Some(count) {
            return Err(ArchiveError::Damaged("a payload is missing"));
        }
        Ok(Some((CommitRelease { end, ledger_time, releases, time_effects }, size)))
    }

    /// The newest commit with content up to `upto`, as one that changed nothing that anybody uses.
    pub(super) fn commit_with_content(
        &self,
        upto: CommitIndex,
    ) -> Result<Option<CommitRelease>, ArchiveError> {
        let (from, mut found) = (upto.min(self.until).0.to_be_bytes(), None);
        self.walk(Table::Commits, &from, Direction::Backward, |_, bytes| {
            let record: CommitRecord = codec::decode(bytes).map_err(damaged("a commit"))?;
            if record.2 == 0 && record.3.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
            found = Some(record);
            Ok(ControlFlow::Break(()))
        })?;
        let whole = found.map(|record| self.whole(record, 0, usize::MAX)).transpose()?;
        Ok(whole.flatten().map(|(release, _)| release))
    }

    /// The next commits that changed what `account` uses, after `after`: at most `count_max`.
    pub(super) fn commits_of(
        &self,
        account: &AccountId,
        after: CommitIndex,
        count_max: usize,
    ) -> Result<Vec<CommitIndex>, ArchiveError> {
        let (prefix, mut commits) = (account.as_bytes(), Vec::new());
        let from = [&prefix[..], &after.next().0.to_be_bytes()].concat();
        self.walk(Table::Accounts, &from, Direction::Forward, |key, _| {
            let commit = CommitIndex(number(key, "an account's commit")?);
            if !key.starts_with(prefix) || commit > self.until || commits.len() >= count_max {
                return Ok(ControlFlow::Break(()));
            }
            commits.push(commit);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(commits)
    }

    /// A VM's steps before step `before` with their numbers, newest first, until `visit` breaks
    /// off.
    pub(super) fn walk_steps(
        &self,
        vm: &VmId,
        before: u64,
        mut visit: impl FnMut(u64, VmStep) -> Result<ControlFlow<()>, ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let prefix = vm.as_bytes();
        let Some(last) = before.checked_sub(1) else { return Ok(()) };
        let from = [&prefix[..], &last.to_be_bytes()].concat();
        self.walk(Table::Steps, &from, Direction::Backward, |key, bytes| {
            if !key.starts_with(prefix) {
                return Ok(ControlFlow::Break(()));
            }
            let record: StepRecord = codec::decode(bytes).map_err(damaged("a step"))?;
            let (commit, ledger_time, position, summary, generation, phase) = record;
            if commit > self.until {
                return Ok(ControlFlow::Continue(()));
            }
            let step = VmStep { commit, ledger_time, position, summary, generation, phase };
            visit(number(key, "a step's number")?, step)
        })
    }

    /// A deleted VM's last version.
    pub(super) fn gone_vm(&self, id: &VmId) -> Result<Option<Vm>, ArchiveError> {
        let read = |bytes: &[u8]| codec::decode(bytes).map_err(damaged("a deleted VM"));
        self.get(Table::GoneVms, id.as_bytes(), read)
    }

    /// A deleted volume's last version.
    pub(super) fn gone_volume(&self, id: &VolumeId) -> Result<Option<Volume>, ArchiveError> {
        let read = |bytes: &[u8]| codec::decode(bytes).map_err(damaged("a deleted volume"));
        self.get(Table::GoneVolumes, id.as_bytes(), read)
    }

    pub(super) fn gone_vm_named(
        &self,
        name: &Name,
        account: Option<AccountId>,
    ) -> Result<Named<VmId>, ArchiveError> {
        let named = self.gone_named(Table::GoneVmNames, name, account)?;
        Ok(named.map(VmId))
    }

    pub(super) fn gone_volume_named(
        &self,
        name: &Name,
        account: Option<AccountId>,
    ) -> Result<Named<VolumeId>, ArchiveError> {
        let named = self.gone_named(Table::GoneVolumeNames, name, account)?;
        Ok(named.map(VolumeId))
    }

    /// The one that was created last among the deleted ones that are called so.
    fn gone_named(
        &self,
        table: Table,
        name: &Name,
        account: Option<AccountId>,
    ) -> Result<Named<[u8; 16]>, ArchiveError> {
        let prefix = [name.as_str().as_bytes(), &[0]].concat();
        let from = [&prefix[..], &[0xff; 8 + 16]].concat();
        let (mut newest, mut accounts) = (None, std::collections::BTreeSet::new());
        self.walk(table, &from, Direction::Backward, |key, value| {
            if !key.starts_with(&prefix) {
                return Ok(ControlFlow::Break(()));
            }
            let owner = value.try_into().map(AccountId);
            let owner = owner.map_err(|_| ArchiveError::Damaged("a deleted object's account"))?;
            if account.is_some_and(|account| account != owner) {
                return Ok(ControlFlow::Continue(()));
            }
            accounts.insert(owner);
            newest = newest.or(key.last_chunk().copied());
            // With an account the newest one is meant, whatever else is called so.
            let is_known = account.is_some() && newest.is_some();
            Ok(if is_known { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(match (newest, accounts.len()) {
            (None, _) => Named::Nobody,
            (Some(id), 1) => Named::One(id),
            (Some(_), _) => Named::Several(accounts.into_iter().collect()),
        })
    }
}

impl<Id> Named<Id> {
    fn map<Other>(self, make: impl FnOnce(Id) -> Other) -> Named<Other> {
        match self {
            Self::Nobody => Named::Nobody,
            Self::One(id) => Named::One(make(id)),
            Self::Several(accounts) => Named::Several(accounts),
        }
    }
}
