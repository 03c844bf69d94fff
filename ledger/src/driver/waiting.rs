//! What waits until a write is durable.
//!
//! Owns its order, and the bound on what one peer makes wait: while the store is full nothing
//! becomes durable, and a peer may ask again and again. Answers above the bound are left out, and
//! the peer asks again; what this host makes known to all, and what it does itself, always waits.
//! Called by the driver.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dagger_ledger_core::WriteNumber;
use dagger_payload::event::Event;
use dagger_payload::handover::Handover;
use dagger_payload::id::AuthorIndex;
use dagger_payload::peer::PeerMessage;
use dagger_payload::release::OrderedCommit;

use crate::limits::{ANSWERS_WAITING_BYTES_PER_PEER_MAX, ANSWERS_WAITING_PER_PEER_MAX};

/// What is to be done then.
pub(super) enum Waiting {
    Send(AuthorIndex, PeerMessage),
    Broadcast(PeerMessage),
    Committed(OrderedCommit),
    Stored(Arc<Event>),
    EpochBegan(Handover),
}

/// What waits for one peer alone.
#[derive(Default)]
struct Answers {
    count: usize,
    bytes: usize,
}

/// All that waits, in order.
#[derive(Default)]
pub(super) struct WaitingLine {
    line: VecDeque<(WriteNumber, Waiting)>,
    answers: BTreeMap<AuthorIndex, Answers>,
    /// Whether it waits already to tell all what is here: every second says it anew.
    tells_have: bool,
}

/// Roughly what a message holds.
fn bytes_of(message: &PeerMessage) -> usize {
    const SMALL_BYTES: usize = 256;
    SMALL_BYTES
        + match message {
            PeerMessage::Event { bytes } => bytes.len(),
            PeerMessage::Want { events, .. } => size_of_val(events.as_slice()),
            PeerMessage::Have { highest, .. } => size_of_val(highest.as_slice()),
            _ => 0,
        }
}

impl WaitingLine {
    /// Adds what waits for this write, unless it is one answer too many.
    pub(super) fn push(&mut self, after: WriteNumber, what: Waiting) {
        if let Waiting::Broadcast(PeerMessage::Have { .. }) = &what
            && std::mem::replace(&mut self.tells_have, true)
        {
            return;
        }
        if let Waiting::Send(to, message) = &what {
            let (answers, bytes) = (self.answers.entry(*to).or_default(), bytes_of(message));
            if answers.count >= ANSWERS_WAITING_PER_PEER_MAX
                || answers.bytes + bytes > ANSWERS_WAITING_BYTES_PER_PEER_MAX
            {
                return;
            }
            answers.count += 1;
            answers.bytes += bytes;
        }
        self.line.push_back((after, what));
    }

    /// The next of those that wait for no later write than this one.
    pub(super) fn pop(&mut self, durable: WriteNumber) -> Option<Waiting> {
        let (_, what) = self.line.pop_front_if(|(after, _)| *after <= durable)?;
        if let Waiting::Send(to, message) = &what
            && let Some(answers) = self.answers.get_mut(to)
        {
            answers.count -= 1;
            answers.bytes -= bytes_of(message);
        }
        if let Waiting::Broadcast(PeerMessage::Have { .. }) = &what {
            self.tells_have = false;
        }
        Some(what)
    }

    /// What waits for a later write than this one.
    pub(super) fn beyond(&self, handed: WriteNumber) -> impl Iterator<Item = &Waiting> {
        let beyond = self.line.iter().rev().take_while(move |(after, _)| *after > handed);
        beyond.map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dagger_payload::id::Epoch;

    use super::*;

    const GREEDY: AuthorIndex = AuthorIndex(1);
    const OTHER: AuthorIndex = AuthorIndex(2);

    fn event(bytes: usize) -> PeerMessage {
        PeerMessage::Event { bytes: Bytes::from(vec![0; bytes]) }
    }

    fn own(nonce: u64) -> PeerMessage {
        PeerMessage::AskRecovery { nonce, epoch: Epoch(0) }
    }

    fn sent_to(line: &WaitingLine, peer: AuthorIndex) -> usize {
        let of_peer = |what: &&Waiting| matches!(what, Waiting::Send(to, _) if *to == peer);
        line.beyond(WriteNumber(0)).filter(of_peer).count()
    }

    #[test]
    fn while_the_store_is_full_a_peer_that_asks_without_end_makes_a_bounded_number_wait() {
        let mut line = WaitingLine::default();
        let number = WriteNumber(1);
        // One large event, asked for again and again: its bytes are counted each time.
        for (message, most) in [
            (event(1000 * 1024), ANSWERS_WAITING_BYTES_PER_PEER_MAX / (1000 * 1024)),
            (event(100), ANSWERS_WAITING_PER_PEER_MAX),
        ] {
            for nonce in 0..100_000 {
                line.push(number, Waiting::Send(GREEDY, message.clone()));
                if nonce % 1_000 == 0 {
                    line.push(number, Waiting::Broadcast(own(nonce)));
                    line.push(number, Waiting::Send(OTHER, event(100)));
                }
            }
            assert_eq!(sent_to(&line, GREEDY), most);
            assert_eq!(sent_to(&line, OTHER), 100, "another peer pays for it");
            assert!(line.pop(WriteNumber(0)).is_none(), "nothing is durable yet");
            let mut told = Vec::new();
            while let Some(what) = line.pop(number) {
                if let Waiting::Broadcast(message) = what {
                    told.push(message);
                }
            }
            let all: Vec<_> = (0..100).map(|thousand| own(thousand * 1_000)).collect();
            assert_eq!(told, all, "what this host tells all is never left out");
        }
        for _ in 0..100 {
            let have = PeerMessage::Have { highest: Vec::new(), epoch: Epoch(0) };
            line.push(number, Waiting::Broadcast(have));
        }
        assert_eq!(line.beyond(WriteNumber(0)).count(), 1, "what is here is told once");
        assert!(line.pop(number).is_some());
        // Room again: it is answered as before.
        line.push(number, Waiting::Send(GREEDY, event(100)));
        assert_eq!(sent_to(&line, GREEDY), 1);
    }
}
