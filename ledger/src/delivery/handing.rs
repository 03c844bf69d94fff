//! Payloads that hosts without a vote hand to this one.
//!
//! Owns the bounds per peer. What is taken goes through the same door as what this host's own users
//! submit, and is as durable; the peer hears what came of it. Called with what the links bring; the
//! other side is `forwarding`.

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_bus::ledger::Answer;
use dagger_payload::id::{AuthorIndex, PayloadDigest};
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::{PeerMessage, Receipt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::submissions::Submissions;
use super::{Delivery, requests};
use crate::limits::{
    HANDED_UNORDERED_BYTES_PER_PEER_MAX, HANDED_UNORDERED_PER_PEER_MAX, HANDED_WAITING_MAX,
    HANDED_WAITING_PER_PEER_MAX, REQUESTS_TOGETHER_MAX,
};

/// A payload on its way in.
pub struct Handed {
    from: AuthorIndex,
    payload: SignedPayload,
    /// One of the few that a peer has.
    _permit: OwnedSemaphorePermit,
}

/// The way in, for whoever hears the links.
pub struct Hands {
    handed: mpsc::Sender<Handed>,
    peers: BTreeMap<AuthorIndex, Arc<Semaphore>>,
}

/// The way in, and what [`run`] works on.
pub fn hands() -> (Hands, mpsc::Receiver<Handed>) {
    let (handed, taken) = mpsc::channel(HANDED_WAITING_MAX);
    (Hands { handed, peers: BTreeMap::new() }, taken)
}

impl Hands {
    /// Takes in what a linked peer hands over. More than it may is dropped; it asks another member.
    /// All who ever handed anything over have equal shares, also who found no room yet.
    pub fn take(&mut self, from: AuthorIndex, payload: SignedPayload) {
        let of_peer = self.peers.entry(from);
        let of_peer =
            of_peer.or_insert_with(|| Arc::new(Semaphore::new(HANDED_WAITING_PER_PEER_MAX)));
        let of_peer = of_peer.clone();
        let share = HANDED_WAITING_MAX / self.peers.len();
        let waiting = HANDED_WAITING_PER_PEER_MAX - of_peer.available_permits();
        if waiting >= share.max(1) {
            return;
        }
        if let Ok(permit) = of_peer.try_acquire_owned() {
            let _ = self.handed.try_send(Handed { from, payload, _permit: permit });
        }
    }
}

/// What one peer's payloads take that are not ordered.
#[derive(Default)]
struct Room {
    waiting: BTreeMap<PayloadDigest, usize>,
    bytes: usize,
}

impl Room {
    /// Whether there is room for another one, after those are gone that wait no more.
    fn has_for(&mut self, bytes: usize, submissions: &Submissions) -> bool {
        let fits = |room: &Self| {
            room.waiting.len() < HANDED_UNORDERED_PER_PEER_MAX
                && room.bytes + bytes <= HANDED_UNORDERED_BYTES_PER_PEER_MAX
        };
        if !fits(self) {
            self.waiting.retain(|digest, _| submissions.contains(digest));
            self.bytes = self.waiting.values().sum();
        }
        fits(self)
    }

    fn fill(&mut self, digest: PayloadDigest, bytes: usize) {
        if self.waiting.insert(digest, bytes).is_none() {
            self.bytes += bytes;
        }
    }
}

/// Takes in what peers hand over until the daemon stops.
pub async fn run(delivery: Arc<Delivery>, mut handed: mpsc::Receiver<Handed>) {
    let mut rooms: BTreeMap<AuthorIndex, Room> = BTreeMap::new();
    while let Some(first) = handed.recv().await {
        let mut together = vec![first];
        while together.len() < REQUESTS_TOGETHER_MAX
            && let Ok(next) = handed.try_recv()
        {
            together.push(next);
        }
        let mut taken = Vec::with_capacity(together.len());
        for handed in together {
            let bytes = handed.payload.bytes.len();
            let room = rooms.entry(handed.from).or_default();
            if delivery.votes() && room.has_for(bytes, &delivery.submissions) {
                room.fill(handed.payload.digest(), bytes);
                taken.push(handed);
            } else {
                answer(&delivery, &handed, Receipt::NotNow {});
            }
        }
        let payloads = taken.iter().map(|handed| handed.payload.clone()).collect();
        let answers = requests::submit_handed(&delivery, payloads).await;
        for (handed, said) in taken.iter().zip(answers) {
            answer(&delivery, handed, receipt(said));
        }
    }
}

fn receipt(answer: Answer) -> Receipt {
    match answer {
        Answer::Receipt { .. } => Receipt::Taken {},
        Answer::Refused { refusal } => Receipt::Refused { refusal },
        Answer::Standing { .. }
        | Answer::Status { .. }
        | Answer::Unavailable { .. }
        | Answer::Evidence { .. }
        | Answer::Prediction { .. }
        | Answer::Proof { .. } => Receipt::NotNow {},
    }
}

fn answer(delivery: &Delivery, handed: &Handed, receipt: Receipt) {
    let digest = handed.payload.digest();
    if let Some(links) = &*delivery.links.borrow() {
        links.send(handed.from, PeerMessage::Taken { digest, receipt }.to_bytes().into());
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::key::Signature;
    use dagger_payload::payload::SignatureKind;

    use super::super::submissions::Owner;
    use super::*;

    #[test]
    fn a_peer_that_comes_when_others_have_all_places_gets_its_share_of_those_that_become_free() {
        let (mut hands, mut handed) = hands();
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        let payload = SignedPayload { signature_kind, signature, bytes: "{}".into() };
        let mut hand = |peer: usize| {
            let author = AuthorIndex(u16::try_from(peer).expect("few"));
            for _ in 0..HANDED_WAITING_PER_PEER_MAX {
                hands.take(author, payload.clone());
            }
        };
        let peers = HANDED_WAITING_MAX / HANDED_WAITING_PER_PEER_MAX;
        (0..=peers).for_each(&mut hand);
        let late = AuthorIndex(u16::try_from(peers).expect("few"));
        let mut all = std::iter::from_fn(|| handed.try_recv().ok());
        assert!(all.by_ref().take(HANDED_WAITING_MAX / 2).all(|each| each.from != late));
        // Who had places asks for more first, and leaves what is beyond his share.
        (0..=peers).for_each(&mut hand);
        let of_late = all.filter(|each| each.from == late).count();
        let share = HANDED_WAITING_MAX / (peers + 1);
        assert_eq!(of_late, HANDED_WAITING_MAX / 2 - peers / 2 * share);
    }

    #[test]
    fn what_is_ordered_makes_room_for_more_of_the_same_peer() {
        let (submissions, mut room) = (Submissions::default(), Room::default());
        let large = HANDED_UNORDERED_BYTES_PER_PEER_MAX / 2 + 1;
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        let payload = SignedPayload { signature_kind, signature, bytes: "{}".into() };
        let digest = payload.digest();
        let owner = Owner::of(&payload, None);
        submissions.reserve(digest, owner, 2, std::time::Instant::now()).expect("room");
        room.fill(digest, large);
        assert!(!room.has_for(large, &submissions));
        submissions.forget(&digest);
        assert!(room.has_for(large, &submissions));
        assert_eq!(room.bytes, 0);
    }
}
