//! Attested versions of volumes, as this host's agent is told them.

use dagger_agent::handover::AttestedVolume;
use dagger_payload::id::{AccountId, CommitIndex, Generation, PayloadDigest, Position, VolumeId};
use dagger_payload::kind::Protection;
use dagger_payload::object::Cause;
use dagger_payload::volume::{Volume, VolumeDisk, VolumeUse, VolumeWanted};

use super::versions::HERE;

/// The payload that made the first generation.
pub(crate) const CAUSE: Cause = Cause { digest: PayloadDigest([1; 32]), position: Position(1) };

/// A volume of one GiB that is being made.
pub(crate) fn new_volume(id: VolumeId) -> AttestedVolume {
    let volume = Volume {
        id,
        account: AccountId([5; 16]),
        name: "data".parse().unwrap(),
        generation: Generation(1),
        created: CAUSE,
        changed: CAUSE,
        wanted: VolumeWanted::Kept,
        size_gib: 1,
        host: HERE,
        used_by: VolumeUse::Free {},
        disk: VolumeDisk::NotReported,
        reported: None,
        meter: dagger_payload::usage::Meter::NEW,
        protection: Protection::Unprotected,
        snapshots: Vec::new(),
        restoring: None,
        origin: None,
    };
    AttestedVolume { volume, commit: CommitIndex(1) }
}
