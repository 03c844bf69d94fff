//! A chunk of a snapshot, read: the costly part of beginning again, which needs no state.
//!
//! Owns that every entry is decoded strictly and that its leaf is hashed. Total over all bytes,
//! and may run on any thread: chunks are taken in by the state one after another, whoever read
//! them. Called where a snapshot is read.

use std::ops::Range;

use dagger_payload::codec::{encode_over, is_canonical};
use dagger_payload::id::PayloadDigest;
use dagger_payload::object::{Effect, VmState};
use dagger_payload::snapshot::EFFECT_HEAD_BYTES;
use dagger_payload::state_tree::{Judgement, StateHasher, Subject};

use super::State;
use super::holdings::Held;
use super::kept::KeptVm;
use super::loading::Loading;
use super::snapshot::{ENTRY_HEAD_BYTES, Entry, Mark, SnapshotError};
use crate::judge::tree::Change;
use crate::verify::NameWord;

/// A chunk whose entries are in order, each by itself as it should be.
#[derive(Debug)]
pub struct ReadChunk {
    length: u64,
    /// Of those entries of which they are still needed.
    bytes: Vec<u8>,
    /// Its first and its last entry; none when there is none.
    ends: Option<(Mark, Mark)>,
    parts: Vec<Part>,
}

/// An entry, as far as it could be prepared.
#[derive(Debug)]
enum Part {
    Vm(Box<NewVm>),
    Remembered(Box<(PayloadDigest, Judgement, Change)>),
    /// One of the few others, and where it stands.
    Other(Box<Entry>, Range<usize>),
}

/// A VM that is there: most of a large state.
#[derive(Debug)]
struct NewVm {
    held: Held,
    name: NameWord,
    kept: KeptVm,
    leaf: Change,
}

impl ReadChunk {
    /// Reads the entries of one chunk.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn read(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let mut chunk = Self { length, bytes: Vec::new(), ends: None, parts: Vec::new() };
        let mut decoder = minicbor::Decoder::new(bytes);
        let (mut hasher, mut value) = (StateHasher::default(), Vec::new());
        while decoder.position() < bytes.len() {
            let from = decoder.position();
            let entry: Entry = decoder.decode().map_err(|_| SnapshotError::Malformed)?;
            // A reader tolerates longer lists than it knows, which would swallow the next entry.
            let written = from..decoder.position();
            let is_whole = !matches!(entry, Entry::Object(Effect::VmChanged(_)));
            if !is_whole || !is_canonical(&entry, &bytes[written.clone()]) {
                return Err(SnapshotError::Malformed);
            }
            let at = entry.mark();
            chunk.ends = match chunk.ends.take() {
                None => Some((at.clone(), at)),
                Some((_, last)) if at <= last => return Err(SnapshotError::Disordered),
                Some((first, _)) => Some((first, at)),
            };
            let part = match entry {
                Entry::Object(Effect::Vm(vm)) if vm.state() != VmState::Deleted => {
                    let object = &bytes[written][ENTRY_HEAD_BYTES + EFFECT_HEAD_BYTES..];
                    Part::Vm(Box::new(NewVm {
                        held: Held::of(&vm),
                        name: NameWord::from(&vm.name),
                        kept: KeptVm::new(object),
                        leaf: Change::set(&Subject::Vm(vm.id), object, &mut hasher),
                    }))
                }
                Entry::Remembered(digest, judgement) => {
                    encode_over(&judgement, &mut value);
                    let leaf = Change::set(&Subject::Payload(digest), &value, &mut hasher);
                    Part::Remembered(Box::new((digest, judgement, leaf)))
                }
                other => {
                    let from = chunk.bytes.len();
                    chunk.bytes.extend(&bytes[written]);
                    Part::Other(Box::new(other), from..chunk.bytes.len())
                }
            };
            chunk.parts.push(part);
        }
        Ok(chunk)
    }

    /// How many bytes the chunk has.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }
}

impl State {
    /// Takes in a chunk whose entries follow `mark`, which moves on. They come in order, so that no
    /// VM is there already; where its host gives the next address stands in one that comes later.
    ///
    /// # Errors
    /// [`SnapshotError`]; the state is worthless then.
    pub(crate) fn load_chunk(
        &mut self,
        chunk: ReadChunk,
        mark: &mut Mark,
        loading: &mut Loading,
    ) -> Result<(), SnapshotError> {
        let ReadChunk { length: _, bytes, ends, parts } = chunk;
        let Some((first, last)) = ends else { return Ok(()) };
        if first <= *mark || (*mark == Mark::Start) != (first == Mark::Order) {
            return Err(SnapshotError::Disordered);
        }
        *mark = last;
        for part in parts {
            match part {
                Part::Vm(vm) => {
                    let NewVm { held, name, kept, leaf } = *vm;
                    self.tree.change(leaf);
                    Self::load_vm(loading, held, name, kept);
                }
                Part::Remembered(remembered) => {
                    let (digest, judgement, leaf) = *remembered;
                    self.tree.change(leaf);
                    self.keep(digest, judgement);
                }
                Part::Other(entry, written) => self.load(*entry, &bytes[written]),
            }
        }
        Ok(())
    }
}
