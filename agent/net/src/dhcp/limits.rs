//! The maxima of questions, answers and waits. Called by its neighbours only.

use std::time::Duration;

/// A question, in bytes: what a frame carries.
pub(super) const QUESTION_BYTES_MAX: usize = 1500;
/// The name by which a client calls itself, in bytes; the answer repeats it (RFC 6842).
pub(super) const CLIENT_NAME_BYTES_MAX: usize = 128;
/// An answer, in bytes: what every client takes (RFC 2131), less the headers before it.
pub(super) const ANSWER_BYTES_MAX: usize = 548;
/// An answer has at least so many, as BOOTP demands of relays and some clients of everybody.
pub(super) const ANSWER_BYTES_MIN: usize = 300;
/// How long a guest may go on without asking again. Its address stays its own anyway: this is how
/// long it may take until it hears of other name servers.
pub(super) const LEASE: Duration = Duration::from_hours(6);
/// Nobody asked for so long: systemd starts the next one with the next question.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);
/// What went otherwise than it should is told at most so often.
pub(super) const TELL_EVERY: Duration = Duration::from_mins(10);
