//! A small deterministic judge: its state root chains the digests of judged payloads, the deadlines
//! that passed and the changes of members.
//!
//! Owns that state, and with it where an epoch ends and who votes in the next one. Never knows the
//! graph. Called by hosts. It stands in for the processor where only agreement on order is tested;
//! the real judge has its own tests.

use std::collections::BTreeSet;

use dagger_payload::committee::Committee;
use dagger_payload::event::CommitEnd;
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{AuthorIndex, CommitIndex, LedgerTime, PayloadDigest, StateRoot};
use dagger_payload::release::OrderedCommit;

/// How a payload that starts a deadline begins.
pub(crate) const DEADLINE_PREFIX: &[u8] = b"deadline";
/// How far ahead that deadline lies, in ledger milliseconds.
pub(crate) const DEADLINE_AHEAD_MS: u64 = 1_500;
/// How a payload that changes the members begins; its number and their set of bits follow.
pub(crate) const MEMBERS_PREFIX: &[u8] = b"members";
/// As far as commits may be ahead of the judge, and so from a change to the end of its epoch.
pub(crate) const HANDOVER_DISTANCE_COMMITS: u64 = 10;

/// What a judge says of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// The commit's end.
    pub(crate) end: CommitEnd,
    /// When something will happen by itself.
    pub(crate) next_deadline: Option<LedgerTime>,
    /// Where the epoch ends, once that is decided.
    pub(crate) epoch_end: Option<EpochEnd>,
}

/// The judge's state after the commits that it has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judge {
    /// The last commit end.
    pub(crate) end: CommitEnd,
    seen: BTreeSet<PayloadDigest>,
    deadlines: BTreeSet<LedgerTime>,
    epoch_end: Option<EpochEnd>,
    /// The newest change, while it waits for the end of an earlier one.
    change: Option<Committee>,
    /// Number of the newest change: an older one that is ordered later does not count.
    newest_change: u64,
    ledger_time: LedgerTime,
}

impl Judge {
    /// Before the first commit.
    pub(crate) fn new(founding: CommitEnd) -> Self {
        Self {
            end: founding,
            seen: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            epoch_end: None,
            change: None,
            newest_change: 0,
            ledger_time: LedgerTime(0),
        }
    }

    /// Judges the next commit.
    pub(crate) fn judge(&mut self, commit: &OrderedCommit) -> Judgement {
        self.epoch_end = self.epoch_end.filter(|end| end.last >= commit.index);
        let mut root = self.end.state_root;
        for ordered in &commit.payloads {
            let digest = ordered.payload.digest();
            if self.seen.insert(digest) {
                root = extend(root, digest.as_bytes());
                if ordered.payload.bytes.starts_with(DEADLINE_PREFIX) {
                    let at = commit.ledger_time.plus_ms(DEADLINE_AHEAD_MS);
                    self.deadlines.insert(at);
                }
                self.take_change(&ordered.payload.bytes);
            }
        }
        while let Some(&deadline) = self.deadlines.first() {
            if deadline > commit.ledger_time {
                break;
            }
            self.deadlines.remove(&deadline);
            root = extend(root, &deadline.0.to_be_bytes());
        }
        self.end = CommitEnd {
            index: commit.index,
            position: commit.last_position(),
            prefix_hash: commit.prefix_hash,
            state_root: root,
        };
        if self.epoch_end.is_none() {
            let last = CommitIndex(commit.index.0 + HANDOVER_DISTANCE_COMMITS);
            let change = self.change.take();
            self.epoch_end = change.map(|committee| EpochEnd { last, committee });
        }
        self.ledger_time = commit.ledger_time;
        self.judgement()
    }

    /// What it says of the last commit that it judged.
    pub(crate) fn judgement(&self) -> Judgement {
        // A change that waits is work for the next epoch.
        let now = self.change.map(|_| self.ledger_time);
        let next_deadline = now.or(self.deadlines.first().copied());
        Judgement { end: self.end, next_deadline, epoch_end: self.epoch_end }
    }

    fn take_change(&mut self, payload: &[u8]) {
        let Some((number, committee)) = read_change(payload) else {
            return;
        };
        if number > self.newest_change {
            self.newest_change = number;
            self.change = Some(committee);
        }
    }
}

/// The bytes of a change of members.
pub(crate) fn write_change(number: u64, committee: Committee) -> Vec<u8> {
    let voters = committee.authors().fold(0_u16, |voters, author| voters | 1 << author.0);
    [MEMBERS_PREFIX, &number.to_be_bytes(), &voters.to_be_bytes()].concat()
}

fn read_change(payload: &[u8]) -> Option<(u64, Committee)> {
    let (number, voters) = payload.strip_prefix(MEMBERS_PREFIX)?.split_first_chunk()?;
    let voters = u16::from_be_bytes(voters.try_into().ok()?);
    let authors = (0..16).filter(|author| voters >> author & 1 == 1).map(AuthorIndex);
    Some((u64::from_be_bytes(*number), Committee::of(authors)?))
}

fn extend(root: StateRoot, what: &[u8]) -> StateRoot {
    let mut hasher = blake3::Hasher::new_derive_key("dagger simulator v1 state");
    hasher.update(root.as_bytes()).update(what);
    StateRoot(*hasher.finalize().as_bytes())
}
