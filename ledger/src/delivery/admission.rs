//! The processor's door: may this payload be packed, what would come of that document, and what
//! stands in the judged state?
//!
//! Owns the connection for admissions, kept up with back-off, and matches answers to questions by
//! their ids. Never decides and never repeats a question: who asked is told that the processor is
//! gone. Called by requests.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use dagger_bus::judging::{Admission, AdmissionOutcome, Admit, Asked, ProofAt, Purpose};
use dagger_bus::limits::ANSWER_WAIT_MAX;
use dagger_bus::{BusError, Connection};
use dagger_payload::id::LedgerTime;
use dagger_payload::payload::SignedPayload;
use dagger_payload::proof::JudgedProof;
use dagger_payload::state_tree::Subject;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Delivery;
use super::judging::{Patience, open};
use crate::exit::in_words;
use crate::limits::ADMISSIONS_MAX;

struct Question {
    asked: Asked,
    now: LedgerTime,
    answer: oneshot::Sender<AdmissionOutcome>,
}

/// The way to the door.
pub struct Admissions(Door);

enum Door {
    /// The processor keeps it.
    Kept { questions: mpsc::Sender<Question>, connected: Arc<AtomicBool> },
    /// Nothing is judged in this cluster: everything may be packed.
    Open,
}

/// What [`run`] works on.
pub struct Questions {
    questions: mpsc::Receiver<Question>,
    connected: Arc<AtomicBool>,
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoAnswer {
    /// Too many questions wait.
    TooMany,
    /// The processor is not there, or went away.
    NoProcessor,
    /// Nothing is judged in this cluster.
    NotJudged,
}

/// A door and what serves it.
pub fn door() -> (Admissions, Questions) {
    let (sender, questions) = mpsc::channel(ADMISSIONS_MAX);
    let connected = Arc::new(AtomicBool::new(false));
    let door = Door::Kept { questions: sender, connected: connected.clone() };
    (Admissions(door), Questions { questions, connected })
}

impl Admissions {
    /// A door through which everything may pass, in a cluster where nothing is judged.
    pub fn open() -> Self {
        Self(Door::Open)
    }

    /// Whether the processor can be asked now.
    pub fn is_connected(&self) -> bool {
        match &self.0 {
            Door::Kept { connected, .. } => connected.load(Ordering::Relaxed),
            Door::Open => true,
        }
    }

    /// Asks. `now` is the later of ledger time and the host's clock.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn ask(
        &self,
        payload: SignedPayload,
        now: LedgerTime,
    ) -> Result<AdmissionOutcome, NoAnswer> {
        match self.put(Asked::Pack { payload: payload.clone() }, now).await {
            Err(NoAnswer::NotJudged) => {
                Ok(AdmissionOutcome::Admitted { digest: payload.digest(), account: None })
            }
            answered => answered,
        }
    }

    /// Asks what would come of a document.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn predict(
        &self,
        document: Bytes,
        now: LedgerTime,
    ) -> Result<AdmissionOutcome, NoAnswer> {
        self.put(Asked::Predict { document }, now).await
    }

    /// Asks what stands under a subject of the judged state; none when the processor cannot tell
    /// now.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn prove(
        &self,
        subject: Subject,
        at: ProofAt,
    ) -> Result<Option<JudgedProof>, NoAnswer> {
        // Proofs do not depend on any clock.
        match self.put(Asked::Prove { subject, at }, LedgerTime(0)).await? {
            AdmissionOutcome::Proven { proof } => Ok(Some(*proof)),
            AdmissionOutcome::NotProven
            | AdmissionOutcome::Admitted { .. }
            | AdmissionOutcome::Known { .. }
            | AdmissionOutcome::Refused { .. }
            | AdmissionOutcome::Predicted { .. } => Ok(None),
        }
    }

    async fn put(&self, asked: Asked, now: LedgerTime) -> Result<AdmissionOutcome, NoAnswer> {
        let Door::Kept { questions, .. } = &self.0 else {
            return Err(NoAnswer::NotJudged);
        };
        if !self.is_connected() {
            return Err(NoAnswer::NoProcessor);
        }
        let (answer, answered) = oneshot::channel();
        let question = Question { asked, now, answer };
        questions.try_send(question).map_err(|_| NoAnswer::TooMany)?;
        match timeout(ANSWER_WAIT_MAX, answered).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) | Err(_) => Err(NoAnswer::NoProcessor),
        }
    }
}

/// Keeps the door open until the daemon stops.
pub async fn run(delivery: Arc<Delivery>, socket: PathBuf, mut questions: Questions) {
    let mut patience = Patience::default();
    loop {
        match open(&delivery, &socket, Purpose::Admissions).await {
            Ok((connection, _)) => {
                patience = Patience::default();
                questions.connected.store(true, Ordering::Relaxed);
                let ended = serve(connection, &mut questions.questions).await;
                questions.connected.store(false, Ordering::Relaxed);
                // Who asked meanwhile hears that nobody answers.
                while questions.questions.try_recv().is_ok() {}
                match ended {
                    Ok(()) => return,
                    Err(error) => {
                        patience.wait("the processor's door closed", in_words(&error)).await
                    }
                }
            }
            Err(error) => patience.wait("no processor to ask", in_words(&error)).await,
        }
    }
}

async fn serve(
    connection: Connection,
    questions: &mut mpsc::Receiver<Question>,
) -> Result<(), BusError> {
    let Connection { mut sender, mut receiver } = connection;
    let mut asked: HashMap<u64, oneshot::Sender<AdmissionOutcome>> = HashMap::new();
    let mut next_id = 0;
    loop {
        tokio::select! {
            question = questions.recv(), if asked.len() < ADMISSIONS_MAX => {
                let Some(Question { asked: question, now, answer }) = question else {
                    return Ok(());
                };
                next_id += 1;
                asked.insert(next_id, answer);
                sender.send(&Admit { id: next_id, asked: question, now }).await?;
            }
            admission = receiver.receive() => {
                let Admission { id, outcome } = admission?;
                let answer = asked.remove(&id).ok_or(BusError::Malformed)?;
                // Who no longer waits needs no answer.
                let _ = answer.send(outcome);
            }
        }
    }
}
