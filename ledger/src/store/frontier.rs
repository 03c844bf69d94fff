//! Records of a host that begins from another one's snapshot, and what it reads of them to give it
//! on.
//!
//! Owns the mark at which the history that was judged here begins, and how a frontier is read and
//! written. Never decides whether one is true. Called by `transfer` and by delivery.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use dagger_ledger_core::Frontier;
use dagger_payload::handover::Handover;
use dagger_payload::id::{AuthorIndex, CommitIndex, Round};
use dagger_payload::payload::SignedPayload;
use dagger_payload::snapshot::SnapshotOffer;

use super::pool::Pool;
use super::pruning::{Pruned, pruned_change};
use super::records::{
    EventKey, OWN_LAST_KEY, Records, handover_change, highest_key, index_key, judged_change,
    open_encoded, put_encoded,
};
use super::snapshots::{Kept, Source, whole_changes};
use super::{Change, Direction, StoreError, Table};
use crate::driver::start::{FIRST_EPOCH, recent_commits};

const BEGAN_KEY: &[u8] = b"began";

/// Keeps that nothing before this commit was judged here.
fn began_change(commit: CommitIndex) -> Change {
    put_encoded(Table::Meta, BEGAN_KEY.to_vec(), &commit)
}

impl Records {
    /// The commit with which the judged history begins here; 0 for the founding.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn began(&self) -> Result<CommitIndex, StoreError> {
        Ok(self.get(Table::Meta, BEGAN_KEY)?.unwrap_or(CommitIndex(0)))
    }

    /// The certificate with which the epoch of a commit began; none in the first epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn handover_before(&self, commit: CommitIndex) -> Result<Option<Handover>, StoreError> {
        let mut from = Vec::new();
        loop {
            let page = self.store.page(Table::Handovers, &from, Direction::Backward, 2)?;
            let Some((key, value)) = page.first() else {
                return Ok(None);
            };
            let handover: Handover = open_encoded(Table::Handovers, key, value.clone())?;
            if handover.founding.end.index < commit {
                return Ok(Some(handover));
            }
            let Some((before, _)) = page.get(1) else {
                return Ok(None);
            };
            from.clone_from(before);
        }
    }

    /// How ordering goes on after a commit; none when it is not here, or not enough before it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn frontier(&self, commit: CommitIndex) -> Result<Option<Frontier>, StoreError> {
        let Some(last) = self.commit(commit)? else {
            return Ok(None);
        };
        let mut frontier = Frontier { handover: self.handover_before(commit)?, commits: vec![] };
        let (began, lowest) = (frontier.began(), last.collection_round);
        frontier.commits.push(last);
        let mut before = commit.0 - 1;
        while before > began.0 {
            match self.commit(CommitIndex(before))? {
                Some(record) if record.leader.round < lowest => break,
                Some(record) => frontier.commits.push(record),
                // This history began from a snapshot, and what lies before its frontier is before
                // this one, too: collection rounds rise.
                None if commit >= self.began()? => break,
                None => return Ok(None),
            }
            before -= 1;
        }
        frontier.commits.reverse();
        Ok(Some(frontier))
    }

    /// Payloads of events of `me` that `frontier` leaves behind, as far as is known: nobody may
    /// order those events any more. What came to be ordered meanwhile is among them; the judge
    /// knows, and refuses the second copy.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn left_behind(
        &self,
        me: AuthorIndex,
        frontier: &Frontier,
    ) -> Result<Vec<SignedPayload>, StoreError> {
        let handover = self.last_handover()?;
        let epoch = handover.as_ref().map_or(FIRST_EPOCH, |handover| handover.epoch);
        let began = handover.map_or(CommitIndex(0), |handover| handover.founding.end.index);
        let commits = recent_commits(self, began)?;
        // What lies at or below this round was ordered, or came back when it got there.
        let settled = commits.last().map(|last| last.collection_round).unwrap_or_default();
        let ordered = commits.iter().chain(&frontier.commits).flat_map(|commit| &commit.events);
        let ordered: BTreeSet<_> = ordered.map(|event| event.digest).collect();
        let last = frontier.last().map(|last| last.collection_round).unwrap_or_default();
        let through = match frontier.epoch(FIRST_EPOCH).cmp(&epoch) {
            Ordering::Greater => Round(u64::MAX),
            Ordering::Equal => last,
            Ordering::Less => Round(0),
        };
        let mut left = Vec::new();
        let from = Some(EventKey::first_of(epoch, settled.next()));
        let mut next = from.filter(|from| from.round <= through);
        while let Some(from) = next {
            let (page, following) = self.events(from)?;
            let own = page.into_iter().filter(|event| {
                let behind = event.header.author == me && event.header.round <= through;
                behind && !ordered.contains(&event.digest)
            });
            left.extend(own.flat_map(|event| event.payloads.clone()));
            next = following.filter(|following| following.round <= through);
        }
        Ok(left)
    }

    /// The one write with which the own history of `me` begins with the snapshot of `offer`, whose
    /// commit is the last one of `frontier`: after it a restart finds the same. What it leaves
    /// behind is back in the pool with it: after a restart the core would not know of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn beginning_changes(
        &self,
        offer: &SnapshotOffer,
        frontier: &Frontier,
        (me, pool): (AuthorIndex, &Pool),
    ) -> Result<Vec<Change>, StoreError> {
        let (head, end) = (&offer.head, &offer.head.end);
        let floor = frontier.last().map(|last| last.floor).unwrap_or_default();
        let lacking = Pruned { epoch: frontier.epoch(FIRST_EPOCH), round: floor };
        let left = self.left_behind(me, frontier)?;
        let mut changes = self.frontier_changes(frontier)?;
        changes.extend(left.iter().map(|payload| pool.entry(&payload.digest(), payload)));
        let kept = Kept { head: head.clone(), source: Source::Fetched };
        changes.extend(whole_changes(&kept, &offer.evidence));
        changes.extend([
            judged_change(end),
            began_change(end.index),
            pruned_change(&lacking.max(self.pruned()?)),
        ]);
        Ok(changes)
    }

    /// What a host writes that goes on from `frontier`. A later epoch than the one that was known
    /// begins without events.
    fn frontier_changes(&self, frontier: &Frontier) -> Result<Vec<Change>, StoreError> {
        let commits = frontier.commits.iter();
        let mut changes: Vec<_> = commits
            .map(|commit| put_encoded(Table::Commits, index_key(commit.index), commit))
            .collect();
        let known = self.last_handover()?.map(|known| known.epoch);
        if let Some(handover) = frontier.handover.as_ref().filter(|new| Some(new.epoch) > known) {
            changes.push(handover_change(handover));
            changes.push(Change::Delete { table: Table::Meta, key: OWN_LAST_KEY.to_vec() });
            let left = self.epoch()?;
            for highest in self.highest()? {
                let key = highest_key(left, highest.author);
                changes.push(Change::Delete { table: Table::Highest, key });
            }
        }
        Ok(changes)
    }
}
