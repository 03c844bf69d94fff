//! The ordered history, payload by payload, as an auditor reads it.
//!
//! Owns what is told of each. Never leaves one out that its reader may see. Called by the API.

use std::ops::ControlFlow;

use dagger_api::Attested;
use dagger_api::log::{LogEntry, LogView};
use dagger_payload::id::{AccountId, CommitIndex, HostId, Position};
use dagger_payload::name::Name;
use dagger_payload::payload::Payload;
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;

use super::Model;
use super::addition::Known;
use super::archive::{ArchiveError, Direction};
use super::history::signer_name;
use super::look::LookBack;
use super::past::Placed;
use crate::limits::{LOG_PIECE_BYTES_MAX, LOG_PIECE_MAX};

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
}

/// A payload with its document, if it is one that somebody has signed.
type Read = (Placed, Option<Payload>);

impl LookBack {
    /// A part of the history, by position, when everything up to `attested` is attested: what is
    /// signed for accounts that the reader `sees`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn log(
        &self,
        query: LogQuery,
        attested: CommitIndex,
        sees: &dyn Fn(AccountId) -> bool,
    ) -> Result<LogView, ArchiveError> {
        let direction = match query.from {
            Some(_) => Direction::Forward,
            None => Direction::Backward,
        };
        let mut at = query.from.or(Some(Position(u64::MAX)));
        let (mut entries, mut looked_at) = (Vec::new(), 0);
        while let Some(from) = at
            && looked_at < query.looked_at_max
            && entries.len() < query.entries_max
        {
            let (piece, next) = self.piece(from, direction, query.looked_at_max - looked_at)?;
            at = next;
            self.model(|model| {
                let known = Known::now(model);
                for read in piece {
                    if entries.len() >= query.entries_max {
                        at = Some(read.0.release.position);
                        break;
                    }
                    looked_at += 1;
                    entries.extend(log_entry(&known, read, attested, sees));
                }
            });
        }
        if direction == Direction::Backward {
            entries.reverse();
            at = None;
        }
        Ok(LogView { entries, next: at })
    }

    /// The next payloads from `from` on, at most `count_max`, and where it goes on.
    fn piece(
        &self,
        from: Position,
        direction: Direction,
        count_max: usize,
    ) -> Result<(Vec<Read>, Option<Position>), ArchiveError> {
        let (mut piece, mut next, mut bytes) = (Vec::new(), None, 0);
        let count_max = count_max.min(LOG_PIECE_MAX);
        self.read(|past| {
            past.walk_payloads(from, direction, |placed, size_bytes| {
                if piece.len() >= count_max || bytes >= LOG_PIECE_BYTES_MAX {
                    next = Some(placed.release.position);
                    return ControlFlow::Break(());
                }
                bytes += size_bytes;
                piece.push(placed);
                ControlFlow::Continue(())
            })
        })?;
        Ok((piece.into_iter().map(read).collect(), next))
    }
}

fn read(placed: Placed) -> Read {
    // What its signer did not sign is noise under nobody's name.
    let is_noise = matches!(&placed.release.verdict, Verdict::Refused(why)
        if why.code == RefusalCode::SignatureInvalid);
    let document = placed.release.ordered.payload.read().ok().filter(|_| !is_noise);
    (placed, document)
}

fn log_entry(
    known: &Known<'_>,
    (Placed { commit, ledger_time, release }, document): Read,
    attested: CommitIndex,
    sees: &dyn Fn(AccountId) -> bool,
) -> Option<LogEntry> {
    let refusal = match release.verdict {
        Verdict::Accepted => None,
        Verdict::Refused(refusal) => Some(refusal),
    };
    let signer = document.as_ref().map(|document| &document.signer);
    let is_seen = signer.is_none_or(|signer| sees(known.account_signed_by(signer)));
    is_seen.then(|| LogEntry {
        position: release.position,
        commit,
        ledger_time,
        digest: release.digest,
        kind: document.as_ref().map(|document| document.body.kind().to_owned()),
        signer: signer.map(|signer| signer.to_openssh()),
        signer_name: signer.map(|signer| signer_name(known, signer)),
        carried_by: known.members().seat_name(release.ordered.author).cloned(),
        refusal,
        attested: if commit <= attested { Attested::Yes } else { Attested::No },
    })
}
