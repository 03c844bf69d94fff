//! Payloads of this host's users while it has no vote: members that have one are asked, one after
//! the other, to have them ordered.
//!
//! Owns what is on its way to whom, and when the next member's turn comes. Each payload stays
//! durable in this host's pool until its place is judged, or until more members have refused it
//! than may lie. Never decides whether this host votes (the judge does) and never reads a payload.
//! Filled by requests and at start, emptied by judging; the members' side is `handing`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use dagger_ledger_core::Input;
use dagger_payload::id::{AuthorIndex, PayloadDigest};
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::{PeerMessage, Receipt};
use dagger_payload::refusal::Refusal;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use super::{Delivery, DeliveryError};
use crate::limits::{
    FORWARD_ANSWER_WAIT_MAX, FORWARD_LOOK_EVERY, FORWARD_ORDERED_WAIT_MAX, FORWARD_REST,
    FORWARDS_MAX, FORWARDS_UNANSWERED_PER_MEMBER_MAX,
};

/// What a member said.
pub struct Heard {
    /// Who.
    pub from: AuthorIndex,
    /// About which payload.
    pub digest: PayloadDigest,
    /// What.
    pub receipt: Receipt,
}

/// Whether the core waits for a vote to pack a payload, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Only this module has it.
    Door,
    /// The core has it as well.
    Core,
}

/// Where a payload is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The next member is asked at this moment.
    Due(Instant),
    /// This member was asked, and may answer until then.
    Asked(AuthorIndex, Instant),
    /// A member has it, and it should be ordered by then.
    Taken(Instant),
}

struct Forward {
    payload: SignedPayload,
    origin: Origin,
    step: Step,
    /// How many members were asked.
    turns: u64,
    refused: BTreeSet<AuthorIndex>,
}

#[derive(Default)]
struct State {
    /// In order of arrival.
    forwards: BTreeMap<u64, Forward>,
    numbers: HashMap<PayloadDigest, u64>,
    last: u64,
}

/// All of them.
#[derive(Default)]
pub struct Forwarding {
    state: Mutex<State>,
    changed: Notify,
}

/// A payload for a member.
struct Errand {
    to: AuthorIndex,
    payload: SignedPayload,
}

impl Forwarding {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Takes a payload in, which is durable in the pool.
    pub fn add(&self, payload: SignedPayload, origin: Origin) {
        let mut state = self.state();
        let digest = payload.digest();
        if state.numbers.contains_key(&digest) {
            return;
        }
        state.last += 1;
        let number = state.last;
        state.numbers.insert(digest, number);
        let step = Step::Due(Instant::now());
        let refused = BTreeSet::new();
        state.forwards.insert(number, Forward { payload, origin, step, turns: 0, refused });
        drop(state);
        self.changed.notify_one();
    }

    /// Whether `digest` is on its way.
    pub fn contains(&self, digest: &PayloadDigest) -> bool {
        self.state().numbers.contains_key(digest)
    }

    /// A payload was ordered, or is given up.
    pub(super) fn remove(&self, digest: &PayloadDigest) {
        self.state().remove(digest);
    }

    /// Takes a member's word in. The refusal when nobody is left to ask: more have refused the
    /// payload than `faulty_max`, who may lie.
    fn heard(&self, heard: &Heard, faulty_max: usize) -> Option<Refusal> {
        let mut state = self.state();
        let number = *state.numbers.get(&heard.digest)?;
        let forward = state.forwards.get_mut(&number)?;
        let asked = matches!(forward.step, Step::Asked(of, _) if of == heard.from);
        if !asked {
            return None; // it came too late, or nobody asked
        }
        let now = Instant::now();
        match &heard.receipt {
            Receipt::Taken {} => forward.step = Step::Taken(now + FORWARD_ORDERED_WAIT_MAX),
            Receipt::NotNow {} => forward.step = Step::Due(now + FORWARD_REST),
            Receipt::Refused { refusal } => {
                forward.step = Step::Due(now);
                forward.refused.insert(heard.from);
                return (forward.refused.len() > faulty_max).then(|| refusal.clone());
            }
        }
        None
    }

    /// What to send now to which of the `reached` members, and when to look again.
    fn errands(&self, reached: &[AuthorIndex], now: Instant) -> (Vec<Errand>, Instant) {
        let mut state = self.state();
        let mut unanswered: BTreeMap<AuthorIndex, usize> = BTreeMap::new();
        let (mut errands, mut next) = (Vec::new(), now + FORWARD_LOOK_EVERY);
        for (number, forward) in state.forwards.iter_mut().take(FORWARDS_MAX) {
            forward.step = match forward.step {
                Step::Asked(of, until) if until > now => {
                    *unanswered.entry(of).or_default() += 1;
                    next = next.min(until);
                    continue;
                }
                Step::Taken(until) | Step::Due(until) if until > now => {
                    next = next.min(until);
                    continue;
                }
                Step::Asked(..) | Step::Taken(_) | Step::Due(_) => Step::Due(now),
            };
            let willing = reached.iter().filter(|member| !forward.refused.contains(member));
            let willing: Vec<_> = willing.collect();
            let Some(turn) = (number + forward.turns).checked_rem(willing.len() as u64) else {
                next = next.min(now + FORWARD_REST);
                continue;
            };
            let to = *willing[usize::try_from(turn).expect("below the number of members")];
            let count = unanswered.entry(to).or_default();
            if *count >= FORWARDS_UNANSWERED_PER_MEMBER_MAX {
                next = next.min(now + FORWARD_REST);
                continue;
            }
            *count += 1;
            forward.turns += 1;
            forward.step = Step::Asked(to, now + FORWARD_ANSWER_WAIT_MAX);
            next = next.min(now + FORWARD_ANSWER_WAIT_MAX);
            errands.push(Errand { to, payload: forward.payload.clone() });
        }
        (errands, next)
    }

    /// All of them, for who votes now and packs them himself.
    fn take_all(&self) -> Vec<(SignedPayload, Origin)> {
        let state = std::mem::take(&mut *self.state());
        let forwards = state.forwards.into_values();
        forwards.map(|forward| (forward.payload, forward.origin)).collect()
    }
}

impl State {
    fn remove(&mut self, digest: &PayloadDigest) {
        if let Some(number) = self.numbers.remove(digest) {
            self.forwards.remove(&number);
        }
    }
}

/// Works until the daemon stops.
pub async fn run(delivery: Arc<Delivery>, heard: mpsc::Receiver<Heard>) {
    if let Err(error) = work(&delivery, heard).await
        && let Ok(error) = delivery.is_fatal(error)
    {
        tracing::debug!(%error, "nothing more is handed to members");
    }
}

async fn work(
    delivery: &Arc<Delivery>,
    mut heard: mpsc::Receiver<Heard>,
) -> Result<(), DeliveryError> {
    let mut look_at = Instant::now();
    loop {
        let next = if delivery.votes() {
            pack_all(delivery).await;
            Instant::now() + FORWARD_REST
        } else {
            if look_at <= Instant::now() {
                look_through_pool(delivery).await?;
                look_at = Instant::now() + FORWARD_LOOK_EVERY;
            }
            send_all(delivery).min(Instant::now() + FORWARD_REST)
        };
        tokio::select! {
            heard = heard.recv() => {
                let Some(heard) = heard else {
                    return Ok(());
                };
                let faulty_max = delivery.committee().faulty_max();
                if let Some(refusal) = delivery.forwarding.heard(&heard, faulty_max) {
                    give_up(delivery, &heard, &refusal).await?;
                }
            }
            () = delivery.forwarding.changed.notified() => {}
            () = sleep_until(next) => {}
        }
    }
}

/// This host votes: what nobody has ordered yet goes into its own events.
async fn pack_all(delivery: &Delivery) {
    for (payload, origin) in delivery.forwarding.take_all() {
        if origin == Origin::Door {
            // The core is gone only when the daemon stops.
            let _ = delivery.core.send(Input::Submitted(payload)).await;
        }
    }
}

fn send_all(delivery: &Delivery) -> Instant {
    let now = Instant::now();
    let Some(links) = delivery.links.borrow().clone() else {
        return now + FORWARD_REST;
    };
    let members = delivery.committee().authors();
    let reached: Vec<_> = members.filter(|member| links.is_connected(*member)).collect();
    let (errands, next) = delivery.forwarding.errands(&reached, now);
    for Errand { to, payload } in errands {
        links.send(to, PeerMessage::Submit { payload }.to_bytes().into());
    }
    next
}

/// What this host's last epoch with a vote left unordered is in the pool; so is what the core took
/// in just when that ended.
async fn look_through_pool(delivery: &Arc<Delivery>) -> Result<(), DeliveryError> {
    let of_pool = delivery.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let mut unordered = of_pool.records.pool()?;
        let mut failed = Ok(());
        unordered.retain(|payload| match of_pool.places.find(&payload.digest()) {
            Ok(place) => place.is_none(),
            Err(error) => {
                failed = Err(error);
                false
            }
        });
        failed.map(|()| unordered)
    });
    for payload in reading.await.expect("reading the pool does not panic")? {
        delivery.forwarding.add(payload, Origin::Core);
    }
    Ok(())
}

async fn give_up(
    delivery: &Delivery,
    heard: &Heard,
    refusal: &Refusal,
) -> Result<(), DeliveryError> {
    let (digest, code) = (heard.digest, refusal.code.as_str());
    tracing::warn!(%digest, code, "members refuse a payload that was received here");
    delivery.forwarding.remove(&digest);
    delivery.writer.store(delivery.pool.removal(&digest).into_iter().collect()).await?;
    delivery.submissions.forget(&digest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use dagger_payload::key::Signature;
    use dagger_payload::payload::SignatureKind;
    use dagger_payload::refusal::RefusalCode;

    use super::*;

    const MEMBERS: [AuthorIndex; 3] = [AuthorIndex(0), AuthorIndex(1), AuthorIndex(2)];

    fn payload(text: &str) -> SignedPayload {
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        SignedPayload { signature_kind, signature, bytes: text.to_owned().into_bytes().into() }
    }

    fn asked(forwarding: &Forwarding, now: Instant) -> Vec<AuthorIndex> {
        forwarding.errands(&MEMBERS, now).0.into_iter().map(|errand| errand.to).collect()
    }

    #[test]
    fn a_silent_member_is_left_for_the_next_and_one_that_took_it_is_given_time() {
        let forwarding = Forwarding::default();
        forwarding.add(payload("one"), Origin::Door);
        forwarding.add(payload("one"), Origin::Door);
        let now = Instant::now();
        let first = asked(&forwarding, now);
        assert_eq!(first.len(), 1);
        assert_eq!(asked(&forwarding, now), [], "one at a time");
        let later = now + FORWARD_ANSWER_WAIT_MAX;
        let second = asked(&forwarding, later);
        assert_ne!(first, second);
        let digest = payload("one").digest();
        let taken = |from| Heard { from, digest, receipt: Receipt::Taken {} };
        forwarding.heard(&taken(first[0]), 1);
        let third = asked(&forwarding, later + FORWARD_ANSWER_WAIT_MAX);
        assert_eq!(third.len(), 1, "a late word of another does not count");
        forwarding.heard(&taken(third[0]), 1);
        assert_eq!(asked(&forwarding, later + FORWARD_ANSWER_WAIT_MAX * 2), []);
        let unordered = Instant::now() + FORWARD_ORDERED_WAIT_MAX;
        assert_eq!(asked(&forwarding, unordered).len(), 1, "it was not ordered in time");
        forwarding.remove(&digest);
        assert!(!forwarding.contains(&digest));
        assert_eq!(asked(&forwarding, unordered + FORWARD_ANSWER_WAIT_MAX), []);
    }

    #[test]
    fn a_payload_is_given_up_when_more_refuse_it_than_may_lie() {
        let forwarding = Forwarding::default();
        forwarding.add(payload("one"), Origin::Door);
        let digest = payload("one").digest();
        let refusal = Refusal::new(RefusalCode::Expired, "late");
        let refused = |from| {
            let receipt = Receipt::Refused { refusal: refusal.clone() };
            forwarding.heard(&Heard { from, digest, receipt }, 1)
        };
        let first = asked(&forwarding, Instant::now())[0];
        assert_eq!(refused(first), None);
        assert_eq!(refused(first), None, "one word each");
        let second = asked(&forwarding, Instant::now())[0];
        assert_ne!(first, second);
        assert_eq!(refused(second), Some(refusal.clone()));
    }

    #[test]
    fn no_member_is_handed_more_than_it_can_answer_for() {
        let forwarding = Forwarding::default();
        for number in 0..FORWARDS_MAX + 9 {
            forwarding.add(payload(&format!("{number}")), Origin::Door);
        }
        let sent = asked(&forwarding, Instant::now());
        for member in MEMBERS {
            let count = sent.iter().filter(|to| **to == member).count();
            assert_eq!(count, FORWARDS_UNANSWERED_PER_MEMBER_MAX);
        }
    }
}
