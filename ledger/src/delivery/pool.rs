//! What waits to be ordered when the daemon starts.
//!
//! Owns the sorting of the pool: what was ordered meanwhile, what the core packs, and what goes to
//! hosts with a vote. Called by the daemon, before the agent may ask.

use dagger_ledger_core::RestoredState;
use dagger_payload::payload::SignedPayload;

use super::Delivery;
use super::forwarding::Origin;
use crate::store::{Change, StoreError};

/// Finds which payloads of this host nobody has ordered yet. Who votes has them packed by his core,
/// who does not hands them on. Gives what the pool is to forget.
///
/// # Errors
/// [`StoreError`].
pub fn settle(delivery: &Delivery, state: &mut RestoredState) -> Result<Vec<Change>, StoreError> {
    let own = state.events.iter().filter(|event| event.header.author == delivery.me);
    let packed = unordered(delivery, own.flat_map(|event| &event.payloads))?;
    let waiting = unordered(delivery, &state.pool)?;
    delivery.submissions.restore(packed.iter().chain(&waiting));
    let kept: std::collections::BTreeSet<_> = waiting.iter().map(SignedPayload::digest).collect();
    let all = state.pool.iter().map(SignedPayload::digest);
    let ordered = all.filter(|digest| !kept.contains(digest));
    let changes = ordered.filter_map(|digest| delivery.pool.removal(&digest)).collect();
    if delivery.votes() {
        state.pool = waiting;
    } else {
        state.pool.clear();
        waiting.into_iter().for_each(|payload| delivery.forwarding.add(payload, Origin::Door));
    }
    Ok(changes)
}

fn unordered<'p>(
    delivery: &Delivery,
    payloads: impl IntoIterator<Item = &'p SignedPayload>,
) -> Result<Vec<SignedPayload>, StoreError> {
    let mut unordered = Vec::new();
    for payload in payloads {
        if delivery.places.find(&payload.digest())?.is_none() {
            unordered.push(payload.clone());
        }
    }
    Ok(unordered)
}
