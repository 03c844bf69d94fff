//! Parts for another ledger, from the store.
//!
//! Owns how much one answer carries. Never decides who may have it: every member may. Called by the
//! driver's servers, on a thread that may block.

use bytes::Bytes;
use dagger_payload::codec;
use dagger_payload::id::CommitIndex;
use dagger_payload::peer::Part;
use dagger_payload::snapshot::PastReleases;

use super::Piece;
use crate::limits::{PART_BYTES_MAX, STORE_PAGE_RELEASES};
use crate::store::StoreError;
use crate::store::records::Records;

/// The bytes of a part; empty when it is not here, or too large to be sent.
///
/// # Errors
/// [`StoreError`].
pub fn part(records: &Records, part: Part) -> Result<Bytes, StoreError> {
    let bytes: Bytes = match part {
        Part::Offer => records.newest_offer()?.map(|offer| codec::encode(&offer).into()),
        Part::Frontier { commit } => {
            records.frontier(commit)?.map(|frontier| codec::encode(&frontier).into())
        }
        Part::Chunk { made_after, number } => records.snapshot_chunk_here(made_after, number)?,
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
    (after, through): (CommitIndex, CommitIndex),
    offset: u64,
) -> Result<Bytes, StoreError> {
    let mut releases = Vec::new();
    let mut bytes = 0;
    for release in records.releases(after, through, STORE_PAGE_RELEASES)? {
        bytes += codec::encode(&release).len();
        if bytes > PART_BYTES_MAX / 2 && !releases.is_empty() {
            break;
        }
        releases.push(release);
    }
    Ok(piece(&codec::encode(&PastReleases(releases)).into(), offset))
}

/// What of `whole` follows `offset`, as far as one answer carries it.
fn piece(whole: &Bytes, offset: u64) -> Bytes {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(whole.len());
    let end = start.saturating_add(PART_BYTES_MAX / 2).min(whole.len());
    let total = u64::try_from(whole.len()).expect("a length fits into 64 bits");
    codec::encode(&Piece { total, bytes: whole.slice(start..end) }).into()
}
