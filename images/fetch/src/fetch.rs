//! One download: which source is asked when, and what it comes to.
//!
//! Owns the order: a source is left when it refuses, fails without having brought anything, or
//! brings other bytes; what it brought is kept for the next one. One that is slow is left too, as
//! long as others can be asked, and asked again after them, the quickest first. Where the bytes of
//! several tries make a false file, the one that ended it is asked for all of it before it is
//! blamed. Called by `main`.

use std::fs::File;
use std::time::{Duration, Instant};

use dagger_images::fetch::{FetchCode, FetchNews, FetchProblem, FetchRequest};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::conversation::Teller;
use crate::limits::{
    DOWNLOAD_WAIT_MAX, PROGRESS_EVERY, QUICK_BYTES_PER_SECOND, QUICK_WAIT_MAX, STALL_BYTES_MIN,
    STALL_WAIT_MAX, TRIES_WITH_GAIN_MAX,
};
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
    let (source, pace) = (0, Pace::Any);
    let mut download =
        Download { request, asker, partial, teller, told_bytes, tell_next, source, pace };
    if download.is_whole() {
        return Ok(download.partial.bytes());
    }
    match tokio::time::timeout(DOWNLOAD_WAIT_MAX, download.ask_all()).await {
        Ok(asked) => asked.map(|()| download.partial.bytes()),
        Err(_) => {
            let hours = DOWNLOAD_WAIT_MAX.as_secs() / 3600;
            let detail = format!("after {hours} h there was {} bytes", download.partial.bytes());
            Err(FetchProblem::new(FetchCode::TooSlow, detail))
        }
    }
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

/// How fast a source has to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Others can be asked instead.
    Quick,
    /// So that it is not silent.
    Any,
}

impl Pace {
    /// What has to come within `patience`, in bytes.
    fn bytes_min(self, size_bytes: u64, patience: Duration) -> u64 {
        let quick = (size_bytes / QUICK_WAIT_MAX.as_secs()).min(QUICK_BYTES_PER_SECOND);
        let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
        let quick_bytes = quick.saturating_mul(millis) / 1000;
        match self {
            Self::Quick => quick_bytes.max(STALL_BYTES_MIN),
            Self::Any => STALL_BYTES_MIN,
        }
    }

    /// What one is that sends less.
    fn missed(self, bytes: u64, patience: Duration) -> FetchProblem {
        let seconds = patience.as_secs();
        match self {
            Self::Quick if bytes >= STALL_BYTES_MIN => {
                let detail = format!("{bytes} bytes in {seconds} s, and others can be asked");
                FetchProblem::new(FetchCode::TooSlow, detail)
            }
            Self::Quick | Self::Any => {
                FetchProblem::new(FetchCode::Stalled, "next to nothing comes")
            }
        }
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
    pace: Pace,
}

impl Download<'_> {
    fn is_whole(&self) -> bool {
        self.partial.bytes() > 0 && self.partial.digest() == self.request.digest
    }

    /// Asks one source after the other, and then those again that were too slow.
    async fn ask_all(&mut self) -> Result<(), FetchProblem> {
        let count = self.request.sources.len();
        let (mut worst, mut slow) = (None, Vec::new());
        self.pace = if count > 1 { Pace::Quick } else { Pace::Any };
        for source in 0..count {
            let began = (Instant::now(), self.partial.bytes());
            match self.ask(source).await {
                Ok(()) => return Ok(()),
                Err(problem) if problem.code.is_of_the_file() => return Err(problem),
                Err(problem) => {
                    if problem.code == FetchCode::TooSlow {
                        let gain = self.partial.bytes().saturating_sub(began.1);
                        slow.push((gain / began.0.elapsed().as_secs().max(1), source));
                    }
                    worst = Some(worse(worst, self.of_source(problem)));
                }
            }
        }
        slow.sort_by_key(|(bytes_per_second, _)| std::cmp::Reverse(*bytes_per_second));
        self.pace = Pace::Any;
        for (_, source) in slow {
            match self.ask(source).await {
                Ok(()) => return Ok(()),
                Err(problem) if problem.code.is_of_the_file() => return Err(problem),
                Err(problem) => worst = Some(worse(worst, self.of_source(problem))),
            }
        }
        let none = || FetchProblem::new(FetchCode::NotThere, "no source was named");
        Err(worst.unwrap_or_else(none))
    }

    /// Asks one source, and tells what is wrong with it.
    async fn ask(&mut self, source: usize) -> Result<(), FetchProblem> {
        self.source = source;
        let asked = self.ask_source().await;
        if let Err(problem) = &asked
            && !problem.code.is_of_the_file()
        {
            let trouble = FetchNews::Trouble { source, problem: problem.clone() };
            self.teller.tell(&trouble).await;
        }
        asked
    }

    /// The problem, with the source that has it.
    fn of_source(&self, problem: FetchProblem) -> FetchProblem {
        let detail = format!("{}: {}", self.request.sources[self.source], problem.detail);
        FetchProblem { code: problem.code, detail }
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
                FetchCode::TooSlow => return Err(problem),
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
        let bytes_min = self.pace.bytes_min(self.request.size_bytes, patience);
        let mut watch = Watch { since: Instant::now(), bytes: self.partial.bytes(), bytes_min };
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
            if let Some(bytes) = watch.look(self.partial.bytes(), patience) {
                return Err(self.pace.missed(bytes, patience));
            }
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

/// Notices a source that sends, but too little.
struct Watch {
    since: Instant,
    bytes: u64,
    bytes_min: u64,
}

impl Watch {
    /// How little has come, once its time has passed.
    fn look(&mut self, bytes: u64, patience: Duration) -> Option<u64> {
        if self.since.elapsed() < patience {
            return None;
        }
        let come = bytes - self.bytes;
        (self.since, self.bytes) = (Instant::now(), bytes);
        (come < self.bytes_min).then_some(come)
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

    #[test]
    fn a_source_is_quick_that_brings_all_of_it_soon_and_nobody_has_to_be_quicker_than_a_line() {
        let half_a_minute = Duration::from_secs(30);
        let quick = |bytes| Pace::Quick.bytes_min(bytes, half_a_minute);
        assert_eq!(quick(1 << 20), (1 << 20) / 600 * 30, "a small one");
        assert_eq!(quick(1), STALL_BYTES_MIN);
        assert_eq!(quick(256 << 30), QUICK_BYTES_PER_SECOND * 30, "a large one");
        assert_eq!(Pace::Any.bytes_min(256 << 30, half_a_minute), STALL_BYTES_MIN);
    }
}
