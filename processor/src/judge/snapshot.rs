//! A judge written down and begun again from what was written.
//!
//! Owns the check that chunks lead to the root of their head. Never decides whether that root is
//! true: the ledger asks a quorum before it hands a snapshot in, and the agent before it acts.
//! Called by the daemon.

use dagger_payload::event::CommitEnd;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, Epoch, ProtocolVersion};
use dagger_payload::limits::SNAPSHOT_CHUNKS_MAX;
use dagger_payload::snapshot::{Anchor, HistoryRecord, SnapshotHead};

use super::state::State;
use super::state::loading::Loading;
pub use super::state::reading::ReadChunk;
use super::state::snapshot::Mark;
pub use super::state::snapshot::SnapshotError;
use super::{Judge, LooksMax};

/// A snapshot that is being made.
#[derive(Debug)]
pub struct Snapshot {
    head: SnapshotHead,
    mark: Mark,
    /// Where the judge stands while it is made.
    judged: CommitEnd,
}

impl Snapshot {
    /// One of the judge's state after the last commit that changed anything.
    pub fn begin(judge: &Judge) -> Self {
        let (end, judged) = (judge.changed, judge.end());
        let head = SnapshotHead { end, chunks: 0, bytes: 0, made_after: judged.index };
        Self { head, mark: Mark::Start, judged }
    }

    /// The next chunk; none when it is whole, or when the judge has gone on.
    pub fn next_chunk(&mut self, judge: &Judge) -> Option<Vec<u8>> {
        let same = judge.end() == self.judged && self.head.chunks < SNAPSHOT_CHUNKS_MAX;
        let chunk = same.then(|| judge.state.snapshot_chunk(&mut self.mark)).flatten()?;
        self.head.chunks += 1;
        self.head.bytes += u64::try_from(chunk.len()).expect("fits into 64 bits");
        Some(chunk)
    }

    /// The head of the whole snapshot; none when the judge has gone on, or the state is larger than
    /// any snapshot.
    pub fn finish(mut self, judge: &Judge) -> Option<SnapshotHead> {
        let whole = judge.state.snapshot_chunk(&mut self.mark).is_none();
        (whole && judge.end() == self.judged).then_some(self.head)
    }
}

/// A judge that is begun from a snapshot.
#[derive(Debug)]
pub struct Restoring {
    state: State,
    head: SnapshotHead,
    mark: Mark,
    loading: Loading,
    chunks: u32,
    bytes: u64,
}

impl Restoring {
    /// From the snapshot of this head.
    pub fn begin(genesis: Genesis, cluster: ClusterId, head: SnapshotHead) -> Self {
        let state = State::empty(&genesis, cluster);
        let loading = Loading::default();
        Self { state, head, mark: Mark::Start, loading, chunks: 0, bytes: 0 }
    }

    /// How many chunks are still to come.
    pub fn left(&self) -> u32 {
        self.head.chunks.min(SNAPSHOT_CHUNKS_MAX).saturating_sub(self.chunks)
    }

    /// Reads and takes in the next chunk.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn take(&mut self, chunk: &[u8]) -> Result<(), SnapshotError> {
        self.take_read(ReadChunk::read(chunk)?)
    }

    /// Takes in the next chunk, whoever read it.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn take_read(&mut self, chunk: ReadChunk) -> Result<(), SnapshotError> {
        self.chunks += 1;
        self.bytes = self.bytes.saturating_add(chunk.length());
        if self.chunks > self.head.chunks || self.bytes > self.head.bytes {
            return Err(SnapshotError::Incomplete);
        }
        self.state.load_chunk(chunk, &mut self.mark, &mut self.loading)
    }

    /// The judge, if all chunks together lead to the root of the head.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn finish(self) -> Result<Judge, SnapshotError> {
        let Self { mut state, head, loading, chunks, bytes, mark: _ } = self;
        if (chunks, bytes) != (head.chunks, head.bytes) {
            return Err(SnapshotError::Incomplete);
        }
        state.finish_loading(loading);
        let found = state.root();
        if found != head.end.state_root {
            return Err(SnapshotError::AnotherRoot { found });
        }
        // Every judged state has it; a head that nobody attests may be of anything.
        if !state.epochs.contains_key(&Epoch(0)) {
            return Err(SnapshotError::Malformed);
        }
        let (end, record) = (head.end, HistoryRecord::default());
        let (protocol_max, looks_max) = (ProtocolVersion::KNOWN, LooksMax::default());
        Ok(Judge { state, end, changed: end, record, protocol_max, looks_max })
    }
}

impl Judge {
    /// Where a life that begins with this judge begins.
    pub fn anchor(&self) -> Anchor {
        let (ledger_time, history) = (self.state.time, self.state.history);
        Anchor { end: self.end, ledger_time, history }
    }
}
