//! The threads that check signatures and read snapshots.
//!
//! Owns how many there are and how much may wait for them. They are started once files are closed
//! to them and before system calls are, which allow no new ones. Called by the conversations in
//! `serve`.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use dagger_payload::payload::SignedPayload;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::judge::snapshot::{ReadChunk, SnapshotError};
use crate::limits::{JOBS_WAITING_MAX, THREADS_MAX};
use crate::verify::{Verified, verify};

/// Payloads of one commit that one thread takes at a time.
const BATCH_PAYLOADS: usize = 256;

enum Job {
    Verify { payloads: Vec<SignedPayload>, answer: oneshot::Sender<Vec<Verified>> },
    Read { chunk: Bytes, answer: oneshot::Sender<Result<ReadChunk, SnapshotError>> },
}

/// A chunk that is being read.
pub(super) struct Reading(oneshot::Receiver<Result<ReadChunk, SnapshotError>>);

/// A handle to the threads.
#[derive(Clone)]
pub(super) struct Pool {
    jobs: Sender<Job>,
}

/// How many threads there should be.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(THREADS_MAX)
}

impl Pool {
    pub(super) fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, waiting) = channel(JOBS_WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..threads {
            let waiting = waiting.clone();
            std::thread::Builder::new()
                .name(format!("verify-{number}"))
                .spawn(move || work(&waiting))?;
        }
        Ok(Self { jobs })
    }

    /// Checks all payloads; the answers are in their order.
    pub(super) async fn verify(&self, payloads: Vec<SignedPayload>) -> Vec<Verified> {
        let mut answers = Vec::new();
        for batch in payloads.chunks(BATCH_PAYLOADS) {
            let (answer, verified) = oneshot::channel();
            self.give(Job::Verify { payloads: batch.to_vec(), answer }).await;
            answers.push(verified);
        }
        let mut verified = Vec::with_capacity(payloads.len());
        for answer in answers {
            verified.extend(answer.await.expect("a verifying thread never drops a batch"));
        }
        verified
    }

    /// Begins to read a chunk of a snapshot.
    pub(super) async fn read(&self, chunk: Bytes) -> Reading {
        let (answer, read) = oneshot::channel();
        self.give(Job::Read { chunk, answer }).await;
        Reading(read)
    }

    async fn give(&self, job: Job) {
        let given = self.jobs.send(job).await;
        assert!(given.is_ok(), "the verifying threads live as long as the process");
    }
}

impl Reading {
    /// The chunk, once it is read.
    pub(super) async fn done(self) -> Result<ReadChunk, SnapshotError> {
        self.0.await.expect("a verifying thread never drops a chunk")
    }
}

fn work(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        // Nobody waits for an answer any more when the conversation ended meanwhile.
        match job {
            Some(Job::Verify { payloads, answer }) => {
                let _ = answer.send(payloads.iter().map(verify).collect());
            }
            Some(Job::Read { chunk, answer }) => {
                let _ = answer.send(ReadChunk::read(&chunk));
            }
            None => return,
        }
    }
}
