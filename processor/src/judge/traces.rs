//! Which payloads leave a trace in the state, and that nobody leaves too many.
//!
//! Owns the order: what finds no room whatever the rules say is refused before they look at
//! anything, and what they say counts only if it finds room. How much room there is stands in
//! `memory`. Called by the judge.

use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::state_tree::Author;

use super::{Ruling, refuse};

const TOO_MANY: &str = "too many of your payloads wait to expire";

/// Whether one more payload of an author, accepted or refused, may be remembered.
pub(super) type HasRoom<'a> = &'a dyn Fn(&Author, Option<RefusalCode>) -> bool;

/// Refuses what could leave no trace whatever the rules say, before they look at anything.
pub(super) fn require_any_room(
    author: Option<Author>,
    has_room: HasRoom<'_>,
) -> Result<(), Refusal> {
    let Some(author) = author else { return Ok(()) };
    let any_refusal = Some(RefusalCode::Conflict);
    match [None, any_refusal].iter().any(|end| has_room(&author, *end)) {
        true => Ok(()),
        false => refuse(RefusalCode::TooManyRemembered, TOO_MANY),
    }
}

/// The ruling, unless it should leave a trace and too much of its author is remembered.
pub(super) fn bounded(author: Option<Author>, ruling: Ruling, has_room: HasRoom<'_>) -> Ruling {
    if !leaves_trace(&ruling) {
        return ruling;
    }
    let refused = ruling.as_ref().err().map(|refusal| refusal.code);
    match author {
        Some(author) if has_room(&author, refused) => ruling,
        Some(_) => {
            let also = ruling.err().map(|refusal| format!("; and this one: {refusal}"));
            let detail = format!("{TOO_MANY}{}", also.unwrap_or_default());
            refuse(RefusalCode::TooManyRemembered, detail)
        }
        // What a stranger's payload is refused for leaves no trace; none is ever accepted.
        None => ruling.and_then(|_| refuse(RefusalCode::AccountUnknown, "nobody has this key")),
    }
}

/// Whether what was ruled is remembered under the payload's digest, if its signer is somebody. What
/// was refused for its time or cluster can be told again from the payload; a signer without a live
/// grant could fill the state for free.
pub(super) fn leaves_trace(ruling: &Ruling) -> bool {
    let Err(refusal) = ruling else { return true };
    !matches!(
        refusal.code,
        RefusalCode::ClusterWrong
            | RefusalCode::Expired
            | RefusalCode::NotAfterTooFar
            | RefusalCode::AccountUnknown
            | RefusalCode::TooManyRemembered
            | RefusalCode::CommitFull
    )
}
