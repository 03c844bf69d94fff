//! Remembering payloads: their leaves, and how many each author has.
//!
//! Owns that leaf, memory and count change together. What may be remembered is in `memory`. Called
//! by the judge and where a snapshot is read.

use dagger_payload::codec::encode_over;
use dagger_payload::id::{LedgerTime, OperatorId, PayloadDigest};
use dagger_payload::limits::FORGOTTEN_PER_COMMIT_MAX;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::state_tree::{Author, Hash, Judgement, Subject};

use super::State;
use crate::judge::memory::{Crowd, Remembered, Share};

impl State {
    pub(crate) fn remembers(&self, digest: &PayloadDigest) -> bool {
        self.memory.get(digest).is_some()
    }

    /// Whether one more payload of `author`, accepted or refused, may be remembered, signed by a
    /// key that may fill so much of his room.
    pub(crate) fn has_room(
        &self,
        author: &Author,
        refused: Option<RefusalCode>,
        share: Share,
    ) -> bool {
        let own = match author {
            Author::Account(account) => self.estate(account).map(|estate| &estate.remembered),
            Author::Operator(_) | Author::Host(_) => self.memory.of_members.get(author),
        };
        let together = || self.memory.of_crowds.get(&self.crowd(author)?);
        own.is_none_or(|own| own.has_room(refused, share, together))
    }

    /// Whether something has expired by `now` and is not forgotten yet.
    pub(crate) fn has_expired(&self, now: LedgerTime) -> bool {
        self.memory.has_expired(now)
    }

    /// The operator who is an author, or answers for it.
    pub(crate) fn answering(&self, author: &Author) -> Option<OperatorId> {
        match (author, self.crowd(author)) {
            (Author::Operator(operator), _) => Some(*operator),
            (_, Some(Crowd::Accounts(operator) | Crowd::Hosts(operator))) => Some(operator),
            (Author::Account(_) | Author::Host(_), None) => None,
        }
    }

    /// Who answers for an author that is no operator; never another one later.
    fn crowd(&self, author: &Author) -> Option<Crowd> {
        match author {
            Author::Account(id) => Some(Crowd::Accounts(self.accounts.get(id)?.opened_by)),
            Author::Host(id) => Some(Crowd::Hosts(self.hosts.get(id)?.operator)),
            Author::Operator(_) => None,
        }
    }

    /// Remembers what became of a payload until it has expired by itself.
    pub(crate) fn remember(&mut self, digest: PayloadDigest, place: &Hash, judgement: Judgement) {
        encode_over(&judgement, &mut self.scratch);
        self.tree.set_at(*place, &self.scratch);
        self.keep(digest, judgement);
    }

    /// The same, where the leaf is the caller's business.
    pub(super) fn keep(&mut self, digest: PayloadDigest, judgement: Judgement) {
        self.for_each_count(&judgement, |count| *count += 1);
        self.memory.insert(digest, judgement);
    }

    /// Forgets expired payloads, what expired first before the rest: so many with one commit, since
    /// whoever lets all of his expire at once must not make it last. Called only for commits that
    /// change the root anyway.
    pub(crate) fn forget_expired(&mut self) {
        for _ in 0..FORGOTTEN_PER_COMMIT_MAX {
            let Some((digest, judgement)) = self.memory.forget_next(self.time) else { break };
            self.for_each_count(&judgement, |count| *count = count.saturating_sub(1));
            self.tree.remove(&Subject::Payload(digest));
        }
    }

    /// His own, and that of those for whom the same operator answers.
    fn for_each_count(&mut self, judgement: &Judgement, change: impl Fn(&mut usize)) {
        change(self.remembered_mut(judgement.author).count_mut(judgement));
        if let Some(crowd) = self.crowd(&judgement.author) {
            change(self.memory.of_crowds.entry(crowd).or_default().count_mut(judgement));
        }
    }

    fn remembered_mut(&mut self, author: Author) -> &mut Remembered {
        match author {
            Author::Account(account) => &mut self.accounts.estate_mut(account).remembered,
            Author::Operator(_) | Author::Host(_) => {
                self.memory.of_members.entry(author).or_default()
            }
        }
    }
}
