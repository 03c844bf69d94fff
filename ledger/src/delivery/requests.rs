//! The agent's requests: submit, look, status, evidence.
//!
//! Owns the order of checks at the door: what is known is answered at once, then whether the
//! cluster can take a change at all, then the processor's admission, then room, and only then is
//! anything kept. Called by `agent`, one call per request.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dagger_bus::judging::AdmissionOutcome;
use dagger_bus::ledger::{
    Answer, Call, LedgerStatus, LinkStatus, MemberStatus, Standing, Unavailable,
};
use dagger_ledger_core::Input;
use dagger_payload::id::{AccountId, AuthorIndex, CommitIndex, LedgerTime, PayloadDigest, Round};
use dagger_payload::limits::{PAYLOAD_BYTES_MAX, UNORDERED_BYTES_PER_ACCOUNT_MAX};
use dagger_payload::payload::SignedPayload;
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::admission::NoAnswer;
use super::submissions::{NoRoom, Reserved};
use super::{Delivery, DeliveryError};
use crate::driver::start::FIRST_EPOCH;
use crate::store::records;

/// Answers one call.
pub(super) async fn answer(delivery: &Arc<Delivery>, call: Call) -> Answer {
    let answered = match call {
        Call::Submit { payload } => submit(delivery, payload).await,
        Call::Look { digest } => {
            look(delivery, digest).await.map(|standing| Answer::Standing { standing })
        }
        Call::Status {} => status(delivery),
        Call::Evidence { commit } => Ok(evidence(delivery, commit)),
    };
    answered.unwrap_or_else(|error| {
        // The daemon stops for each of these; the agent comes again when it is back.
        let _ = delivery.is_fatal(error);
        unavailable(Unavailable::Recovering {})
    })
}

fn unavailable(reason: Unavailable) -> Answer {
    Answer::Unavailable { reason }
}

fn refused(code: RefusalCode, detail: String) -> Answer {
    Answer::Refused { refusal: Refusal::new(code, detail) }
}

async fn look(delivery: &Arc<Delivery>, digest: PayloadDigest) -> Result<Standing, DeliveryError> {
    let records = delivery.records.clone();
    let looking = tokio::task::spawn_blocking(move || records.ordered(&digest));
    let ordered = looking.await.expect("a look-up does not panic")?;
    Ok(match ordered {
        Some(at) => Standing::Ordered { position: at.position, commit: at.commit },
        None if delivery.submissions.contains(&digest) => Standing::Received {},
        None => Standing::Unknown {},
    })
}

async fn submit(delivery: &Arc<Delivery>, payload: SignedPayload) -> Result<Answer, DeliveryError> {
    if payload.bytes.len() > PAYLOAD_BYTES_MAX {
        let detail = format!("{} bytes; the limit is {PAYLOAD_BYTES_MAX}", payload.bytes.len());
        return Ok(refused(RefusalCode::PayloadTooLarge, detail));
    }
    let digest = payload.digest();
    match look(delivery, digest).await? {
        Standing::Unknown {} => {}
        standing => return Ok(Answer::Receipt { digest, standing }),
    }
    if let Some(reason) = delivery.unavailable() {
        return Ok(unavailable(reason));
    }
    match delivery.admissions.ask(payload.clone(), now(delivery)).await {
        Ok(AdmissionOutcome::Admitted { account, .. }) => keep(delivery, payload, account).await,
        Ok(AdmissionOutcome::Known { digest }) => {
            // The processor judged it a moment ago; the store learns of it in the same moment.
            let standing = match look(delivery, digest).await? {
                Standing::Unknown {} => Standing::Received {},
                standing => standing,
            };
            Ok(Answer::Receipt { digest, standing })
        }
        Ok(AdmissionOutcome::Refused { refusal }) => Ok(Answer::Refused { refusal }),
        Err(NoAnswer::TooMany) => Ok(unavailable(Unavailable::Overloaded {})),
        Err(NoAnswer::NoProcessor) => Ok(unavailable(Unavailable::NoProcessor {})),
    }
}

/// Makes an admitted payload durable and hands it to the core.
async fn keep(
    delivery: &Arc<Delivery>,
    payload: SignedPayload,
    account: Option<AccountId>,
) -> Result<Answer, DeliveryError> {
    let digest = payload.digest();
    let receipt = Answer::Receipt { digest, standing: Standing::Received {} };
    let reserved = delivery.submissions.reserve(digest, account, payload.bytes.len());
    match reserved {
        Err(NoRoom::OfAccount) => {
            let detail =
                format!("over {UNORDERED_BYTES_PER_ACCOUNT_MAX} bytes wait to be ordered here");
            return Ok(refused(RefusalCode::TooMuchUnordered, detail));
        }
        Err(NoRoom::InAll) => return Ok(unavailable(Unavailable::Overloaded {})),
        // A copy is under way. This one is written too: a receipt is only given for what is
        // durable.
        Ok(Reserved::New | Reserved::Known) => {}
    }
    if delivery.writer.submit(records::pool_change(&payload)).await?.is_err() {
        if reserved == Ok(Reserved::New) {
            delivery.submissions.forget(&digest);
        }
        return Ok(unavailable(Unavailable::StoreFull {}));
    }
    if reserved == Ok(Reserved::New) {
        // The core is gone only when the daemon stops; the pool is read again at the next start.
        let _ = delivery.core.send(Input::Submitted(payload)).await;
    }
    Ok(receipt)
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

fn status(delivery: &Delivery) -> Result<Answer, DeliveryError> {
    let core = delivery.status.borrow().clone();
    let links = delivery.links.borrow().clone();
    let hosts = (0..).map(AuthorIndex).zip(&delivery.genesis.hosts);
    let members = hosts.map(|(author, host)| {
        let connected = links.as_ref().is_some_and(|links| links.is_connected(author));
        let highest = core.iter().flat_map(|core| &core.highest);
        let highest = highest.filter(|highest| highest.author == author).map(|entry| entry.round);
        MemberStatus {
            author,
            name: host.name.clone(),
            host: host.id(),
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
    let quorum = u16::try_from(delivery.committee().quorum()).expect("at most 128");
    let released = delivery.released.borrow().clone();
    let status = LedgerStatus {
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
    };
    Ok(Answer::Status { status: Box::new(status) })
}
