//! What a host holds in memory for others, counted, beside its maxima.
//!
//! Owns the list. Never limits anything: whoever holds something does. Called by the oracle that
//! watches the maxima.

use crate::Core;
use crate::limits::{
    MISSING_PER_PEER_MAX, OWN_SHOWN_MAX, ROUNDS_HELD_MAX, SUSPENDED_BYTES_OF_OTHERS_MAX,
    SUSPENDED_PER_PEER_MAX, TWINS_AT_ONCE_MAX, TWINS_HELD_MAX, TWINS_PER_AUTHOR_MAX,
};
use crate::quota::suspended_bytes_max;

/// How much of something is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Of what.
    pub what: &'static str,
    /// How much.
    pub count: u64,
    /// How much it may be.
    pub max: u64,
}

impl Core {
    /// Everything whose size others have a say in.
    pub fn held(&self) -> [Held; 11] {
        let configuration = &self.configuration;
        let depth = configuration.collection_depth_rounds;
        let members = u64::try_from(configuration.committee.members()).expect("few");
        let slots = u64::try_from(configuration.committee.leader_slots()).expect("few");
        let (rounds, twins, fates) = self.graph.held();
        let (of_one, waiting, missing) = self.intake.held();
        let held = |what, count: usize, max: u64| {
            let count = u64::try_from(count).expect("it is in memory");
            Held { what, count, max }
        };
        let most = |max: usize| u64::try_from(max).expect("a constant");
        let rounds_max = 2 * depth + ROUNDS_HELD_MAX;
        let commits_max = (depth + 1) * slots + configuration.handover_distance_commits;
        [
            Held { what: "rounds", count: rounds, max: rounds_max },
            // What comes while the floor is made to rise comes to each peer's account.
            held("twins", twins, most(TWINS_HELD_MAX) + 2 * members * TWINS_AT_ONCE_MAX),
            held("fates of events that are not here", fates, 2 * rounds_max * members),
            held("waiting events of a peer", of_one.count, most(SUSPENDED_PER_PEER_MAX)),
            held("their bytes", of_one.bytes, most(suspended_bytes_max(configuration.committee))),
            held(
                "bytes of waiting events of all that have no vote",
                self.intake.held_of_others().bytes,
                most(SUSPENDED_BYTES_OF_OTHERS_MAX),
            ),
            held(
                "parents that events of a peer wait for",
                of_one.parents,
                most(MISSING_PER_PEER_MAX),
            ),
            held("events that are waited for", missing, most(waiting) * (members + 1)),
            held(
                "unnamed twins of an author",
                self.intake.twins_kept(),
                most(TWINS_PER_AUTHOR_MAX),
            ),
            held("unjudged commits", self.judging.unjudged.len(), commits_max),
            held("own events that were shown", self.recovery.shown(), most(OWN_SHOWN_MAX)),
        ]
    }
}
