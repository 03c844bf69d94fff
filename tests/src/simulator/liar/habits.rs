//! How a liar prefers to lie.
//!
//! Owns the chances and their drawing. Never lies. Called by the liar.

use super::Random;

/// How this liar prefers to lie; all chances in thousandths.
#[derive(Debug, Default, Clone)]
pub(super) struct Habits {
    /// Grows a second chain from some event on.
    pub(super) twin: u64,
    /// Keeps an event from a given peer.
    pub(super) withhold: u64,
    /// Answers a peer's wish for an event.
    pub(super) answer: u64,
    /// Names a parent that does not exist, or under a false place.
    pub(super) false_parent: u64,
    /// Leaves a peer's event out, or names an older one.
    pub(super) old_parent: u64,
    /// Attests something false.
    pub(super) false_attestation: u64,
    /// Claims a clock far off.
    pub(super) false_clock: u64,
    /// Packs payloads, its own and repeated ones of others.
    pub(super) payloads: u64,
    /// Leaves rounds out.
    pub(super) jump: u64,
    /// Says nothing at all this time.
    pub(super) silence: u64,
    /// Sends bytes that are no valid event, and idle wishes and claims.
    pub(super) noise: u64,
    /// Votes at once for what it hears.
    pub(super) fast: u64,
    /// Sends old events again.
    pub(super) old_events: u64,
    /// Lets all go that it kept back.
    pub(super) flood: u64,
}

impl Habits {
    /// Those of one liar.
    pub(super) fn drawn(random: &mut Random) -> Self {
        let mut habit = |choices: &[u64]| random.choose(choices);
        Self {
            twin: habit(&[0, 100, 300, 600]),
            withhold: habit(&[0, 100, 500]),
            answer: habit(&[0, 500, 1000]),
            false_parent: habit(&[0, 0, 50]),
            old_parent: habit(&[0, 100, 400]),
            false_attestation: habit(&[0, 300, 1000]),
            false_clock: habit(&[0, 200, 1000]),
            payloads: habit(&[0, 100, 500]),
            jump: habit(&[0, 100, 900]),
            silence: habit(&[0, 200, 950]),
            noise: habit(&[0, 50, 300]),
            fast: habit(&[0, 0, 300]),
            old_events: habit(&[0, 50, 300]),
            flood: habit(&[0, 0, 30]),
        }
    }

    /// Says nothing that others would not, and answers everything.
    pub(super) fn blameless() -> Self {
        Self { answer: 1_000, ..Self::default() }
    }
}
