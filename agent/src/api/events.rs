//! `GET /v1/events`: what happens, as server-sent events that can be resumed by commit.
//!
//! The last event of each commit carries the commit's index as its id, so that a client that
//! resumes there misses nothing and sees only whole commits. Each reader has its own place in the
//! history; only a few events wait for him in memory.

use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use dagger_api::{Problem, StreamEvent};
use dagger_payload::id::{AccountId, CommitIndex};
use futures_util::Stream;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::IntoParams;

use super::Api;
use super::problem::ApiProblem;
use super::reader::LongReader;
use super::request::Query;
use crate::limits::{
    EVENT_COMMITS_TOGETHER_MAX, EVENT_STREAM_COMMENT_EVERY, EVENT_STREAM_WAIT_MAX,
    EVENT_STREAM_WAITING_MAX,
};

/// The comment that stands last in a stream that is cut.
const CUT: &str = "this stream ends here; resume with Last-Event-ID";

/// Query of `GET /v1/events`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only what comes after this commit (0 for everything); from now on if neither this nor
    /// `Last-Event-ID` is given.
    after: Option<u64>,
}

/// What happens, as it happens: server-sent events, each a `StreamEvent`.
///
/// The event's id is the commit's index; send the last one back as `Last-Event-ID`, or as `after`,
/// to go on from there. A reader who does not keep up is cut, and resumes. The stream of a session
/// whose key is taken away ends with a comment that says so.
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "payloads",
    params(
        EventsQuery,
        ("Last-Event-ID" = Option<u64>, Header, description = "The last commit that was seen; counts before `after`")
    ),
    responses(
        (status = 200, body = StreamEvent, content_type = "text/event-stream"),
        (status = 401, body = Problem, content_type = "application/problem+json")
    )
)]
pub(super) async fn events(
    State(api): State<Api>,
    long: LongReader,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiProblem> {
    let too_many = |_| ApiProblem::overloaded("too many event streams are open");
    // Keys are made for nothing: all who have no account here share one account's streams.
    let reader = long.reader;
    let share = reader.own().map(|own| if reader.is_known(&api) { own } else { NOBODY });
    let own = share.map(|account| api.streams.of(account).try_acquire_owned());
    let own = own.transpose().map_err(too_many)?;
    let permits = std::sync::Arc::clone(&api.streaming);
    let permit = permits.try_acquire_owned().map_err(too_many)?;
    let resumed = last_event_id(&headers)?.or(query.after).map(CommitIndex);
    let after = resumed.unwrap_or_else(|| api.parts.model.progress().judged);
    let (sender, receiver) = mpsc::channel(EVENT_STREAM_WAITING_MAX);
    tokio::spawn(async move {
        let stop = api.stop.clone();
        let tell = Teller { api, long, sender, after }.tell();
        stop.run_until_cancelled(tell).await;
        drop((own, permit));
    });
    let end = tokio_stream::once(Event::default().comment(CUT));
    let stream = ReceiverStream::new(receiver).chain(end).map(Ok);
    let comments = KeepAlive::new().interval(EVENT_STREAM_COMMENT_EVERY);
    Ok(Sse::new(stream).keep_alive(comments))
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiProblem> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    let malformed = || ApiProblem::malformed("Last-Event-ID is no commit index");
    id.map(Some).ok_or_else(malformed)
}

/// No key has this account.
const NOBODY: AccountId = AccountId([0; 16]);

/// Tells one reader.
struct Teller {
    api: Api,
    long: LongReader,
    sender: mpsc::Sender<Event>,
    after: CommitIndex,
}

/// The reader is gone, too slow, or has no key any more.
struct ReaderLost;

impl Teller {
    async fn tell(mut self) {
        let mut news = self.api.parts.model.subscribe();
        let mut attested = CommitIndex(0);
        loop {
            let progress = news.borrow_and_update().clone();
            if self.tell_commits(progress.attested).await.is_err() {
                return;
            }
            if progress.attested > attested {
                attested = progress.attested;
                let event = StreamEvent::Attested { commit: attested };
                if self.send(&event, None).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                () = self.sender.closed() => return,
            }
        }
    }

    async fn tell_commits(&mut self, attested: CommitIndex) -> Result<(), ReaderLost> {
        loop {
            // Keys change by commits alone, so nobody is told of one with a key that it took away.
            if let Err(problem) = self.long.check(&self.api) {
                let word = Event::default().comment(problem.line());
                let _ = self.sender.send_timeout(word, EVENT_STREAM_WAIT_MAX).await;
                return Err(ReaderLost);
            }
            let reader = self.long.reader;
            let sees = |account: AccountId| reader.sees(account);
            let model = &self.api.parts.model;
            let commits = model.whole_after(self.after, EVENT_COMMITS_TOGETHER_MAX).await;
            // Cut: he resumes.
            let commits = commits.map_err(|_| ReaderLost)?;
            if commits.is_empty() {
                return Ok(());
            }
            for commit in commits {
                let events = model.read(|model| model.stream_events(&commit, attested, &sees));
                let index = commit.release().end.index;
                let mut left = events.len();
                for event in events {
                    left -= 1;
                    let id = (left == 0).then_some(index);
                    self.send(&event, id).await?;
                }
                self.after = index;
            }
        }
    }

    async fn send(&self, event: &StreamEvent, id: Option<CommitIndex>) -> Result<(), ReaderLost> {
        let mut sent = Event::default().json_data(event).expect("plain data always writes");
        if let Some(id) = id {
            sent = sent.id(id.to_string());
        }
        let sent = self.sender.send_timeout(sent, EVENT_STREAM_WAIT_MAX).await;
        sent.map_err(|_| ReaderLost)
    }
}
