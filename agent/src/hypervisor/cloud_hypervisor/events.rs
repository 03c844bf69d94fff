//! What a process wrote about its machine: the event file, and what it tells about an end.
//!
//! Owns the reading of that file. It is no list of lines but of JSON objects, each process begins
//! it anew, and its beginning may have been cut off; it never says why a process ended, so
//! power-off, SIGTERM and a crashed vCPU look alike there and what the process said has to tell the
//! last apart. Only ever used to tell people. Called by the watch.

use std::io;
use std::path::Path;

use serde::Deserialize;

use super::limits::{EVENTS_BYTES_MAX, LOG_BYTES_MAX};
use super::place::{Place, read_end};

/// The process's words for a vCPU that could not go on.
const CRASHED: &str = "VCPU generated error";

/// What stands between two events.
const BETWEEN: &[u8] = b"\n\n";

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Event {
    /// `vmm`, `vm`, `guest`, `virtio-device`.
    pub(super) source: String,
    /// What happened.
    pub(super) event: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The guest said that it panicked.
    GuestPanicked,
    /// A virtual CPU could not go on; the process takes that for a power-off.
    CpuCrashed,
    /// The guest switched itself off, or the process was told to end: it cannot be told apart here.
    SwitchedOff,
    /// One of both, or a virtual CPU crashed: what the process said is in the journal.
    InOrder,
    /// Without a word: killed.
    Killed,
}

impl Ending {
    /// For people.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::GuestPanicked => "the guest panicked",
            Self::CpuCrashed => "a virtual CPU crashed",
            Self::SwitchedOff => "the guest was switched off, by itself or by an order",
            Self::InOrder => {
                "the guest was switched off, by itself or by an order, or a virtual CPU crashed: \
                 the journal of its unit tells"
            }
            Self::Killed => "the process was killed",
        }
    }
}

/// All whole events among the last bytes; one whose beginning was cut off, and a last one that is
/// still being written, are left out.
pub(super) fn read(path: &Path) -> io::Result<Vec<Event>> {
    let bytes = read_end(path, EVENTS_BYTES_MAX)?;
    // Where it was cut off stands nothing.
    let begin = bytes.iter().rposition(|byte| *byte == 0).map_or(0, |last| last + 1);
    let whole = &bytes[begin..];
    let events = read_objects(whole);
    if !events.is_empty() {
        return Ok(events);
    }
    let behind = whole.windows(BETWEEN.len()).position(|bytes| bytes == BETWEEN);
    Ok(behind.map(|at| read_objects(&whole[at..])).unwrap_or_default())
}

fn read_objects(bytes: &[u8]) -> Vec<Event> {
    serde_json::Deserializer::from_slice(bytes).into_iter().map_while(Result::ok).collect()
}

/// How the process of this place ended, once it has.
pub(super) fn ending(place: &Place) -> Ending {
    let events = read(&place.events()).unwrap_or_default();
    let has = |source: &str, event: &str| {
        events.iter().any(|each| each.source == source && each.event == event)
    };
    let said = read_end(&place.output(), LOG_BYTES_MAX).ok();
    let said = said.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if has("guest", "panic") {
        Ending::GuestPanicked
    } else if said.as_ref().is_some_and(|said| said.contains(CRASHED)) {
        Ending::CpuCrashed
    } else if !has("vmm", "shutdown") {
        Ending::Killed
    } else if said.is_some() {
        Ending::SwitchedOff
    } else {
        Ending::InOrder
    }
}

#[cfg(test)]
mod tests {
    use dagger_payload::id::VmId;

    use super::*;

    const EVENTS: &str = r#"{
  "timestamp": { "secs": 0, "nanos": 1 },
  "source": "vmm",
  "event": "starting",
  "properties": null
}

{ "timestamp": { "secs": 1, "nanos": 1 }, "source": "vm", "event": "shutdown", "properties": null }

"#;

    #[test]
    fn events_read_whole_while_the_last_one_is_being_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        std::fs::write(&path, format!("{EVENTS}{{ \"timestamp\": {{")).unwrap();
        let names: Vec<_> = read(&path).unwrap().into_iter().map(|event| event.event).collect();
        assert_eq!(names, ["starting", "shutdown"]);
    }

    #[test]
    fn events_whose_beginning_was_cut_off_read_on_behind_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        for cut in ["\0\0\0", "\0\0\"event\": \"lost\",\n  \"properties\": null\n}\n\n"] {
            std::fs::write(&path, format!("{cut}{EVENTS}")).unwrap();
            let names: Vec<_> = read(&path).unwrap().into_iter().map(|event| event.event).collect();
            assert_eq!(names, ["starting", "shutdown"], "{cut:?}");
        }
        let many = EVENTS.repeat(2000);
        std::fs::write(&path, &many[7..]).unwrap();
        assert_eq!(read(&path).unwrap().last().unwrap().event, "shutdown");
    }

    #[test]
    fn nothing_but_a_file_is_read_and_nothing_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let (path, secret) = (directory.path().join("events"), directory.path().join("secret"));
        std::fs::write(&secret, EVENTS).unwrap();
        std::os::unix::fs::symlink(&secret, &path).unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn an_end_without_a_word_a_power_off_a_crash_and_a_panic_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::of(directory.path(), VmId([1; 16]));
        place.make(0o700).unwrap();
        assert_eq!(ending(&place), Ending::Killed);
        let end = r#"{"source":"vmm","event":"shutdown"}"#;
        std::fs::write(place.events(), format!("{EVENTS}{end}")).unwrap();
        assert_eq!(ending(&place), Ending::InOrder, "what it said is nowhere here");
        std::fs::write(place.output(), "").unwrap();
        assert_eq!(ending(&place), Ending::SwitchedOff);
        std::fs::write(place.output(), "cloud-hypervisor: VCPU generated error: x\n").unwrap();
        assert_eq!(ending(&place), Ending::CpuCrashed);
        let panic = r#"{"source":"guest","event":"panic"}"#;
        std::fs::write(place.events(), format!("{panic}{end}")).unwrap();
        assert_eq!(ending(&place), Ending::GuestPanicked);
    }
}
