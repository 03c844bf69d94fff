//! The agent's requests: submit, look, status, evidence, predict, prove.
//!
//! Owns the order of checks at the door: what is known is answered at once, then whether the
//! cluster can take a change at all, then the processor's admission, then room, and only then is
//! anything kept. Called by `agent`.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dagger_bus::judging::AdmissionOutcome;
use dagger_bus::ledger::{
    Answer, Call, ForkEvidence, ForkStatus, LedgerStatus, LinkStatus, MemberStatus, Request,
    Response, Standing, Unavailable,
};
use dagger_ledger_core::Input;
use dagger_payload::event::SignedHeader;
use dagger_payload::id::{
    AccountId, AuthorIndex, CommitIndex, EventDigest, LedgerTime, PayloadDigest, Round,
};
use dagger_payload::limits::{
    PAYLOAD_BYTES_MAX, UNORDERED_BYTES_PER_ACCOUNT_MAX, UNORDERED_BYTES_PER_SIGNER_MAX,
};
use dagger_payload::payload::SignedPayload;
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::roster::SeatStanding;
use futures_util::future::join_all;

use super::admission::NoAnswer;
use super::forwarding::Origin;
use super::submissions::{NoRoom, Owner, Reserved};
use super::{Delivery, DeliveryError, proofs};
use crate::driver::start::FIRST_EPOCH;

/// Answers requests that came together; submissions among them share one look-up and one write.
pub(super) async fn answer_all(delivery: &Arc<Delivery>, requests: Vec<Request>) -> Vec<Response> {
    let mut answers = Vec::with_capacity(requests.len());
    let mut submitted = Vec::new();
    for Request { id, call } in requests {
        let answered = match call {
            Call::Submit { payload } => {
                submitted.push(Submission { id, digest: payload.digest(), payload });
                continue;
            }
            Call::Look { digest } => {
                look(delivery, digest).await.map(|standing| Answer::Standing { standing })
            }
            Call::Status {} => status(delivery),
            Call::Evidence { commit } => Ok(evidence(delivery, commit)),
            Call::Predict { document } => predict(delivery, document).await,
            // Comes alone, since it waits for others.
            Call::Prove { subject } => proofs::prove(delivery, &subject).await,
        };
        answers
            .push(Response { id, answer: answered.unwrap_or_else(|error| fatal(delivery, error)) });
    }
    let ids: Vec<u64> = submitted.iter().map(|submission| submission.id).collect();
    match submit_all(delivery, submitted).await {
        Ok(mut submitted) => answers.append(&mut submitted),
        Err(error) => {
            let answer = fatal(delivery, error);
            answers.extend(ids.into_iter().map(|id| Response { id, answer: answer.clone() }));
        }
    }
    answers
}

/// The daemon stops for each of these; the agent comes again when it is back.
fn fatal(delivery: &Delivery, error: DeliveryError) -> Answer {
    let _ = delivery.is_fatal(error);
    unavailable(Unavailable::Recovering {})
}

fn unavailable(reason: Unavailable) -> Answer {
    Answer::Unavailable { reason }
}

fn refused(code: RefusalCode, detail: String) -> Answer {
    Answer::Refused { refusal: Refusal::new(code, detail) }
}

async fn look(delivery: &Arc<Delivery>, digest: PayloadDigest) -> Result<Standing, DeliveryError> {
    let standings = look_all(delivery, vec![digest]).await?;
    Ok(standings.into_iter().next().expect("one digest, one standing"))
}

async fn look_all(
    delivery: &Arc<Delivery>,
    digests: Vec<PayloadDigest>,
) -> Result<Vec<Standing>, DeliveryError> {
    let looking = {
        let delivery = delivery.clone();
        tokio::task::spawn_blocking(move || {
            let standing = |digest: &PayloadDigest| {
                // Asked first: what is ordered in between has a place before it stops to wait.
                let waits = delivery.submissions.contains(digest);
                Ok(match delivery.places.find(digest)? {
                    Some(at) => Standing::Ordered { position: at.position, commit: at.commit },
                    None if waits => Standing::Received {},
                    None => Standing::Unknown {},
                })
            };
            digests.iter().map(standing).collect::<Result<_, DeliveryError>>()
        })
    };
    looking.await.expect("a look-up does not panic")
}

/// A payload on its way through the door.
struct Submission {
    id: u64,
    digest: PayloadDigest,
    payload: SignedPayload,
}

impl Submission {
    fn answer(&self, answer: Answer) -> Response {
        Response { id: self.id, answer }
    }

    fn too_much(&self, whose: &str, bytes_max: usize) -> Response {
        let detail = format!("{bytes_max} bytes of this {whose} wait to be ordered here already");
        self.answer(refused(RefusalCode::TooMuchUnordered, detail))
    }

    fn receipt(&self, standing: Standing) -> Response {
        self.answer(Answer::Receipt { digest: self.digest, standing })
    }
}

async fn submit_all(
    delivery: &Arc<Delivery>,
    submitted: Vec<Submission>,
) -> Result<Vec<Response>, DeliveryError> {
    let mut answers = Vec::with_capacity(submitted.len());
    let (submitted, large): (Vec<_>, Vec<_>) =
        submitted.into_iter().partition(|each| each.payload.bytes.len() <= PAYLOAD_BYTES_MAX);
    answers.extend(large.iter().map(|each| {
        let bytes = each.payload.bytes.len();
        let detail = format!("{bytes} bytes; the limit is {PAYLOAD_BYTES_MAX}");
        each.answer(refused(RefusalCode::PayloadTooLarge, detail))
    }));
    if submitted.is_empty() {
        return Ok(answers);
    }
    let digests = submitted.iter().map(|each| each.digest).collect();
    let standings = look_all(delivery, digests).await?;
    let mut unknown = Vec::with_capacity(submitted.len());
    for (submission, standing) in submitted.into_iter().zip(standings) {
        match standing {
            Standing::Unknown {} => unknown.push(submission),
            standing => answers.push(submission.receipt(standing)),
        }
    }
    if let Some(reason) = delivery.unavailable() {
        answers.extend(unknown.iter().map(|each| each.answer(unavailable(reason.clone()))));
        return Ok(answers);
    }
    let now = now(delivery);
    let asking = unknown.iter().map(|each| delivery.admissions.ask(each.payload.clone(), now));
    let admissions = join_all(asking).await;
    let mut admitted = Vec::with_capacity(unknown.len());
    for (submission, admission) in unknown.into_iter().zip(admissions) {
        match admission {
            Ok(AdmissionOutcome::Admitted { account, .. }) => admitted.push((submission, account)),
            Ok(AdmissionOutcome::Known { digest }) => {
                // The processor judged it a moment ago; the store learns of it in the same moment.
                let standing = match look(delivery, digest).await? {
                    Standing::Unknown {} => Standing::Received {},
                    standing => standing,
                };
                answers.push(submission.receipt(standing));
            }
            Ok(AdmissionOutcome::Refused { refusal }) => {
                answers.push(submission.answer(Answer::Refused { refusal }));
            }
            Err(NoAnswer::TooMany) => {
                answers.push(submission.answer(unavailable(Unavailable::Overloaded {})));
            }
            Ok(
                AdmissionOutcome::Predicted { .. }
                | AdmissionOutcome::Proven { .. }
                | AdmissionOutcome::NotProven,
            )
            | Err(NoAnswer::NoProcessor | NoAnswer::NotJudged) => {
                answers.push(submission.answer(unavailable(Unavailable::NoProcessor {})));
            }
        }
    }
    keep_all(delivery, admitted, &mut answers).await?;
    Ok(answers)
}

/// Takes in what hosts without a vote hand over, as if this host's own users had submitted it; one
/// answer for each.
pub(super) async fn submit_handed(
    delivery: &Arc<Delivery>,
    payloads: Vec<SignedPayload>,
) -> Vec<Answer> {
    let mut answers = vec![unavailable(Unavailable::Overloaded {}); payloads.len()];
    let submitted = (0..).zip(payloads).map(|(id, payload)| {
        let digest = payload.digest();
        Submission { id, digest, payload }
    });
    match submit_all(delivery, submitted.collect()).await {
        Ok(responses) => {
            for Response { id, answer } in responses {
                answers[usize::try_from(id).expect("as given")] = answer;
            }
        }
        Err(error) => drop(fatal(delivery, error)),
    }
    answers
}

/// Makes admitted payloads durable, in one write, and hands them to the core.
async fn keep_all(
    delivery: &Arc<Delivery>,
    admitted: Vec<(Submission, Option<AccountId>)>,
    answers: &mut Vec<Response>,
) -> Result<(), DeliveryError> {
    let mut kept = Vec::with_capacity(admitted.len());
    for (submission, account) in admitted {
        let bytes = submission.payload.bytes.len();
        let owner = Owner::of(&submission.payload, account);
        match delivery.submissions.reserve(submission.digest, owner, bytes, Instant::now()) {
            Err(NoRoom::OfAccount) => {
                answers.push(submission.too_much("account", UNORDERED_BYTES_PER_ACCOUNT_MAX));
            }
            Err(NoRoom::OfSigner) => {
                answers.push(submission.too_much("key", UNORDERED_BYTES_PER_SIGNER_MAX));
            }
            Err(NoRoom::InAll) => {
                answers.push(submission.answer(unavailable(Unavailable::Overloaded {})));
            }
            // Of a known one a copy is under way. This one is written too: a receipt is only given
            // for what is durable.
            Ok(reserved) => kept.push((submission, reserved)),
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    let changes = kept.iter().map(|(each, _)| delivery.pool.entry(&each.digest, &each.payload));
    let stored = delivery.writer.submit(changes.collect()).await?;
    for (submission, reserved) in kept {
        if stored.is_err() {
            if reserved == Reserved::New {
                delivery.submissions.forget(&submission.digest);
                // Nothing was written, so nothing is to be removed.
                drop(delivery.pool.removal(&submission.digest));
            }
            answers.push(submission.answer(unavailable(Unavailable::StoreFull {})));
            continue;
        }
        answers.push(submission.receipt(Standing::Received {}));
        if reserved == Reserved::New && !delivery.votes() {
            delivery.forwarding.add(submission.payload, Origin::Door);
        } else if reserved == Reserved::New {
            // The core is gone only when the daemon stops; the pool is read again at the next
            // start.
            let _ = delivery.core.send(Input::Submitted(submission.payload)).await;
        }
    }
    Ok(())
}

/// Needs no quorum: nothing of it is ordered.
async fn predict(delivery: &Delivery, document: Bytes) -> Result<Answer, DeliveryError> {
    if document.len() > PAYLOAD_BYTES_MAX {
        let detail = format!("{} bytes; the limit is {PAYLOAD_BYTES_MAX}", document.len());
        return Ok(refused(RefusalCode::PayloadTooLarge, detail));
    }
    Ok(match delivery.admissions.predict(document, now(delivery)).await {
        Ok(AdmissionOutcome::Predicted { prediction }) => Answer::Prediction { prediction },
        Err(NoAnswer::TooMany) => unavailable(Unavailable::Overloaded {}),
        Ok(_) | Err(NoAnswer::NoProcessor | NoAnswer::NotJudged) => {
            unavailable(Unavailable::NoProcessor {})
        }
    })
}

/// The later of ledger time and the host's clock.
fn now(delivery: &Delivery) -> LedgerTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall = LedgerTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let status = delivery.status.borrow();
    status.as_ref().map_or(wall, |status| wall.max(status.ledger_time))
}

fn evidence(delivery: &Delivery, commit: CommitIndex) -> Answer {
    let attested = delivery.evidence.attested();
    let attested = attested.borrow();
    let evidence = attested.as_ref().filter(|attested| attested.commit >= commit);
    Answer::Evidence { evidence: evidence.map(|attested| attested.evidence.clone()) }
}

/// Whoever is known to have signed two events for one round: by the headers that are kept, and by
/// what the core has seen since it started.
fn forks(delivery: &Delivery, seen: &[AuthorIndex]) -> Result<Vec<ForkStatus>, DeliveryError> {
    let kept = delivery.records.forks()?;
    let unproven = seen.iter().filter(|author| kept.iter().all(|fork| fork.author != **author));
    let unproven = unproven.map(|author| (*author, None));
    let proven = kept.iter().map(|fork| {
        let digest = |signed: &SignedHeader| EventDigest::of(&signed.header);
        let (first, second) = (digest(&fork.first), digest(&fork.second));
        (fork.author, Some(ForkEvidence { round: fork.round, first, second }))
    });
    let roster = delivery.seats.now();
    let named = proven.chain(unproven).filter_map(|(author, evidence)| {
        let seat = roster.seat(author)?;
        Some(ForkStatus { author, name: seat.name.clone(), host: seat.host, evidence })
    });
    Ok(named.collect())
}

fn status(delivery: &Delivery) -> Result<Answer, DeliveryError> {
    let core = delivery.status.borrow().clone();
    let links = delivery.links.borrow().clone();
    let (roster, committee) = (delivery.seats.now(), delivery.committee());
    let seats = roster
        .seats()
        .iter()
        .filter(|seat| seat.standing == SeatStanding::Present || committee.contains(seat.index));
    let members = seats.map(|seat| {
        let author = seat.index;
        let connected = links.as_ref().is_some_and(|links| links.is_connected(author));
        let highest = core.iter().flat_map(|core| &core.highest);
        let highest = highest.filter(|highest| highest.author == author).map(|entry| entry.round);
        MemberStatus {
            author,
            name: seat.name.clone(),
            host: seat.host,
            link: match (author == delivery.me, connected) {
                (true, _) => LinkStatus::Own,
                (false, true) => LinkStatus::Connected,
                (false, false) => LinkStatus::Missing,
            },
            highest_round: highest.max().unwrap_or(Round(0)),
        }
    });
    let members = members.collect();
    let attested = delivery.evidence.attested();
    let attested = attested.borrow().as_ref().map_or(CommitIndex(0), |newest| newest.commit);
    let quorum = u16::try_from(committee.quorum()).expect("at most 128");
    let released = delivery.released.borrow().clone();
    let pruned = delivery.records.pruned()?;
    let seen = core.as_ref().map(|core| core.forkers.as_slice()).unwrap_or_default();
    let status = LedgerStatus {
        forks: forks(delivery, seen)?,
        cluster: delivery.cluster,
        author: delivery.me,
        epoch: core.as_ref().map_or(FIRST_EPOCH, |core| core.epoch),
        round: core.as_ref().map(|core| core.round).unwrap_or_default(),
        committed: *delivery.commits.newest().borrow(),
        judged: released.map(|released| released.through).unwrap_or_default(),
        attested,
        position: core.as_ref().map(|core| core.position).unwrap_or_default(),
        ledger_time: core.as_ref().map(|core| core.ledger_time).unwrap_or_default(),
        members,
        quorum,
        waiting: u64::try_from(delivery.submissions.count()).expect("a count fits"),
        store_bytes: delivery.records.store().used_bytes()?,
        unavailable: delivery.unavailable(),
        pruned_round: pruned.round,
        pruned_epoch: pruned.epoch,
        committee,
        epoch_end: delivery.records.epoch_end()?,
        snapshot: delivery.snapshots.newest().map_or(CommitIndex(0), |kept| kept.head.end.index),
    };
    Ok(Answer::Status { status: Box::new(status) })
}
