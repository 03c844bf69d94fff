//! Proofs for strangers: what stands in the judged state, and a quorum's headers that name exactly
//! that state.
//!
//! Owns the meeting of the two. In a quiet cluster every member attests the present end, and the
//! first try succeeds. In a busy one members attest ends apart from each other, except at
//! checkpoints: so a proof is sought in both. Never holds up judging or other requests, and gives
//! up after a bound. Called by `agent`.

use std::sync::Arc;

use dagger_bus::judging::ProofAt;
use dagger_bus::ledger::{Answer, Unavailable};
use dagger_payload::attested::{AttestedEnd, AttestedProof, EpochBeginning};
use dagger_payload::carried::Carried;
use dagger_payload::codec;
use dagger_payload::event::{Header, SignedHeader};
use dagger_payload::id::{CommitIndex, Epoch, PayloadDigest};
use dagger_payload::limits::HANDOVERS_SHOWN_MAX;
use dagger_payload::merkle;
use dagger_payload::proof::{JudgedProof, Path};
use dagger_payload::release::QuorumEvidence;
use dagger_payload::state_tree::Subject;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::admission::NoAnswer;
use super::{Delivery, DeliveryError};
use crate::limits::{PROOF_REST, PROOF_WAIT_MAX, PROOFS_SOUGHT_MAX};
use crate::store::StoreError;
use crate::store::records::{EventKey, Records};

/// Places for proofs that are sought at the same time.
pub struct Sought(Semaphore);

impl Default for Sought {
    fn default() -> Self {
        Self(Semaphore::new(PROOFS_SOUGHT_MAX))
    }
}

/// Why the search ended without one.
enum NoProof {
    NoAnswer(NoAnswer),
    Broken(DeliveryError),
}

impl From<NoAnswer> for NoProof {
    fn from(none: NoAnswer) -> Self {
        Self::NoAnswer(none)
    }
}

impl From<StoreError> for NoProof {
    fn from(error: StoreError) -> Self {
        Self::Broken(error.into())
    }
}

/// Answers with a proof, or with none when no quorum attests a state of its in time.
///
/// # Errors
/// The store cannot be read.
pub(super) async fn prove(
    delivery: &Arc<Delivery>,
    subject: &Subject,
) -> Result<Answer, DeliveryError> {
    let unavailable = |reason| Ok(Answer::Unavailable { reason });
    let Ok(_place) = delivery.proofs.0.try_acquire() else {
        return unavailable(Unavailable::Overloaded {});
    };
    match timeout(PROOF_WAIT_MAX, seek(delivery, subject)).await {
        Ok(Ok(proof)) => Ok(Answer::Proof { proof: Some(Box::new(proof)) }),
        Ok(Err(NoProof::NoAnswer(NoAnswer::TooMany))) => unavailable(Unavailable::Overloaded {}),
        Ok(Err(NoProof::NoAnswer(NoAnswer::NoProcessor | NoAnswer::NotJudged))) => {
            unavailable(Unavailable::NoProcessor {})
        }
        Ok(Err(NoProof::Broken(error))) => Err(error),
        Err(_) => Ok(Answer::Proof { proof: None }),
    }
}

async fn seek(delivery: &Arc<Delivery>, subject: &Subject) -> Result<AttestedProof, NoProof> {
    if let Some(found) = attempt(delivery, subject, ProofAt::Present).await? {
        return Ok(found);
    }
    let again = |at| async move {
        loop {
            sleep(PROOF_REST).await;
            if let Some(found) = attempt(delivery, subject, at).await? {
                return Ok::<_, NoProof>(found);
            }
        }
    };
    tokio::select! {
        found = again(ProofAt::Present) => found,
        found = again(ProofAt::Checkpoint) => found,
    }
}

/// Has a proof made and waits until a quorum attests its state; none when a quorum attests only
/// later ones.
async fn attempt(
    delivery: &Arc<Delivery>,
    subject: &Subject,
    at: ProofAt,
) -> Result<Option<AttestedProof>, NoProof> {
    let mut attested = delivery.evidence.attested();
    let Some(JudgedProof { end, state }) = delivery.admissions.prove(subject.clone(), at).await?
    else {
        return Ok(None);
    };
    let QuorumEvidence { headers } = loop {
        let newest = attested.borrow_and_update().as_ref().map(|newest| newest.commit);
        if let Some(evidence) = delivery.evidence.naming(&end) {
            break evidence;
        }
        // Who attests a later state never attests this one again. An error: the daemon stops.
        let gone_on = newest.is_some_and(|newest| newest >= end.index);
        if gone_on || attested.changed().await.is_err() {
            return Ok(None);
        }
    };
    let (reader, shown, subject) = (delivery.clone(), headers.clone(), subject.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let carried =
            if let Subject::Payload(digest) = subject { carried(&reader, &digest)? } else { None };
        let own = carried.iter().map(|carried| &carried.header);
        let handovers = handovers(&reader.records, shown.iter().chain(own))?;
        Ok::<_, StoreError>((carried, handovers))
    });
    let (carried, handovers) = reading.await.expect("reading what is kept does not panic")?;
    let attested = AttestedEnd::of(end, headers, handovers);
    Ok(Some(AttestedProof { state, attested, carried }))
}

/// The event by which a payload came into the order; none when it is not ordered, or when history
/// begins later here. Bodies may be pruned: headers and releases say all that is needed.
fn carried(delivery: &Delivery, digest: &PayloadDigest) -> Result<Option<Carried>, StoreError> {
    let (records, found) = (&delivery.records, delivery.places.find(digest)?);
    let Some(at) = found else { return Ok(None) };
    let Some(commit) = records.commit(at.commit)? else { return Ok(None) };
    let before = CommitIndex(at.commit.0.saturating_sub(1));
    let releases = records.releases(before, at.commit, 1)?;
    let Some(sealed) = releases.first() else { return Ok(None) };
    let released = &sealed.release.releases;
    let Some(place) = released.iter().position(|each| each.digest == *digest) else {
        return Ok(None);
    };
    // Payloads are ordered by event, then by place in the event.
    let mut first = 0;
    for parent in &commit.events {
        let key = EventKey::at(commit.epoch, *parent);
        let Some(header) = records.signed_header(key)? else { return Ok(None) };
        let Ok(read) = codec::decode::<Header>(&header.header) else { return Ok(None) };
        let count = usize::try_from(read.payload_count).expect("it fits");
        if place >= first + count {
            first += count;
            continue;
        }
        let Some(own) = released.get(first..first + count) else { return Ok(None) };
        let leaves: Vec<_> = own.iter().map(|each| each.ordered.payload.leaf()).collect();
        let index = place - first;
        return Ok(merkle::prove(&leaves, index).map(|path| Carried {
            payload: own[index].ordered.payload.clone(),
            index: u32::try_from(index).expect("the header counts in 32 bits"),
            path: Path(path),
            header,
        }));
    }
    Ok(None)
}

/// How the epochs up to the last one of the headers began, as far as the store knows.
fn handovers<'h>(
    records: &Records,
    headers: impl Iterator<Item = &'h SignedHeader>,
) -> Result<Vec<EpochBeginning>, StoreError> {
    let read = headers.filter_map(|signed| codec::decode::<Header>(&signed.header).ok());
    let last = read.map(|header| header.epoch).max().unwrap_or(Epoch(0));
    let mut handovers = Vec::new();
    for epoch in (1..=last.0).take(HANDOVERS_SHOWN_MAX) {
        handovers.extend(records.beginning_of(Epoch(epoch))?);
    }
    Ok(handovers)
}
