//! The door and a judge's second life in the model test.
//!
//! Owns what the door must say of a lone payload, given what the judge then says of it, and the
//! change of the judge for one that began from its snapshot. Never judges. Called by the run.

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{ClusterId, HostId, ProtocolVersion};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{Release, Verdict};
use dagger_processor::judge::Judge;
use dagger_processor::judge::snapshot::{Restoring, Snapshot};

use super::state::Model;

/// Holds the door's word against the judge's, which came at the same ledger time.
pub(crate) fn compare(said: &AdmissionOutcome, release: &Release, context: &str) {
    let agree = match (said, &release.verdict) {
        (AdmissionOutcome::Admitted { digest, .. }, Verdict::Accepted) => *digest == release.digest,
        // What is remembered is forgotten, once it has expired, with the next commit only.
        (AdmissionOutcome::Known { digest }, Verdict::Refused(refusal)) => {
            let codes = [RefusalCode::Duplicate, RefusalCode::Expired];
            *digest == release.digest && codes.contains(&refusal.code)
        }
        (AdmissionOutcome::Refused { refusal: door }, Verdict::Refused(judge)) => {
            door.code == judge.code
        }
        _ => false,
    };
    assert!(agree, "{context}: the door says {said:?}, the judge {:?}", release.verdict);
}

/// Hosts that offers pass by: what the next commit's authors change of it, the door cannot know.
pub(crate) fn silent(model: &Model) -> Vec<HostId> {
    let hosts = model.seats.iter().map(|seat| seat.host);
    hosts.filter(|host| model.is_silent(*host)).collect()
}

/// One that was begun from the snapshot of `judge`; none if its last commit changed nothing, which
/// no snapshot holds.
pub(crate) fn reborn(judge: &Judge, genesis: Genesis, cluster: ClusterId) -> Option<Judge> {
    let mut making = Snapshot::begin(judge);
    let chunks: Vec<_> = std::iter::from_fn(|| making.next_chunk(judge)).collect();
    let head = making.finish(judge).expect("the judge stands still");
    if head.end != judge.end() {
        return None;
    }
    let mut restoring = Restoring::begin(genesis, cluster, head);
    for chunk in &chunks {
        restoring.take(chunk).expect("a chunk of a true snapshot");
    }
    Some(restoring.finish().expect("a true snapshot").knowing(ProtocolVersion(u32::MAX)))
}
