//! Stable codes for what links refuse, and how often each was refused since the start.
//!
//! Owns the codes and their counts, which stand in the log line of each refused link. A link that
//! broke, was closed or was given up is no refusal. Called by the links' tasks.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use dagger_payload::event::EventError;
use dagger_payload::peer::FrameError;
use tokio_util::codec::LengthDelimitedCodecError;

use super::inspect::Refused;
use super::session::LinkError;

/// A connection beyond the number that may be in their handshakes.
pub(super) const TOO_MANY_HANDSHAKES: &str = "too_many_handshakes";

/// How often each code was refused since the start; as many entries as there are codes.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Refusals {
    /// Counts one refusal and says how many of its code there were, with this one.
    pub(super) fn count(&self, code: &'static str) -> u64 {
        let mut counts = self.counts.lock().expect("no holder of this lock panics");
        let count = counts.entry(code).or_insert(0);
        *count += 1;
        *count
    }

    /// The code and the count, if a link's end was a refusal.
    pub(super) fn of(&self, error: &LinkError) -> Option<(&'static str, u64)> {
        code(error).map(|code| (code, self.count(code)))
    }
}

fn code(error: &LinkError) -> Option<&'static str> {
    Some(match error {
        LinkError::Tls(_) => "handshake_failed",
        LinkError::HandshakeTimedOut => "handshake_timed_out",
        LinkError::UnknownKey => "unknown_key",
        LinkError::NoHello => "hello_missing",
        LinkError::Foreign => "foreign_peer",
        LinkError::Refused(Refused::Frame(FrameError::TooLarge)) => "frame_too_large",
        LinkError::Refused(Refused::Frame(FrameError::Malformed)) => "frame_malformed",
        LinkError::Refused(Refused::Event(error)) => event_code(*error),
        LinkError::Io(error) => return frame_code(error),
        LinkError::SendTimedOut | LinkError::Closed | LinkError::GivenUp => return None,
    })
}

fn event_code(error: EventError) -> &'static str {
    match error {
        EventError::TooLarge => "event_too_large",
        EventError::NotCanonical => "event_not_canonical",
        EventError::UnknownVersion => "event_unknown_version",
        EventError::BadParents => "event_bad_parents",
        EventError::BadBody => "event_bad_body",
        EventError::UnknownAuthor => "event_unknown_author",
        EventError::Foreign => "event_foreign",
        EventError::BadSignature => "event_bad_signature",
    }
}

/// What the reader of frames refuses comes as errors of input; all others are the network's.
fn frame_code(error: &io::Error) -> Option<&'static str> {
    if error.get_ref().is_some_and(|cause| cause.is::<LengthDelimitedCodecError>()) {
        return Some("frame_too_large");
    }
    // The kernel's own time-outs have a number.
    let slow = error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none();
    slow.then_some("frame_timed_out")
}
