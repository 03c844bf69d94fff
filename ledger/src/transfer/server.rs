//! Parts for another ledger, from the store.
//!
//! Owns how much one answer carries. Never decides who may have it: every member may. Called by the
//! driver's servers, on a thread that may block.

use bytes::Bytes;
use dagger_payload::codec;
use dagger_payload::id::CommitIndex;
use dagger_payload::peer::Part;

use super::Piece;
use crate::limits::{PART_BYTES_MAX, PIECE_BYTES_MAX};
use crate::store::StoreError;
use crate::store::records::Records;
use crate::store::releases::Cut;

/// The bytes of a part; empty when it is not here, or too large to be sent.
///
/// # Errors
/// [`StoreError`].
pub fn part(records: &Records, part: Part) -> Result<Bytes, StoreError> {
    let bytes: Bytes = match part {
        Part::Offer => records.newest_offer()?.map(|offer| codec::encode(&offer).into()),
        Part::Frontier { commit, offset } => {
            let frontier = records.frontier(commit)?;
            frontier.map(|frontier| piece(&codec::encode(&frontier).into(), offset))
        }
        Part::Chunk { made_after, number } => records.offered_chunk(made_after, number)?,
        Part::Past { after, through, offset } => Some(past(records, (after, through), offset)?),
        Part::Handover { epoch, offset } => {
            let beginning = records.beginning_of(epoch)?;
            beginning.map(|beginning| piece(&codec::encode(&beginning).into(), offset))
        }
    }
    .unwrap_or_default();
    Ok(if bytes.len() > PART_BYTES_MAX { Bytes::new() } else { bytes })
}

/// A piece of the next releases. One alone may be larger than a frame.
fn past(
    records: &Records,
    range: (CommitIndex, CommitIndex),
    offset: u64,
) -> Result<Bytes, StoreError> {
    let Cut { total, bytes } = records.past_piece(range, offset)?;
    let total = u64::try_from(total).expect("a length fits into 64 bits");
    Ok(codec::encode(&Piece { total, bytes: bytes.into() }).into())
}

/// What of `whole` follows `offset`, as far as one answer carries it.
fn piece(whole: &Bytes, offset: u64) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(whole.len());
    let end = start.saturating_add(PIECE_BYTES_MAX).min(whole.len());
    let total = u64::try_from(whole.len()).expect("a length fits into 64 bits");
    codec::encode(&Piece { total, bytes: whole.slice(start..end) }).into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use dagger_ledger_core::{CommitRecord, Frontier, Record};
    use dagger_payload::event::{CommitEnd, Parent};
    use dagger_payload::id::{
        AuthorIndex, Epoch, EventDigest, LedgerTime, Position, PrefixHash, Round, StateRoot,
    };
    use dagger_payload::key::Signature;
    use dagger_payload::payload::{SignatureKind, SignedPayload};
    use dagger_payload::release::{CommitRelease, OrderedPayload, Release, SealedRelease, Verdict};
    use dagger_payload::snapshot::PastReleases;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::pool::Pool;
    use crate::store::records::{Recorder, release_change};
    use crate::store::{Change, Direction, Entry, Look, Room, Store, Table};

    const RELEASES: u64 = 32;
    const RELEASE_BYTES: usize = 2 * 1024 * 1024;

    /// Counts what is copied.
    #[derive(Default)]
    struct Counting {
        store: MemoryStore,
        bytes: AtomicUsize,
    }

    impl Store for Counting {
        fn commit(&self, changes: &[Change]) -> Result<(), StoreError> {
            self.store.commit(changes)
        }

        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            self.store.get(table, key)
        }

        fn page(
            &self,
            table: Table,
            from: &[u8],
            direction: Direction,
            count_max: usize,
        ) -> Result<Vec<Entry>, StoreError> {
            let page = self.store.page(table, from, direction, count_max)?;
            let bytes = page.iter().map(|(_, value)| value.len()).sum();
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            Ok(page)
        }

        fn visit(&self, table: Table, from: &[u8], look: &mut Look<'_>) -> Result<(), StoreError> {
            self.store.visit(table, from, look)
        }

        fn room(&self) -> Result<Room, StoreError> {
            self.store.room()
        }

        fn used_bytes(&self) -> Result<u64, StoreError> {
            self.store.used_bytes()
        }
    }

    fn release(index: u64, bytes: usize) -> SealedRelease {
        let end = CommitEnd {
            index: CommitIndex(index),
            position: Position(index),
            prefix_hash: PrefixHash::ZERO,
            state_root: StateRoot::ZERO,
        };
        let (signature_kind, signature) = (SignatureKind::SshEd25519, Signature([3; 64]));
        let payload = SignedPayload { signature_kind, signature, bytes: vec![0; bytes].into() };
        let release = Release {
            position: Position(index),
            digest: payload.digest(),
            ordered: OrderedPayload { author: AuthorIndex(0), payload },
            verdict: Verdict::Accepted,
            effects: Vec::new(),
        };
        let (releases, time_effects) = (vec![release], Vec::new());
        let release = CommitRelease { end, ledger_time: LedgerTime(index), releases, time_effects };
        SealedRelease { release, seal: Signature([1; 64]) }
    }

    fn asked(store: &Arc<Counting>, offset: u64) -> Piece {
        let records = Records::new(store.clone());
        let (after, through) = (CommitIndex(0), CommitIndex(RELEASES));
        let bytes = part(&records, Part::Past { after, through, offset }).expect("reads");
        codec::decode(&bytes).expect("a piece")
    }

    #[test]
    fn a_frontier_that_is_larger_than_a_frame_comes_in_pieces() {
        let store = Arc::new(MemoryStore::default());
        let records = Records::new(store.clone());
        let parent = |round, author| Parent { author, round, digest: EventDigest([7; 32]) };
        let commit = |index: u64| CommitRecord {
            index: CommitIndex(index),
            leader: parent(Round(index), AuthorIndex(0)),
            slot: 0,
            events: (0..128).map(|author| parent(Round(index), AuthorIndex(author))).collect(),
            forked: Vec::new(),
            first_position: Position(1),
            last_position: Position(0),
            ledger_time: LedgerTime(index),
            prefix_hash: PrefixHash::ZERO,
            collection_round: Round(1),
            floor: Round(0),
            epoch: Epoch(0),
        };
        let last = 400;
        let commits: Vec<_> = (1..=last).map(|index| Record::Commit(commit(index))).collect();
        let mut recorder = Recorder::new(AuthorIndex(0), (Epoch(0), &[]), Pool::default());
        store.commit(&recorder.changes_of(&commits).0).expect("commits");
        let frontier = records.frontier(CommitIndex(last)).expect("reads").expect("whole");
        let mut whole = Vec::new();
        loop {
            let offset = u64::try_from(whole.len()).expect("fits");
            let asked = Part::Frontier { commit: CommitIndex(last), offset };
            let answer = part(&records, asked).expect("reads");
            assert!(answer.len() <= PART_BYTES_MAX);
            let piece: Piece = codec::decode(&answer).expect("a piece");
            whole.extend_from_slice(&piece.bytes);
            if u64::try_from(whole.len()).expect("fits") == piece.total {
                break;
            }
        }
        assert!(whole.len() > PART_BYTES_MAX, "{}", whole.len());
        assert_eq!(codec::decode::<Frontier>(&whole).expect("reads"), frontier);
        let none = Part::Frontier { commit: CommitIndex(last + 1), offset: 0 };
        assert_eq!(part(&records, none).expect("reads"), Bytes::new());
    }

    #[test]
    fn a_piece_of_a_large_release_is_cut_out_of_it_unread_and_small_ones_share_a_piece() {
        let store = Arc::new(Counting::default());
        let changes: Vec<_> =
            (1..=RELEASES).map(|index| release_change(&release(index, RELEASE_BYTES))).collect();
        store.commit(&changes).expect("commits");
        let first = asked(&store, 0);
        let read = store.bytes.load(Ordering::Relaxed);
        assert!(read <= PIECE_BYTES_MAX, "{read} bytes were copied for one piece");
        assert_eq!(first.bytes.len(), PIECE_BYTES_MAX);
        // Its rest follows, and nothing of the next release.
        let mut whole = first.bytes.to_vec();
        while u64::try_from(whole.len()).expect("fits") < first.total {
            let next = asked(&store, u64::try_from(whole.len()).expect("fits"));
            assert_eq!(next.total, first.total);
            whole.extend_from_slice(&next.bytes);
        }
        let page: PastReleases = codec::decode(&whole).expect("is whole");
        assert_eq!(page.0, [release(1, RELEASE_BYTES)]);

        let small: Vec<_> =
            (1..=RELEASES).map(|index| release_change(&release(index, 100))).collect();
        store.commit(&small).expect("commits");
        let page: PastReleases = codec::decode(&asked(&store, 0).bytes).expect("is whole");
        assert_eq!(page.0.len(), small.len());
        // From wherever the asker goes on, the rest is that of the same whole.
        let whole = codec::encode(&page);
        for offset in [1, 2, 3, 4, 100, whole.len() - 1, whole.len(), whole.len() + 9] {
            let rest = asked(&store, u64::try_from(offset).expect("fits"));
            assert_eq!(rest.bytes, whole[offset.min(whole.len())..], "from {offset}");
            assert_eq!(rest.total, u64::try_from(whole.len()).expect("fits"));
        }
        let none = Part::Past { after: CommitIndex(RELEASES), through: CommitIndex(99), offset: 0 };
        let none: Piece =
            codec::decode(&part(&Records::new(store), none).expect("reads")).expect("a piece");
        assert_eq!(none.bytes, codec::encode(&PastReleases(Vec::new())));
    }
}
