//! The ordered history, payload by payload, as an auditor reads it.
//!
//! Owns what is told of each. Never leaves one out that its reader may see. Called by the API.

use std::sync::Arc;

use dagger_api::Attested;
use dagger_api::log::{LogEntry, LogView};
use dagger_payload::id::{AccountId, CommitIndex, HostId, PayloadDigest, Position};
use dagger_payload::name::Name;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{CommitRelease, Release, Verdict};
use dagger_payload::sshsig::{self, Namespace};

use super::Model;
use super::history::signer_name;

/// Which part of the history is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogQuery {
    /// From this position on; the newest if none is given.
    pub from: Option<Position>,
    /// So many payloads at most, of those that the reader may see.
    pub entries_max: usize,
    /// So many are looked at.
    pub looked_at_max: usize,
}

impl Model {
    /// The host that is called so.
    pub fn host_named(&self, name: &Name) -> Option<HostId> {
        self.members.host_named(name)
    }

    /// A judged payload's exact text and its armoured signature.
    pub fn signed_document(&self, digest: &PayloadDigest) -> Option<(String, String)> {
        let (_, release) = self.payload(digest)?;
        let payload = &release.ordered.payload;
        let signer = payload.read().ok()?.signer;
        let text = String::from_utf8(payload.bytes.to_vec()).ok()?;
        Some((text, sshsig::to_armor(&signer, Namespace::Payload, &payload.signature)))
    }

    /// A part of the history, by position, when everything up to `attested` is attested: what is
    /// signed for accounts that the reader `sees`.
    pub fn log(
        &self,
        query: LogQuery,
        attested: CommitIndex,
        sees: &dyn Fn(AccountId) -> bool,
    ) -> LogView {
        let placed = |commit: &Arc<CommitRelease>| {
            let commit = Arc::clone(commit);
            (0..commit.releases.len()).map(move |at| (Arc::clone(&commit), at))
        };
        let entry = |(commit, at): (Arc<CommitRelease>, usize)| {
            self.log_entry(&commit, &commit.releases[at], attested, sees)
        };
        let Some(from) = query.from else {
            let newest_first = self.log.iter().rev().flat_map(|commit| placed(commit).rev());
            let newest_first = newest_first.take(query.looked_at_max).filter_map(entry);
            let mut entries: Vec<_> = newest_first.take(query.entries_max).collect();
            entries.reverse();
            return LogView { entries, next: None };
        };
        let start = self.log.partition_point(|commit| commit.end.position < from);
        let oldest_first = self.log[start..].iter().flat_map(placed);
        let mut oldest_first =
            oldest_first.filter(|(commit, at)| commit.releases[*at].position >= from).peekable();
        let mut entries = Vec::new();
        let mut looked_at = 0;
        while looked_at < query.looked_at_max
            && entries.len() < query.entries_max
            && let Some(next) = oldest_first.next()
        {
            looked_at += 1;
            entries.extend(entry(next));
        }
        let next = oldest_first.peek().map(|(commit, at)| commit.releases[*at].position);
        LogView { entries, next }
    }

    fn log_entry(
        &self,
        commit: &CommitRelease,
        release: &Release,
        attested: CommitIndex,
        sees: &dyn Fn(AccountId) -> bool,
    ) -> Option<LogEntry> {
        let refusal = match &release.verdict {
            Verdict::Accepted => None,
            Verdict::Refused(refusal) => Some(refusal.clone()),
        };
        // What its signer did not sign is noise under nobody's name.
        let is_noise =
            refusal.as_ref().is_some_and(|why| why.code == RefusalCode::SignatureInvalid);
        let document = release.ordered.payload.read().ok().filter(|_| !is_noise);
        let signer = document.as_ref().map(|document| &document.signer);
        let is_seen = signer.is_none_or(|signer| sees(self.account_signed_by(signer)));
        let carrier = self.members.seat_name(release.ordered.author);
        is_seen.then(|| LogEntry {
            position: release.position,
            commit: commit.end.index,
            ledger_time: commit.ledger_time,
            digest: release.digest,
            kind: document.as_ref().map(|document| document.body.kind().to_owned()),
            signer: signer.map(|signer| signer.to_openssh()),
            signer_name: signer.map(|signer| signer_name(self, signer)),
            carried_by: carrier.cloned(),
            refusal,
            attested: if commit.end.index <= attested { Attested::Yes } else { Attested::No },
        })
    }
}
