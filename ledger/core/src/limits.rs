//! Maxima and waits of the core. Called by its own modules only.

use dagger_payload::limits::{ACCEPTANCE_MS_MAX, EVENT_BODY_BYTES_MAX};

/// Events of one peer that wait for missing parents.
pub(crate) const SUSPENDED_PER_PEER_MAX: usize = 4096;
/// Their bytes: a few of the largest, and all of the usual ones.
pub(crate) const SUSPENDED_BYTES_PER_PEER_MAX: usize = 32 * EVENT_BODY_BYTES_MAX;
/// The same of all members together; each has an equal share.
pub const SUSPENDED_BYTES_MAX: usize = 256 * EVENT_BODY_BYTES_MAX;
/// The same of a peer that has no vote in this epoch.
pub(crate) const SUSPENDED_BYTES_PER_OTHER_MAX: usize = 2 * EVENT_BODY_BYTES_MAX;
/// The same of all such peers together. It is not nothing: who is left behind in an epoch whose
/// members have gone learns the rest of it from them.
pub const SUSPENDED_BYTES_OF_OTHERS_MAX: usize = 16 * EVENT_BODY_BYTES_MAX;
/// How long a leader or a certificate is waited for at first, in milliseconds.
pub(crate) const WAIT_MS_MIN: u64 = 50;
/// To how much that wait grows while nothing commits, in milliseconds.
pub(crate) const WAIT_MS_MAX: u64 = 10_000;
/// Rounds without a commit after which the wait doubles.
pub(crate) const WAIT_DOUBLING_ROUNDS: u64 = 6;
/// Waits that an author may let expire before he is waited for no more, until an event of his
/// arrives.
pub(crate) const STRIKES_MAX: u8 = 3;
/// How far the wall clock may jump, or be away from those of peers, before it is in doubt, in
/// milliseconds.
pub(crate) const CLOCK_DIFFERENCE_MS_MAX: u64 = 3_600_000;
/// For how long after an own event was made an event that names it shows its author's clock, in
/// milliseconds.
pub(crate) const CLOCK_FRESH_MS: u64 = 60_000;
/// Own events that are remembered for that.
pub(crate) const CLOCK_OWN_EVENTS_MAX: usize = 64;
/// First delay of an idle host before it fills up to a round that it sees, in milliseconds.
pub(crate) const FILL_MS_MIN: u64 = 10;
/// Longest such delay, in milliseconds.
pub(crate) const FILL_MS_MAX: u64 = 1_000;
/// Delay between rounds whose only purpose is to let ledger time pass a deadline, in milliseconds.
pub(crate) const DEADLINE_ROUND_MS: u64 = 250;
/// Delay between rounds while judging lags behind, in milliseconds.
pub(crate) const BACKLOG_ROUND_MS: u64 = 1_000;
/// Rounds above the next one to be committed that are kept in memory while commits wait for the
/// judge.
pub(crate) const ROUNDS_AHEAD_OF_JUDGE_MAX: u64 = 200;
/// A peer that is in a later epoch is told what this host has at most this often, in milliseconds.
pub(crate) const EPOCH_HINT_MS: u64 = 500;
/// Peers tell each other what they have at least this often, in milliseconds.
pub(crate) const HAVE_MS: u64 = 30_000;
/// How often a peer that tells what it has is sent what it lacks, at once: a host that catches up
/// tells it after each stretch.
pub(crate) const ANSWERS_AT_ONCE_MAX: u64 = 64;
/// After so many milliseconds it is sent that once more.
pub(crate) const ANSWER_EVERY_MS: u64 = 20;
/// How often all peers without a vote together are sent what they lack at once: each answer looks
/// through all rounds that are in memory, and who has no vote needed nobody's consent.
pub(crate) const ANSWERS_OF_OTHERS_AT_ONCE_MAX: u64 = 256;
/// After so many milliseconds they are sent that once more.
pub(crate) const ANSWER_OF_OTHERS_EVERY_MS: u64 = 4;
/// How many events that a peer names it is sent at once: as many as may wait here because of it.
pub(crate) const WISHES_AT_ONCE_MAX: u64 = 4096;
/// After so many milliseconds it is sent one more.
pub(crate) const WISH_EVERY_MS: u64 = 1;
/// How often a peer that asks about its own past is answered, at once: at each start of a link it
/// asks anew.
pub(crate) const QUESTIONS_AT_ONCE_MAX: u64 = 32;
/// After so many milliseconds it is answered once more.
pub(crate) const QUESTION_EVERY_MS: u64 = 250;
/// How many rounds above the highest that a peer has are sent to it at a time, as far as they are
/// stored; no more than is kept while commits wait for the judge. A host that is further behind
/// than half of this asks one peer for the next stretch.
pub(crate) const CATCH_UP_ROUNDS: u64 = ROUNDS_AHEAD_OF_JUDGE_MAX;
/// A peer that was asked for a stretch and brought nothing for so many milliseconds is left for
/// another.
pub(crate) const CATCH_UP_WAIT_MS: u64 = 2_000;
/// Stretches in a row that bring nothing, before no more are asked for until a peer tells anew what
/// it has.
pub(crate) const CATCH_UP_TURNS_MAX: u32 = 8;
/// Parents that events of one peer wait for.
pub(crate) const MISSING_PER_PEER_MAX: usize = 4 * SUSPENDED_PER_PEER_MAX;
/// Turns in a row in which a server of stretches brought little, before another is asked.
pub(crate) const LITTLE_TURNS_MAX: u32 = 2;
/// Missing parents are asked for again, of the next peer, after this many milliseconds.
pub(crate) const WANT_AGAIN_MS: u64 = 500;
/// How often every connected peer is asked for a missing parent, each time at twice the distance,
/// before the events that wait for it are dropped: nobody but their author has it, and who has it
/// will send them again.
pub(crate) const WANT_TURNS_MAX: u32 = 3;
/// Recovery is asked for again after this many milliseconds without enough answers.
pub(crate) const RECOVERY_ASK_MS: u64 = 1_000;
/// Payloads are packed only above parents whose median time is at most this far behind the own
/// clock, so that their first judgement happens at a fresh ledger time. Milliseconds.
pub(crate) const STALE_PARENTS_MS_MAX: u64 = 2_000;
/// Empty rounds that may be spent on freshening the parents' times before packing goes on
/// regardless.
pub(crate) const FRESHENING_ROUNDS_MAX: u32 = 3;
/// How often a peer that goes on asking is helped by empty rounds before it makes an event.
pub(crate) const RECOVERY_HELPS_MAX: u32 = 20;
/// Rounds above the quorum's that a host without a trustworthy memory leaves out before it signs
/// again.
pub(crate) const RECOVERY_MARGIN_ROUNDS: u64 = 2;
/// Own events that peers have shown and that wait for their parents while recovery goes on; and how
/// many of a peer's that wait here it is shown at a time.
pub(crate) const OWN_SHOWN_MAX: usize = 256;
/// Second events of one author that are kept until somebody names them; others are asked for when
/// they are named.
pub(crate) const TWINS_PER_AUTHOR_MAX: usize = 64;
/// Their bytes.
pub const TWINS_BYTES_PER_AUTHOR_MAX: usize = 4 * EVENT_BODY_BYTES_MAX;
/// Second events of others that one peer may make this host take in at once: more than an honest
/// member ever names before it has seen both twins, a branch of one liar as long as the graph that
/// is kept at the usual collection depth.
pub(crate) const TWINS_AT_ONCE_MAX: u64 = 256;
/// After so many milliseconds it may bring in one more.
pub(crate) const TWIN_EVERY_MS: u64 = 50;
/// Accepted events beyond one of each author in each round, above which rounds are made although
/// there is no other work: two liars who name each other's twins in a silence would fill the memory
/// else, and what lies below the floor is forgotten.
pub(crate) const TWINS_HELD_MAX: usize = 512;
/// Their bytes.
pub(crate) const TWINS_HELD_BYTES_MAX: usize = 32 * EVENT_BODY_BYTES_MAX;
/// Rounds from the floor to the highest that are held, at most, beyond those that the collection
/// depth asks for: what may wait for the judge, and a stretch that a peer has sent.
pub(crate) const ROUNDS_HELD_MAX: u64 = ROUNDS_AHEAD_OF_JUDGE_MAX + CATCH_UP_ROUNDS;
/// Fork evidence kept per author.
pub(crate) const EVIDENCE_PER_AUTHOR_MAX: usize = 4;

const _: () = assert!(WAIT_MS_MIN <= WAIT_MS_MAX && FILL_MS_MIN <= FILL_MS_MAX);
const _: () = assert!(2 * CLOCK_FRESH_MS <= CLOCK_DIFFERENCE_MS_MAX);
// A request that is judged at an old ledger time has that much less of its time to be accepted.
const _: () = assert!(4 * STALE_PARENTS_MS_MAX <= ACCEPTANCE_MS_MAX);
