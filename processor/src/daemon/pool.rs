//! The threads that check signatures.
//!
//! Owns how many there are and how much may wait for them. They are started before the sandbox
//! closes, for it allows no new ones. Called by the conversations in `serve`.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use dagger_payload::payload::SignedPayload;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::verify::{Verified, verify};

/// Batches that may wait; beyond that a conversation waits, and with it the ledger.
const BATCHES_WAITING_MAX: usize = 64;
/// Threads at most.
const THREADS_MAX: usize = 8;
/// Payloads of one commit that one thread takes at a time.
const BATCH_PAYLOADS: usize = 256;

struct Batch {
    payloads: Vec<SignedPayload>,
    answer: oneshot::Sender<Vec<Verified>>,
}

/// A handle to the threads.
#[derive(Clone)]
pub(super) struct Pool {
    batches: Sender<Batch>,
}

impl Pool {
    pub(super) fn start() -> std::io::Result<Self> {
        let (batches, waiting) = channel(BATCHES_WAITING_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        for number in 0..cores.min(THREADS_MAX) {
            let waiting = waiting.clone();
            std::thread::Builder::new()
                .name(format!("verify-{number}"))
                .spawn(move || work(&waiting))?;
        }
        Ok(Self { batches })
    }

    /// Checks all payloads; the answers are in their order.
    pub(super) async fn verify(&self, payloads: Vec<SignedPayload>) -> Vec<Verified> {
        let mut answers = Vec::new();
        for batch in payloads.chunks(BATCH_PAYLOADS) {
            let (answer, verified) = oneshot::channel();
            let batch = Batch { payloads: batch.to_vec(), answer };
            let sent = self.batches.send(batch).await;
            assert!(sent.is_ok(), "the verifying threads live as long as the process");
            answers.push(verified);
        }
        let mut verified = Vec::with_capacity(payloads.len());
        for answer in answers {
            verified.extend(answer.await.expect("a verifying thread never drops a batch"));
        }
        verified
    }
}

fn work(waiting: &Mutex<Receiver<Batch>>) {
    loop {
        let batch = waiting.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
        let Some(batch) = batch else { return };
        let verified = batch.payloads.iter().map(verify).collect();
        // Nobody waits any more when the conversation ended meanwhile.
        let _ = batch.answer.send(verified);
    }
}
