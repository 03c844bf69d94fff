//! One download: which source is asked when, and what it comes to.
//!
//! Owns the order: a source is left when it refuses, fails without having brought anything, or
//! brings other bytes; what it brought is kept for the next one. Where the bytes of several tries
//! make a false file, the one that ended it is asked for all of it before it is blamed. Called by
//! `main`.

use std::fs::File;
use std::time::{Duration, Instant};

use dagger_images::fetch::{FetchCode, FetchNews, FetchProblem, FetchRequest};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::conversation::Teller;
use crate::limits::{PROGRESS_EVERY, STALL_BYTES_MIN, STALL_WAIT_MAX, TRIES_WITH_GAIN_MAX};
use crate::partial::Partial;
use crate::source::{Answer, Asker};

/// Fills the file; how many bytes it holds then.
///
/// # Errors
/// No source serves. A refusal unless another source may serve later.
pub async fn fetch(
    request: &FetchRequest,
    file: File,
    teller: &mut Teller,
) -> Result<u64, FetchProblem> {
    let partial = Partial::open(file, request.size_bytes)?;
    let asker = Asker::new(request);
    let (told_bytes, tell_next) = (None, Instant::now());
    let mut download =
        Download { request, asker, partial, teller, told_bytes, tell_next, source: 0 };
    if download.is_whole() {
        return Ok(download.partial.bytes());
    }
    let mut worst: Option<FetchProblem> = None;
    for source in 0..request.sources.len() {
        download.source = source;
        match download.ask_source().await {
            Ok(()) => return Ok(download.partial.bytes()),
            Err(problem) if problem.code.is_of_the_file() => return Err(problem),
            Err(problem) => {
                let trouble = FetchNews::Trouble { source, problem: problem.clone() };
                download.teller.tell(&trouble).await;
                let detail = format!("{}: {}", request.sources[source], problem.detail);
                worst = Some(worse(worst, FetchProblem { code: problem.code, detail }));
            }
        }
    }
    let none = || FetchProblem::new(FetchCode::NotThere, "no source was named");
    Err(worst.unwrap_or_else(none))
}

/// Which of two problems says what becomes of the whole: what may pass goes before what never will,
/// and that a source has nothing goes last.
fn worse(known: Option<FetchProblem>, new: FetchProblem) -> FetchProblem {
    let weight = |problem: &FetchProblem| match problem.code {
        FetchCode::NotThere => 0,
        code if code.is_refusal() => 1,
        _ => 2,
    };
    match known {
        Some(known) if weight(&known) >= weight(&new) => known,
        _ => new,
    }
}

struct Download<'a> {
    request: &'a FetchRequest,
    asker: Asker<'a>,
    partial: Partial,
    teller: &'a mut Teller,
    /// What was told last, and when the next word is due.
    told_bytes: Option<u64>,
    tell_next: Instant,
    source: usize,
}

impl Download<'_> {
    fn is_whole(&self) -> bool {
        self.partial.bytes() > 0 && self.partial.digest() == self.request.digest
    }

    /// Asks one source until it has brought everything, or fails without any gain.
    async fn ask_source(&mut self) -> Result<(), FetchProblem> {
        let mut last = FetchProblem::new(FetchCode::Stalled, "it was asked too often");
        for _ in 0..TRIES_WITH_GAIN_MAX {
            let before = self.partial.bytes();
            let tried = self.one_try().await;
            let problem = match tried {
                Ok(()) if self.is_whole() => return Ok(()),
                Ok(()) => self.differing(),
                Err(problem) => problem,
            };
            let mixed = before > 0;
            match problem.code {
                FetchCode::DigestDiffers | FetchCode::TooLarge => {
                    self.partial.begin_anew()?;
                    if !mixed {
                        return Err(problem);
                    }
                }
                code if code.is_refusal() || self.partial.bytes() <= before => {
                    return Err(problem);
                }
                _ => {}
            }
            last = problem;
        }
        Err(last)
    }

    fn differing(&self) -> FetchProblem {
        let detail = format!(
            "the file there is another one than was registered ({} bytes of {})",
            self.partial.bytes(),
            self.request.size_bytes
        );
        FetchProblem::new(FetchCode::DigestDiffers, detail)
    }

    async fn one_try(&mut self) -> Result<(), FetchProblem> {
        self.tell_progress().await;
        let kept = self.partial.bytes();
        let source = &self.request.sources[self.source];
        let Answer { begins_at, mut body } = self.asker.ask(source, kept).await?;
        if begins_at != kept {
            self.partial.begin_anew()?;
        }
        let patience = Duration::from_millis(self.request.stall_wait_ms).min(STALL_WAIT_MAX);
        let mut watch = Watch { since: Instant::now(), bytes: self.partial.bytes() };
        let mut silent_until = Instant::now() + patience;
        loop {
            let is_untold = self.told_bytes != Some(self.partial.bytes());
            let frame = tokio::select! {
                frame = next(&mut body, silent_until) => frame?,
                () = tokio::time::sleep_until(self.tell_next.into()), if is_untold => {
                    self.tell_progress().await;
                    continue;
                }
            };
            let Some(frame) = frame else { break };
            self.partial.add(&frame)?;
            watch.look(self.partial.bytes(), patience)?;
            silent_until = Instant::now() + patience;
        }
        self.tell_progress().await;
        Ok(())
    }

    async fn tell_progress(&mut self) {
        let bytes_done = self.partial.bytes();
        (self.tell_next, self.told_bytes) = (Instant::now() + PROGRESS_EVERY, Some(bytes_done));
        let news = FetchNews::Progress { bytes_done, source: self.source };
        self.teller.tell(&news).await;
    }
}

/// Notices a source that sends, but next to nothing.
struct Watch {
    since: Instant,
    bytes: u64,
}

impl Watch {
    fn look(&mut self, bytes: u64, patience: Duration) -> Result<(), FetchProblem> {
        if self.since.elapsed() < patience {
            return Ok(());
        }
        if bytes - self.bytes < STALL_BYTES_MIN {
            return Err(FetchProblem::new(FetchCode::Stalled, "next to nothing comes"));
        }
        (self.since, self.bytes) = (Instant::now(), bytes);
        Ok(())
    }
}

/// The next piece of an answer.
async fn next(
    body: &mut Incoming,
    silent_until: Instant,
) -> Result<Option<bytes::Bytes>, FetchProblem> {
    loop {
        let frame = tokio::time::timeout_at(silent_until.into(), body.frame()).await;
        let frame = frame.map_err(|_| FetchProblem::new(FetchCode::Stalled, "nothing comes"))?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                // Trailers say nothing that counts.
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                let detail = format!("it ended before all had come: {error}");
                return Err(FetchProblem::new(FetchCode::Truncated, detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_refused_only_if_no_source_may_serve_later() {
        let end = |codes: &[FetchCode]| {
            let problems = codes.iter().map(|code| FetchProblem::new(*code, ""));
            problems.fold(None, |known, new| Some(worse(known, new))).unwrap().code
        };
        let (differs, not_there) = (FetchCode::DigestDiffers, FetchCode::NotThere);
        assert_eq!(end(&[differs, FetchCode::AddressRefused]), differs);
        assert_eq!(end(&[not_there, differs, not_there]), differs);
        assert_eq!(end(&[differs, FetchCode::Busy]), FetchCode::Busy);
        assert_eq!(end(&[not_there]), not_there);
    }
}
