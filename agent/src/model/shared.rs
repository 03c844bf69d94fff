//! The model behind a lock, beside the archive of what it does not keep, with a signal for those
//! who wait.
//!
//! One writer (the release stream), many readers. Readers hold the lock for one look only, never
//! across an `await` and never while a disk is read: what is past they read through
//! [`SharedModel::look_back`], on threads that may wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use dagger_payload::changed_vm::{UnknownVm, WholeRelease};
use dagger_payload::id::{CommitIndex, PayloadDigest, VmId};
use dagger_payload::object::{Effect, Vm};
use dagger_payload::release::{CommitRelease, Verdict};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::Model;
use super::addition::ReadCommit;
use super::archive::{Archive, ArchiveError};
use super::look::{LookBack, LookExtent, LookProblem, Walker};
use super::views::{NameProblem, VmQuery};
use super::volumes::VolumeQuery;
use crate::limits::{
    ARCHIVE_LOOK_WAIT_MAX, ARCHIVE_LOOKS_TOGETHER_MAX, ARCHIVE_OPERATOR_WALKS_TOGETHER_MAX,
    ARCHIVE_WALKS_TOGETHER_MAX, GONE_VMS_TOGETHER_MAX, RELEASES_TOGETHER_BYTES_MAX,
};
use crate::turns::AccountTurns;
use crate::verify::reader::Progress;

/// The model and what of its past is on disk: they are begun anew together.
struct State {
    model: Model,
    /// None while there was no room to begin it; then nothing is folded either.
    archive: Option<Arc<Archive>>,
}

/// The model and where reading stands; cheap to clone.
#[derive(Clone)]
pub struct SharedModel {
    state: Arc<RwLock<State>>,
    progress: Arc<watch::Sender<Progress>>,
    looks: Arc<Semaphore>,
    walks: Arc<Semaphore>,
    operator_walks: Arc<Semaphore>,
    walkers: Arc<AccountTurns>,
    /// Why the archive cannot be read, once that is so.
    broken: Arc<watch::Sender<Option<String>>>,
}

impl SharedModel {
    /// Shares `model`, whose past goes into `archive`; where that is none yet,
    /// [`SharedModel::begin_anew`] brings one before anything is taken in.
    pub fn new(model: Model, archive: Option<Arc<Archive>>, progress: Progress) -> Self {
        Self {
            state: Arc::new(RwLock::new(State { model, archive })),
            progress: Arc::new(watch::Sender::new(progress)),
            looks: Arc::new(Semaphore::new(ARCHIVE_LOOKS_TOGETHER_MAX)),
            walks: Arc::new(Semaphore::new(ARCHIVE_WALKS_TOGETHER_MAX)),
            operator_walks: Arc::new(Semaphore::new(ARCHIVE_OPERATOR_WALKS_TOGETHER_MAX)),
            walkers: Arc::new(AccountTurns::new(1)),
            broken: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Looks at the model.
    pub fn read<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner).model)
    }

    /// Takes in the next releases; the caller has verified them, keeps the order, and is the only
    /// one who does. They are written together before any is shown, and nobody waits for the disk
    /// but the caller.
    ///
    /// # Errors
    /// [`ArchiveError`]: nothing has changed; after `Full` it can be tried again. [`UnknownVm`]:
    /// the history is broken, and nothing has changed.
    pub fn take_in(
        &self,
        commits: &[Arc<CommitRelease>],
    ) -> Result<Result<(), UnknownVm>, ArchiveError> {
        let Some(last) = commits.last() else { return Ok(Ok(())) };
        let archive = self.archive().ok_or(ArchiveError::Full("it was not begun yet"))?;
        let read: Vec<_> = commits.iter().map(|commit| ReadCommit::of(commit)).collect();
        let named: BTreeSet<_> = read.iter().flat_map(ReadCommit::named_vms).collect();
        let is_absent = |model: &Model, vm: &VmId| model.vm(vm).is_none();
        let absent: Vec<_> =
            self.read(|model| named.into_iter().filter(|vm| is_absent(model, vm)).collect());
        let gone = archive.read(last.end.index, |reading| {
            let mut gone = BTreeMap::new();
            for id in absent {
                gone.extend(reading.gone_vm(&id)?.map(|vm| (id, vm)));
            }
            Ok(gone)
        })?;
        let additions = match self.read(|model| model.additions(&read, &gone)) {
            Ok(additions) => additions,
            Err(unknown) => return Ok(Err(unknown)),
        };
        archive.write(additions.iter().flat_map(|addition| &addition.puts))?;
        for (commit, addition) in commits.iter().zip(&additions) {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.model.fold(Arc::clone(commit), addition);
        }
        Ok(Ok(()))
    }

    /// The history is told from its beginning again; [`SharedModel::publish`] tells those who wait.
    pub fn begin_anew(&self, model: Model, archive: Arc<Archive>) {
        let fresh = State { model, archive: Some(archive) };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *state, fresh);
        drop(state);
        // Its files go, unless somebody still looks at them.
        drop(old);
    }

    fn archive(&self) -> Option<Arc<Archive>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).archive.clone()
    }

    /// Whether there is an archive: without one nothing can be taken in.
    pub fn has_archive(&self) -> bool {
        self.archive().is_some()
    }

    /// Looks at the past, on a thread of its own; only so many do at a time.
    ///
    /// # Errors
    /// [`LookProblem`].
    pub async fn look_back<T: Send + 'static>(
        &self,
        extent: LookExtent,
        look: impl FnOnce(&LookBack) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<T, LookProblem> {
        let turns = tokio::time::timeout(ARCHIVE_LOOK_WAIT_MAX, self.turns(extent));
        let Ok(Ok(turns)) = turns.await else { return Err(LookProblem::Busy) };
        let given_up = CancellationToken::new();
        // When nobody waits for this any more, the thread is told.
        let _guard = given_up.clone().drop_guard();
        let look_back = {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            let Some(archive) = state.archive.clone() else { return Err(LookProblem::Unbegun) };
            LookBack::new(self.clone(), archive, state.model.judged(), given_up)
        };
        let work = move || {
            let _turns = turns;
            look(&look_back)
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|panic| self.breaks(panic.to_string()))?.map_err(|error| self.judge(&error))
    }

    /// Waits for a turn; an account first for its own, so that it waits in one place only.
    async fn turns(&self, extent: LookExtent) -> Result<Vec<OwnedSemaphorePermit>, AcquireError> {
        let turns = match extent {
            LookExtent::Glance => vec![Arc::clone(&self.looks)],
            LookExtent::Walk(Walker::Operator) => vec![Arc::clone(&self.operator_walks)],
            LookExtent::Walk(Walker::Account(id)) => {
                vec![self.walkers.of(id), Arc::clone(&self.walks)]
            }
        };
        let mut taken = Vec::new();
        for turn in turns {
            taken.push(turn.acquire_owned().await?);
        }
        Ok(taken)
    }

    fn judge(&self, error: &ArchiveError) -> LookProblem {
        if matches!(error, ArchiveError::GivenUp) {
            return LookProblem::Busy;
        }
        let why = std::error::Error::source(error)
            .map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
        self.breaks(why)
    }

    fn breaks(&self, why: String) -> LookProblem {
        error!(%why, "the archive of the history cannot be read");
        self.broken.send_replace(Some(why.clone()));
        LookProblem::Broken(why)
    }

    /// Waits until the archive cannot be read.
    pub async fn until_broken(&self) -> String {
        let mut broken = self.broken.subscribe();
        // The sender lives as long as this does.
        let why = broken.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        why.unwrap_or_default()
    }

    /// At most `count_max` releases of the commits after `after` as they came, oldest first; fewer,
    /// but one at least, when they are large.
    ///
    /// # Errors
    /// [`LookProblem`].
    pub async fn releases_after(
        &self,
        after: CommitIndex,
        count_max: usize,
    ) -> Result<Vec<Arc<CommitRelease>>, LookProblem> {
        if let Some(newest) = self.read(|model| model.tail.after(after, count_max)) {
            return Ok(newest);
        }
        self.look_back(LookExtent::Glance, move |back| {
            back.read(|past| past.releases_after(after, count_max, RELEASES_TOGETHER_BYTES_MAX))
        })
        .await
    }

    /// The same as whole releases, fewer when they change many VMs that are deleted by now; none
    /// when the history was begun anew meanwhile.
    ///
    /// # Errors
    /// [`LookProblem`].
    pub async fn whole_after(
        &self,
        after: CommitIndex,
        count_max: usize,
    ) -> Result<Vec<WholeRelease>, LookProblem> {
        let archive = self.archive();
        let releases = self.releases_after(after, count_max).await?;
        let (mut vms, mut gone) = (BTreeMap::new(), BTreeSet::new());
        let releases = self.read(|model| known_vms(model, releases, &mut vms, &mut gone));
        if !gone.is_empty() {
            vms.extend(self.gone_vms(gone).await?);
        }
        let whole = |release| WholeRelease::new(release, |id| vms.get(id).map(Arc::clone));
        match releases.into_iter().map(whole).collect() {
            Ok(whole) => Ok(whole),
            // What was taken in is known for as long as this reading of the history lasts.
            Err(_) if !self.still_reads(archive.as_ref()) => Ok(Vec::new()),
            Err(_) => Err(self.judge(&ArchiveError::Damaged("a VM that was changed is missing"))),
        }
    }

    fn still_reads(&self, archive: Option<&Arc<Archive>>) -> bool {
        match (archive, self.archive()) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, &now),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// The last versions of those of `ids` that are deleted.
    async fn gone_vms(&self, ids: BTreeSet<VmId>) -> Result<BTreeMap<VmId, Arc<Vm>>, LookProblem> {
        self.look_back(LookExtent::Glance, move |back| {
            let ids: Vec<VmId> = ids.into_iter().collect();
            let gone = back.gone_vms(&ids)?.into_iter();
            Ok(gone.map(|vm| (vm.id, Arc::new(vm))).collect())
        })
        .await
    }

    /// The verdicts on those of `digests` that are judged.
    ///
    /// # Errors
    /// [`LookProblem`].
    pub async fn verdicts(
        &self,
        digests: Vec<PayloadDigest>,
    ) -> Result<BTreeMap<PayloadDigest, Verdict>, LookProblem> {
        if digests.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.look_back(LookExtent::Glance, move |back| {
            back.read(|past| {
                let mut verdicts = BTreeMap::new();
                for digest in digests {
                    let placed = past.payload(&digest)?;
                    verdicts.extend(placed.map(|placed| (digest, placed.release.verdict)));
                }
                Ok(verdicts)
            })
        })
        .await
    }

    /// The VM that is meant, also a deleted one. Among those of one name and account the one that
    /// still exists comes first, then the one that was created last.
    ///
    /// # Errors
    /// [`LookProblem`].
    pub async fn find_vm(&self, query: &VmQuery) -> Result<Result<Vm, NameProblem>, LookProblem> {
        match self.read(|model| model.find_vm(query).cloned()) {
            Err(NameProblem::Unknown) => {
                let query = query.clone();
                self.look_back(LookExtent::Glance, move |back| back.gone_vm(&query)).await
            }
            found => Ok(found),
        }
    }

    /// The volume that is meant, also a deleted one.
    ///
    /// # Errors
    /// [`LookProblem`].
    pub async fn find_volume(
        &self,
        query: &VolumeQuery,
    ) -> Result<Result<dagger_payload::volume::Volume, NameProblem>, LookProblem> {
        match self.read(|model| model.find_volume(query).cloned()) {
            Err(NameProblem::Unknown) => {
                let query = query.clone();
                self.look_back(LookExtent::Glance, move |back| back.gone_volume(&query)).await
            }
            found => Ok(found),
        }
    }

    /// Says where reading stands, and wakes those who wait if that is news.
    pub fn publish(&self, progress: Progress) {
        self.progress.send_if_modified(|current| {
            let news = *current != progress;
            *current = progress;
            news
        });
    }

    /// Where reading stands.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// To wait for news.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// Those of the first of `releases` of which the VMs do not take too much memory, with the VMs that
/// they change: those that exist, and the ids of others.
fn known_vms(
    model: &Model,
    releases: Vec<Arc<CommitRelease>>,
    vms: &mut BTreeMap<VmId, Arc<Vm>>,
    gone: &mut BTreeSet<VmId>,
) -> Vec<Arc<CommitRelease>> {
    let fits = |release: &Arc<CommitRelease>| {
        let is_room_left = gone.len() < GONE_VMS_TOGETHER_MAX;
        if is_room_left {
            for effect in release.effects() {
                let Effect::VmChanged(change) = effect else { continue };
                match model.vms.get(&change.id) {
                    Some(vm) => {
                        vms.insert(change.id, Arc::clone(vm));
                    }
                    None => {
                        gone.insert(change.id);
                    }
                }
            }
        }
        is_room_left
    };
    releases.into_iter().take_while(fits).collect()
}
