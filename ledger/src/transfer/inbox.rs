//! What peers send of snapshots, on its way from the driver to the client.
//!
//! Owns what is let in: the one part that is asked for now, of the peer that is asked for it, and
//! the newest offer of each peer that votes and of some others. What a peer sends unasked takes no
//! place from who votes. Never reads a part. Filled by the driver, emptied by the client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use dagger_payload::id::AuthorIndex;
use dagger_payload::peer::Part;
use tokio::sync::{mpsc, oneshot};

use crate::limits::{OFFER_BYTES_MAX, OFFERS_OF_OTHERS_MAX};
use crate::link::share::Standing;

#[derive(Default)]
struct Waiting {
    asked: Option<Asked>,
    offers: BTreeMap<AuthorIndex, (Standing, Bytes)>,
}

impl Waiting {
    /// Who votes always has a place; of the others a few have.
    fn has_place_for(&self, peer: AuthorIndex, standing: Standing) -> bool {
        let others =
            self.offers.iter().filter(|(other, (of, _))| **other != peer && *of == standing);
        standing == Standing::Votes || others.count() < OFFERS_OF_OTHERS_MAX
    }
}

/// The question that is open.
struct Asked {
    peer: AuthorIndex,
    part: Part,
    answer: oneshot::Sender<Bytes>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Waiting>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// The driver's end.
pub struct Inbox {
    waiting: Shared,
    /// One note, however many offers wait.
    offered: mpsc::Sender<()>,
}

/// The client's end.
pub struct Parts {
    waiting: Shared,
    offered: mpsc::Receiver<()>,
}

/// Both ends.
pub fn inbox() -> (Inbox, Parts) {
    let waiting = Shared::default();
    let (noting, offered) = mpsc::channel(1);
    (Inbox { waiting: waiting.clone(), offered: noting }, Parts { waiting, offered })
}

impl Inbox {
    /// A peer has sent a part.
    pub fn take(&self, (from, standing): (AuthorIndex, Standing), part: Part, bytes: Bytes) {
        if self.offered.is_closed() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if part == Part::Offer {
            if bytes.len() <= OFFER_BYTES_MAX && waiting.has_place_for(from, standing) {
                waiting.offers.insert(from, (standing, bytes));
            }
            // A note that lies there already says the same.
            let _ = self.offered.try_send(());
        } else if let Some(asked) =
            waiting.asked.take_if(|asked| (asked.peer, asked.part) == (from, part))
        {
            // Who asked may have given up.
            let _ = asked.answer.send(bytes);
        }
    }
}

impl Parts {
    /// From now on this part of this peer is let in, once, and no other one.
    pub fn expect(&self, peer: AuthorIndex, part: Part) -> oneshot::Receiver<Bytes> {
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().asked = Some(Asked { peer, part, answer });
        answered
    }

    /// Waits for offers; none when the daemon stops.
    pub async fn offers(&mut self) -> Option<BTreeMap<AuthorIndex, Bytes>> {
        self.offered.recv().await?;
        Some(self.offers_now())
    }

    /// The offers that are here.
    pub fn offers_now(&self) -> BTreeMap<AuthorIndex, Bytes> {
        let offers = std::mem::take(&mut self.waiting.lock().offers);
        offers.into_iter().map(|(peer, (_, offer))| (peer, offer)).collect()
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::CommitIndex;

    use super::*;

    const HONEST: AuthorIndex = AuthorIndex(1);
    const LIAR: AuthorIndex = AuthorIndex(2);
    const FROM_HONEST: (AuthorIndex, Standing) = (HONEST, Standing::Votes);
    const FROM_LIAR: (AuthorIndex, Standing) = (LIAR, Standing::Votes);

    #[tokio::test]
    async fn offers_of_many_without_a_vote_hold_little_and_crowd_no_voter_out() {
        let (inbox, mut parts) = inbox();
        let offer = Bytes::from(vec![0; OFFER_BYTES_MAX]);
        for other in 3..1_000 {
            let from = (AuthorIndex(other), Standing::Follows);
            inbox.take(from, Part::Offer, offer.clone());
            inbox.take(from, Part::Offer, offer.clone());
        }
        inbox.take(FROM_HONEST, Part::Offer, offer.clone());
        inbox.take(FROM_LIAR, Part::Offer, Bytes::from(vec![0; OFFER_BYTES_MAX + 1]));
        let offers = parts.offers().await.expect("many are there");
        assert_eq!(offers.len(), OFFERS_OF_OTHERS_MAX + 1);
        assert!(offers.contains_key(&HONEST));
    }

    #[tokio::test]
    async fn parts_that_nobody_asked_a_peer_for_crowd_no_answer_and_no_offer_out() {
        let (inbox, mut parts) = inbox();
        let part = Part::Chunk { made_after: CommitIndex(9), number: 3 };
        let mut answer = parts.expect(HONEST, part);
        let other = Part::Chunk { made_after: CommitIndex(9), number: 4 };
        for _ in 0..10_000 {
            inbox.take(FROM_LIAR, part, Bytes::from_static(b"false"));
            inbox.take(FROM_LIAR, Part::Offer, Bytes::from_static(b"false"));
            inbox.take(FROM_HONEST, other, Bytes::from_static(b"late"));
        }
        assert!(answer.try_recv().is_err(), "another peer's part passed");
        inbox.take(FROM_HONEST, Part::Offer, Bytes::from_static(b"offer"));
        inbox.take(FROM_HONEST, part, Bytes::from_static(b"true"));
        assert_eq!(answer.try_recv().expect("comes through"), "true");
        let offers = parts.offers().await.expect("both are there");
        assert_eq!(offers.get(&HONEST).expect("is there"), "offer");
        assert_eq!(offers.len(), 2);
    }

    #[tokio::test]
    async fn nothing_is_kept_for_nobody_and_who_waits_for_offers_learns_of_the_end() {
        let (inbox, mut parts) = inbox();
        inbox.take(FROM_LIAR, Part::Offer, Bytes::from_static(b"offer"));
        drop(inbox);
        assert_eq!(parts.offers().await.expect("one is there").len(), 1);
        assert!(parts.offers().await.is_none());

        let (inbox, parts) = super::inbox();
        drop(parts);
        inbox.take(FROM_LIAR, Part::Offer, Bytes::from_static(b"offer"));
        assert!(inbox.waiting.lock().offers.is_empty());
    }
}
