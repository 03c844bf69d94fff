//! A small deterministic judge: its state root chains the digests of judged payloads and the
//! deadlines that passed.
//!
//! Owns that state. Never knows the graph. Called by hosts. It stands in for the processor where
//! only agreement on order is tested; the real judge has its own tests.

use std::collections::BTreeSet;

use dagger_payload::event::CommitEnd;
use dagger_payload::id::{LedgerTime, PayloadDigest, StateRoot};
use dagger_payload::release::OrderedCommit;

/// How a payload that starts a deadline begins.
pub(crate) const DEADLINE_PREFIX: &[u8] = b"deadline";
/// How far ahead that deadline lies, in ledger milliseconds.
pub(crate) const DEADLINE_AHEAD_MS: u64 = 1_500;

/// The judge's state after the commits that it has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judge {
    /// The last commit end.
    pub(crate) end: CommitEnd,
    seen: BTreeSet<PayloadDigest>,
    deadlines: BTreeSet<LedgerTime>,
}

impl Judge {
    /// Before the first commit.
    pub(crate) fn new(founding: CommitEnd) -> Self {
        Self { end: founding, seen: BTreeSet::new(), deadlines: BTreeSet::new() }
    }

    /// Judges the next commit; tells its end and the next deadline.
    pub(crate) fn judge(&mut self, commit: &OrderedCommit) -> (CommitEnd, Option<LedgerTime>) {
        let mut root = self.end.state_root;
        for ordered in &commit.payloads {
            let digest = ordered.payload.digest();
            if self.seen.insert(digest) {
                root = extend(root, digest.as_bytes());
                if ordered.payload.bytes.starts_with(DEADLINE_PREFIX) {
                    let at = commit.ledger_time.plus_ms(DEADLINE_AHEAD_MS);
                    self.deadlines.insert(at);
                }
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
        (self.end, self.deadlines.first().copied())
    }
}

fn extend(root: StateRoot, what: &[u8]) -> StateRoot {
    let mut hasher = blake3::Hasher::new_derive_key("dagger simulator v1 state");
    hasher.update(root.as_bytes()).update(what);
    StateRoot(*hasher.finalize().as_bytes())
}
