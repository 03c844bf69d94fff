//! The witness: a small file outside the store's directory that repeats the last round which this
//! host has signed, so that a store that was restored from a copy, or emptied, is noticed before
//! anything is signed twice.
//!
//! Owns the file: two slots of 512 bytes, written in turn, so that a torn write leaves the older
//! one. A slot is `dagger witness 1`, the instance id, epoch and round (big endian) and eight bytes
//! of a BLAKE3 hash over them. The round is written after the event is durable in the store and
//! before it is sent: so the witness never claims more than an intact store knows. Called by the
//! store's writer and at start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use dagger_payload::id::{Epoch, Round};

use super::records::InstanceId;

const MAGIC: &[u8; 16] = b"dagger witness 1";
/// Size of a slot.
pub const SLOT_BYTES: usize = 512;
const CONTENT_BYTES: usize = 48;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Testimony {
    /// The store that wrote it.
    pub instance: InstanceId,
    /// The last round of this host's events; round 0 says that the epoch has begun.
    pub signed: Signed,
}

/// How far a host has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signed {
    /// In which epoch.
    pub epoch: Epoch,
    /// Up to which round.
    pub round: Round,
}

/// The open file.
pub struct Witness {
    file: File,
    next_slot: u64,
}

/// The bytes of a slot that says `testimony`.
pub fn to_slot(testimony: &Testimony) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..16].copy_from_slice(MAGIC);
    slot[16..32].copy_from_slice(&testimony.instance.0[..]);
    slot[32..40].copy_from_slice(&testimony.signed.epoch.0.to_be_bytes());
    slot[40..CONTENT_BYTES].copy_from_slice(&testimony.signed.round.0.to_be_bytes());
    let checksum = checksum(&slot[..CONTENT_BYTES]);
    slot[CONTENT_BYTES..CONTENT_BYTES + 8].copy_from_slice(&checksum);
    slot
}

fn checksum(content: &[u8]) -> [u8; 8] {
    let mut checksum = [0; 8];
    let mut hasher = blake3::Hasher::new_derive_key("dagger v1 witness");
    hasher.update(content).finalize_xof().fill(&mut checksum);
    checksum
}

fn from_slot(slot: &[u8]) -> Option<Testimony> {
    let content = slot.get(..CONTENT_BYTES)?;
    let known = content.starts_with(MAGIC)
        && slot.get(CONTENT_BYTES..CONTENT_BYTES + 8)? == checksum(content);
    let instance: [u8; 16] = content[16..32].try_into().ok()?;
    let number = |at: usize| Some(u64::from_be_bytes(content[at..at + 8].try_into().ok()?));
    let signed = Signed { epoch: Epoch(number(32)?), round: Round(number(40)?) };
    known.then_some(Testimony { instance: InstanceId(instance.into()), signed })
}

/// The newest testimony of both slots, if one is whole, and the slot to be written next.
pub fn newest_of(slots: &[u8; SLOT_BYTES * 2]) -> (Option<Testimony>, u64) {
    let slots = [from_slot(&slots[..SLOT_BYTES]), from_slot(&slots[SLOT_BYTES..])];
    let newest = slots.into_iter().flatten().max_by_key(|testimony| testimony.signed);
    (newest, u64::from(slots[0].is_some() && slots[0] == newest))
}

impl Witness {
    /// Opens the file at `path` (made with mode 0600 when missing) and reads it; no testimony when
    /// it is new, empty or unreadable.
    ///
    /// # Errors
    /// The file or its directory cannot be used.
    pub fn open(path: &Path) -> io::Result<(Self, Option<Testimony>)> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let mut bytes = [0; SLOT_BYTES * 2];
        let mut length = 0;
        while length < bytes.len() {
            let offset = u64::try_from(length).expect("at most 1024");
            match file.read_at(&mut bytes[length..], offset)? {
                0 => break,
                count => length += count,
            }
        }
        let (newest, next_slot) = newest_of(&bytes);
        Ok((Self { file, next_slot }, newest))
    }

    /// Writes a testimony and returns once it survives a power cut.
    ///
    /// # Errors
    /// Broken: the disk failed.
    pub fn write(&mut self, testimony: &Testimony) -> io::Result<()> {
        let offset = self.next_slot * u64::try_from(SLOT_BYTES).expect("512");
        self.file.write_all_at(&to_slot(testimony), offset)?;
        self.file.sync_data()?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn testimony(round: u64) -> Testimony {
        // A later epoch is newer, whatever its round.
        let signed = Signed { epoch: Epoch(round / 3), round: Round(round % 3) };
        Testimony { instance: InstanceId([7; 16].into()), signed }
    }

    #[test]
    fn the_newest_whole_slot_counts_and_a_torn_write_leaves_the_one_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("witness/last-round");
        let (mut witness, before) = Witness::open(&path).expect("opens");
        assert_eq!(before, None);
        for round in 1..=5 {
            witness.write(&testimony(round)).expect("writes");
            let (reopened, newest) = Witness::open(&path).expect("opens");
            assert_eq!(newest, Some(testimony(round)));
            assert_eq!(reopened.next_slot, witness.next_slot);
        }
        // Round 6 would go into the second slot: it is torn in the middle of the round.
        assert_eq!(witness.next_slot, 1);
        witness.file.write_all_at(&to_slot(&testimony(6))[..44], 512).expect("writes");
        assert_eq!(Witness::open(&path).expect("opens").1, Some(testimony(5)));
    }
}
