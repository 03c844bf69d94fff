//! What a liar may do.
//!
//! Owns the list. Called by liars, and by whoever counts lies.

/// A kind of lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LieKind {
    /// Two events for a round, shown to different peers.
    Twin,
    /// An event is shown to a peer that was shown another twin in its history.
    TwinAsAncestor,
    /// An event is kept from a peer that will see what is built on it.
    WithheldParent,
    /// A parent that does not exist, or under a false place.
    FalseParent,
    /// An attestation of what was never judged.
    FalseAttestation,
    /// A timestamp far off.
    FalseClock,
    /// A vote that is made at once and without payloads, ahead of what others would wait for.
    FastEmptyVote,
    /// Events of long ago, sent again.
    OldEvents,
    /// Bytes that are no valid event, idle wishes and false claims.
    Garbage,
    /// Nothing is said for a turn.
    Silence,
    /// Everything that was kept back, at once and to everybody.
    LateFlood,
    /// A payload in an event that nobody may name, shown in silence.
    UnnamedPayload,
    /// A snapshot with a false state, or with a false word on the rest.
    FalseOffer,
    /// One host is shown two twins of a vote that all others see; in clusters of four.
    Split,
    /// One host alone is shown twins that vote for a leader; in clusters of four.
    Wedge,
}

impl LieKind {
    /// All of them.
    pub(crate) const ALL: [Self; 15] = [
        Self::Twin,
        Self::TwinAsAncestor,
        Self::WithheldParent,
        Self::FalseParent,
        Self::FalseAttestation,
        Self::FalseClock,
        Self::FastEmptyVote,
        Self::OldEvents,
        Self::Garbage,
        Self::Silence,
        Self::LateFlood,
        Self::UnnamedPayload,
        Self::FalseOffer,
        Self::Split,
        Self::Wedge,
    ];
}
