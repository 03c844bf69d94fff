//! How much payloads change with one commit, for each operator who answers for them.
//!
//! Owns these counts, and that a payload whose operator, or everybody, changed enough is refused
//! before any rule looks at it. What is told of a change may be short where the object is long, so
//! what is written anew is counted, too. The counts are a part of neither state nor root: each
//! commit begins with none. Called by the judge.

use std::collections::BTreeMap;

use dagger_payload::id::OperatorId;
use dagger_payload::limits::{
    COMMIT_CHANGES_BYTES_MAX, COMMIT_CHANGES_BYTES_PER_OPERATOR_MAX,
    COMMIT_REWRITTEN_BYTES_PER_OPERATOR_MAX,
};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::refuse;

/// The counts.
#[derive(Debug)]
pub(crate) struct Changes {
    /// With so many no further payload changes anything; the last one may go beyond it.
    rewritten_bytes_max: usize,
    by: BTreeMap<OperatorId, Changed>,
}

/// What payloads of one operator, of his hosts and of the accounts that he opened changed.
#[derive(Debug, Default, Clone, Copy)]
struct Changed {
    /// Added to the chain over everything judged.
    told_bytes: usize,
    /// Of objects of which only a change is told.
    rewritten_bytes: usize,
}

impl Default for Changes {
    fn default() -> Self {
        Self::new(COMMIT_REWRITTEN_BYTES_PER_OPERATOR_MAX)
    }
}

impl Changes {
    pub(crate) fn new(rewritten_bytes_max: usize) -> Self {
        Self { rewritten_bytes_max, by: BTreeMap::new() }
    }

    /// Begins the next commit.
    pub(crate) fn begin(&mut self) {
        self.by.clear();
    }

    pub(crate) fn tell(&mut self, operator: Option<OperatorId>, bytes: usize) {
        if let Some(operator) = operator {
            self.by.entry(operator).or_default().told_bytes += bytes;
        }
    }

    pub(crate) fn rewrite(&mut self, operator: Option<OperatorId>, bytes: usize) {
        if let Some(operator) = operator {
            self.by.entry(operator).or_default().rewritten_bytes += bytes;
        }
    }

    /// Whether a payload for which `operator` answers may still change something with this commit,
    /// of which so many bytes are told.
    ///
    /// # Errors
    /// `commit_full`.
    pub(crate) fn require_room(
        &self,
        operator: Option<OperatorId>,
        told_bytes: usize,
    ) -> Result<(), Refusal> {
        let own = operator.and_then(|operator| self.by.get(&operator));
        let own = own.copied().unwrap_or_default();
        if own.told_bytes >= COMMIT_CHANGES_BYTES_PER_OPERATOR_MAX
            || own.rewritten_bytes >= self.rewritten_bytes_max
            || told_bytes >= COMMIT_CHANGES_BYTES_MAX
        {
            let detail = "too much changed with this commit; nothing of this payload counts";
            return refuse(RefusalCode::CommitFull, detail);
        }
        Ok(())
    }
}
