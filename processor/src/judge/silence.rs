//! Which hosts have fallen silent, as far as the order itself shows.
//!
//! Owns how far each voter's ordered events lag behind the committed leader, and since when. A
//! function of the ordered commits alone, so every judge knows the same; the state root takes it in
//! with every commit that has content, for it must not change by itself (see `decisions.md`).
//! Rounds begin anew with each epoch, and so does this. A follower makes no events: he is never
//! silent here, and an offer that he does not answer lapses. Never looks at a clock. Called by the
//! judge for every commit and by placement.

use dagger_payload::id::{AuthorIndex, Epoch, LedgerTime, Round};
use dagger_payload::limits::{HOST_BEHIND_ROUNDS_MAX, HOST_SILENCE_MS_MAX};
use dagger_payload::release::OrderedCommit;
use dagger_payload::roster::EpochMembers;

#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
struct Activity {
    #[n(0)]
    author: AuthorIndex,
    #[n(1)]
    newest: Round,
    #[n(2)]
    behind_since: Option<LedgerTime>,
}

/// What the order shows of each voter.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct Silence {
    #[n(0)]
    epoch: Epoch,
    /// Of this epoch, by author.
    #[n(1)]
    voters: Vec<Activity>,
}

impl Silence {
    /// Nobody is behind when an epoch begins.
    pub(crate) fn new(members: &EpochMembers) -> Self {
        let quiet = |author| Activity { author, newest: Round(0), behind_since: None };
        let voters = members.committee.authors().map(quiet).collect();
        Self { epoch: members.epoch, voters }
    }

    /// Takes in a commit of the epoch of `members`.
    pub(crate) fn observe(&mut self, commit: &OrderedCommit, members: &EpochMembers) {
        if self.epoch != members.epoch {
            *self = Self::new(members);
        }
        for (author, round) in &commit.authors {
            if let Ok(at) = self.voters.binary_search_by_key(author, |voter| voter.author) {
                let voter = &mut self.voters[at];
                voter.newest = voter.newest.max(*round);
            }
        }
        for voter in &mut self.voters {
            let lag = commit.leader_round.0.saturating_sub(voter.newest.0);
            let behind = lag > HOST_BEHIND_ROUNDS_MAX;
            voter.behind_since = behind.then(|| voter.behind_since.unwrap_or(commit.ledger_time));
        }
    }

    /// The voters that have been behind for too long to be offered a VM.
    pub(crate) fn silent(&self, now: LedgerTime) -> impl Iterator<Item = AuthorIndex> {
        let too_long = move |since: LedgerTime| now.0.saturating_sub(since.0) > HOST_SILENCE_MS_MAX;
        let silent = self.voters.iter();
        let silent = silent.filter(move |voter| voter.behind_since.is_some_and(too_long));
        silent.map(|voter| voter.author)
    }
}
