//! `daggerctl events`: follows what is ordered, as it happens.
//!
//! Owns reading a stream of server-sent events (WHATWG HTML, section 9.2) and resuming it by
//! commit. Never misses an event over a broken connection: it asks again from the last commit.
//! Called by `main`.

use bytes::Bytes;
use clap::Args;
use dagger_api::StreamEvent;
use dagger_payload::id::CommitIndex;
use http_body_util::BodyExt;

use crate::failure::Failure;
use crate::limits::EVENT_LINE_BYTES_MAX;
use crate::output::Format;
use crate::session::{Pause, Session};

/// Arguments of `events`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  daggerctl events\n  daggerctl events --after 0 --json | head")]
pub(crate) struct EventsArguments {
    /// Start after this commit; 0 is the beginning [default: now]
    #[arg(long, value_name = "COMMIT")]
    after: Option<u64>,
}

/// Follows the stream until the reader or the user ends it.
pub(crate) async fn run(arguments: EventsArguments, session: &Session) -> Result<(), Failure> {
    let mut after = arguments.after;
    let mut pause = Pause::new();
    let mut reader = EventReader::default();
    loop {
        let path = after
            .map_or_else(|| "/v1/events".to_owned(), |after| format!("/v1/events?after={after}"));
        match session.client.stream(&path).await {
            Ok(mut body) => {
                while let Some(Ok(frame)) = body.frame().await {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    for event in reader.push(&data)? {
                        after = Some(commit_of(&event).0);
                        show(&event, session)?;
                        pause.reset();
                    }
                }
                reader = EventReader::default();
            }
            Err(failure) if failure.is_unavailable() && after.is_some() => {}
            Err(failure) => return Err(failure),
        }
        pause.wait().await;
    }
}

fn commit_of(event: &StreamEvent) -> CommitIndex {
    match event {
        StreamEvent::Payload { commit, .. }
        | StreamEvent::Vm { commit, .. }
        | StreamEvent::Object { commit, .. }
        | StreamEvent::Attested { commit } => *commit,
    }
}

fn show(event: &StreamEvent, session: &Session) -> Result<(), Failure> {
    if session.output.format == Format::Json {
        return session.output.json_line(event);
    }
    let commit = commit_of(event);
    let text = match event {
        StreamEvent::Payload { payload, .. } => {
            let place = payload.position.map(|p| format!("position {p}")).unwrap_or_default();
            let verdict = payload.refusal.as_ref().map_or_else(
                || format!("{:?}", payload.state).to_lowercase(),
                |refusal| format!("refused: {refusal}"),
            );
            format!("payload {}  {place}  {verdict}", payload.digest)
        }
        StreamEvent::Vm { vm, state, .. } => {
            format!("vm {}  {}  generation {}", vm.name, state.word(), vm.generation)
        }
        StreamEvent::Object { kind, id, .. } => format!("{kind} {id}"),
        StreamEvent::Attested { .. } => "attested by a quorum".to_owned(),
    };
    session.output.line(format!("commit {commit:>8}  {text}"))
}

/// Puts the `data:` lines of a stream together.
#[derive(Default)]
struct EventReader {
    line: Vec<u8>,
    data: String,
}

impl EventReader {
    /// Takes the next bytes; returns the events that they complete.
    fn push(&mut self, bytes: &Bytes) -> Result<Vec<StreamEvent>, Failure> {
        let mut events = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > EVENT_LINE_BYTES_MAX {
                    return Err(unreadable("a line is longer than 1 MiB"));
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                let data = std::mem::take(&mut self.data);
                if !data.is_empty() {
                    let event = serde_json::from_str(&data);
                    events.push(event.map_err(|error| unreadable(&error.to_string()))?);
                }
            } else if let Some(data) = line.strip_prefix(b"data:") {
                let text = std::str::from_utf8(data).map_err(|_| unreadable("not UTF-8"))?;
                self.data.push_str(text.strip_prefix(' ').unwrap_or(text));
                if self.data.len() > EVENT_LINE_BYTES_MAX {
                    return Err(unreadable("an event is larger than 1 MiB"));
                }
            }
        }
        Ok(events)
    }
}

fn unreadable(why: &str) -> Failure {
    Failure::refused(
        "answer_unreadable",
        format!("the agent's events cannot be read: {why}"),
        "Use a daggerctl of the same version as the agent.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_the_stream_is_cut() {
        let text = ": hello\n\nid: 7\ndata: {\"event\":\"attested\",\"commit\":7}\n\n\
                    id: 8\r\ndata: {\"event\":\"attested\",\r\ndata: \"commit\":8}\r\n\r\n";
        for size in [1, 2, 7, text.len()] {
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                events.extend(reader.push(&Bytes::copy_from_slice(piece)).expect("reads"));
            }
            let commits: Vec<_> = events.iter().map(|event| commit_of(event).0).collect();
            assert_eq!(commits, [7, 8]);
        }
        assert!(EventReader::default().push(&Bytes::from_static(b"data: x\n\n")).is_err());
    }
}
