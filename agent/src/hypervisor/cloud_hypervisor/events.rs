//! What a process wrote about its machine: the event file, and what it tells about an end.
//!
//! Owns the reading of that file. It is no list of lines but of JSON objects, and each process
//! begins it anew; it never says why a process ended, so power-off, SIGTERM and a crashed vCPU look
//! alike there and the log has to tell the last apart. Only ever used to say where to look and what
//! to tell people. Called by the watch.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::limits::EVENTS_BYTES_MAX;
use super::place::{Place, read_end};

/// The log's words for a vCPU that could not go on.
const CRASHED: &str = "VCPU generated error";

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
            Self::Killed => "the process was killed",
        }
    }
}

/// All whole events; a last one that is still being written is left out.
pub(super) fn read(path: &Path) -> io::Result<Vec<Event>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(EVENTS_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(serde_json::Deserializer::from_slice(&bytes).into_iter().map_while(Result::ok).collect())
}

/// How the process of this place ended, once it has.
pub(super) fn ending(place: &Place) -> Ending {
    let events = read(&place.events()).unwrap_or_default();
    let has = |source: &str, event: &str| {
        events.iter().any(|each| each.source == source && each.event == event)
    };
    let crashed = [place.log(), place.output()]
        .iter()
        .any(|path| read_end(path).is_ok_and(|text| text.contains(CRASHED)));
    if has("guest", "panic") {
        Ending::GuestPanicked
    } else if crashed {
        Ending::CpuCrashed
    } else if has("vmm", "shutdown") {
        Ending::SwitchedOff
    } else {
        Ending::Killed
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
    fn an_end_without_a_word_a_power_off_a_crash_and_a_panic_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place::of(directory.path(), VmId([1; 16]));
        place.make(0o700).unwrap();
        assert_eq!(ending(&place), Ending::Killed);
        let end = r#"{"source":"vmm","event":"shutdown"}"#;
        std::fs::write(place.events(), format!("{EVENTS}{end}")).unwrap();
        assert_eq!(ending(&place), Ending::SwitchedOff);
        std::fs::write(place.log(), "cloud-hypervisor: VCPU generated error: x\n").unwrap();
        assert_eq!(ending(&place), Ending::CpuCrashed);
        let panic = r#"{"source":"guest","event":"panic"}"#;
        std::fs::write(place.events(), format!("{panic}{end}")).unwrap();
        assert_eq!(ending(&place), Ending::GuestPanicked);
    }
}
