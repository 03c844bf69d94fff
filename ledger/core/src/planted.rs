//! Bugs that are planted on purpose, each one line, to prove that the simulator finds such a bug.
//!
//! Owns their list and which one is on. Never in a release: without debug assertions the feature
//! does not compile. Called by the lines that carry a bug, and by the simulator to choose one.

use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(not(debug_assertions))]
compile_error!("planted bugs are for the simulator only: build without `planted-bugs`");

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// An own event leaves before it is durable.
    SendBeforePersist = 1,
    /// A commit is handed on before it is durable.
    HandOnBeforePersist,
    /// A leader is committed on one certificate less.
    QuorumMinusOne,
    /// A slot is skipped on one blame less.
    SkipQuorumMinusOne,
    /// A slot is decided by the next commit, though an undecided anchor stands before it.
    DecidePastUndecidedAnchor,
    /// Events of a round are ordered by what has arrived of their authors.
    TiesByWhatArrived,
    /// The collection round follows what this host has seen, not what is committed.
    CollectionRoundFromLocalView,
    /// Twins of one author count as two certificates and two blames.
    AuthorCountedTwice,
    /// Both twins of a fork are ordered.
    TwinsOrdered,
    /// Ledger time may go back.
    LedgerTimeGoesBack,
    /// A host that fell behind jumps to the others' round.
    SkippedRound,
    /// A host signs below the floor of its recovery.
    SignBelowRecoveryFloor,
    /// A host signs before it has asked anybody.
    SignBeforeAsking,
    /// Events without payloads are work.
    ClosingEventIsWork,
    /// The payload of a twin that nobody may name is work.
    UnnameableTwinIsWork,
    /// The newest of equal commit ends is attested.
    NewestOfEqualsAttested,
    /// Payloads of an event that can no longer be ordered are forgotten.
    PayloadsNotGivenBack,
    /// Payloads are given back in memory only.
    ReturnNotPersisted,
    /// After a restart it is forgotten what was ordered.
    FatesForgotten,
    /// A member less than a quorum is enough to end an epoch.
    HandoverQuorumMinusOne,
    /// Commits run ahead of the judge, past the end of an epoch.
    CommitsPastTheEnd,
    /// A host that forgot takes the next epoch for a new beginning.
    DoubtEndsWithTheEpoch,
    /// A member that forgot near the end of an epoch counts as new in the next.
    AnEpochHasNoEarlierLife,
    /// A host that begins from a snapshot forgets what was ordered just before it.
    FrontierFatesForgotten,
    /// A payload that returned once does not return again.
    ReturnedOnceOnly,
    /// Every judged commit is closed.
    CloseOnAnyCommit,
    /// What is ordered is closed, though it is not judged yet.
    CloseOnOrdered,
    /// Who attests less than oneself is answered at once.
    AnswerAttestsLess,
    /// A twin is taken in though only its author names it.
    TwinsTakenUnnamed,
    /// Whether a parent stands where an event says is asked also where nobody needs it.
    OldParentsChecked,
    /// A clock in doubt goes on into events.
    ClockNotDoubted,
    /// What rests on a twin that only its author names is shown again at each exchange.
    PassedOverNotTold,
    /// A peer is sent what it lacks as often as it tells what it has.
    AnswersUnlimited,
    /// What proves a fork is not kept.
    ForkNotKept,
    /// Twins that fill the memory are no reason for a round.
    CrowdIsNoWork,
    /// A peer that asks about its past is answered as often as it asks.
    QuestionsUnlimited,
    /// A peer is told that this host need not be shown what stands at any round.
    FarRoundsTold,
    /// What nobody has is waited for without end.
    NeverGivesUp,
    /// What lies below the floor stays in memory.
    NothingForgotten,
}

/// All that the simulator finds. The others take a coincidence or liars that no run has; each has a
/// directed test of its own, which fails with it. An author who is counted twice is among them: a
/// twin is taken in only if another author names it, which takes two liars who know each other.
pub const ALL: [Bug; 25] = [
    Bug::SendBeforePersist,
    Bug::HandOnBeforePersist,
    Bug::QuorumMinusOne,
    Bug::SkipQuorumMinusOne,
    Bug::DecidePastUndecidedAnchor,
    Bug::TiesByWhatArrived,
    Bug::CollectionRoundFromLocalView,
    Bug::TwinsOrdered,
    Bug::LedgerTimeGoesBack,
    Bug::SkippedRound,
    Bug::SignBelowRecoveryFloor,
    Bug::SignBeforeAsking,
    Bug::ClosingEventIsWork,
    Bug::UnnameableTwinIsWork,
    Bug::NewestOfEqualsAttested,
    Bug::PayloadsNotGivenBack,
    Bug::ReturnNotPersisted,
    Bug::FatesForgotten,
    Bug::HandoverQuorumMinusOne,
    Bug::CommitsPastTheEnd,
    Bug::DoubtEndsWithTheEpoch,
    Bug::FrontierFatesForgotten,
    Bug::ForkNotKept,
    Bug::NeverGivesUp,
    Bug::NothingForgotten,
];

static PLANTED: AtomicU8 = AtomicU8::new(0);

/// Turns one bug on, or all off; for the whole process.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), Ordering::Relaxed);
}

/// Whether this bug is on.
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u8
}
