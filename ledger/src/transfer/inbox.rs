//! What peers send of snapshots, on its way from the driver to the client.
//!
//! Owns what is let in: the one part that is asked for now, of the peer that is asked for it, and
//! the newest offer of each peer. What a peer sends unasked takes no place from anybody. Never
//! reads a part. Filled by the driver, emptied by the client.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use dagger_payload::id::AuthorIndex;
use dagger_payload::peer::Part;
use tokio::sync::{mpsc, oneshot};

#[derive(Default)]
struct Waiting {
    asked: Option<Asked>,
    offers: BTreeMap<AuthorIndex, Bytes>,
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
    pub fn take(&self, from: AuthorIndex, part: Part, bytes: Bytes) {
        if self.offered.is_closed() {
            return;
        }
        let mut waiting = self.waiting.lock();
        if part == Part::Offer {
            waiting.offers.insert(from, bytes);
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
        std::mem::take(&mut self.waiting.lock().offers)
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::CommitIndex;

    use super::*;

    const HONEST: AuthorIndex = AuthorIndex(1);
    const LIAR: AuthorIndex = AuthorIndex(2);

    #[tokio::test]
    async fn parts_that_nobody_asked_a_peer_for_crowd_no_answer_and_no_offer_out() {
        let (inbox, mut parts) = inbox();
        let part = Part::Chunk { made_after: CommitIndex(9), number: 3 };
        let mut answer = parts.expect(HONEST, part);
        let other = Part::Chunk { made_after: CommitIndex(9), number: 4 };
        for _ in 0..10_000 {
            inbox.take(LIAR, part, Bytes::from_static(b"false"));
            inbox.take(LIAR, Part::Offer, Bytes::from_static(b"false"));
            inbox.take(HONEST, other, Bytes::from_static(b"late"));
        }
        assert!(answer.try_recv().is_err(), "another peer's part passed");
        inbox.take(HONEST, Part::Offer, Bytes::from_static(b"offer"));
        inbox.take(HONEST, part, Bytes::from_static(b"true"));
        assert_eq!(answer.try_recv().expect("comes through"), "true");
        let offers = parts.offers().await.expect("both are there");
        assert_eq!(offers.get(&HONEST).expect("is there"), "offer");
        assert_eq!(offers.len(), 2);
    }

    #[tokio::test]
    async fn nothing_is_kept_for_nobody_and_who_waits_for_offers_learns_of_the_end() {
        let (inbox, mut parts) = inbox();
        inbox.take(LIAR, Part::Offer, Bytes::from_static(b"offer"));
        drop(inbox);
        assert_eq!(parts.offers().await.expect("one is there").len(), 1);
        assert!(parts.offers().await.is_none());

        let (inbox, parts) = super::inbox();
        drop(parts);
        inbox.take(LIAR, Part::Offer, Bytes::from_static(b"offer"));
        assert!(inbox.waiting.lock().offers.is_empty());
    }
}
