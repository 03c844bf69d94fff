//! How the daemon ends: the exit codes, and the way by which any part asks for the end.
//!
//! Owns the meaning of each code; the systemd unit lists which of them must not restart the daemon.
//! Called by `main` and by every part that may find something broken.

use std::error::Error;
use std::process::ExitCode;

use tokio::sync::mpsc;

use crate::store::StoreError;

/// Exit codes of the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// An orderly stop.
    Ok = 0,
    /// The configuration, a key or the genesis was refused.
    Configuration = 64,
    /// This host's state contradicts itself, or is damaged and nobody else has it.
    Broken = 65,
    /// The store is damaged or its disk failed: the next start reads it whole, and puts it aside
    /// when that shows damage.
    Damaged = 66,
    /// A defect of this program.
    Internal = 70,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a running daemon ends.
#[derive(Debug)]
pub enum Stop {
    /// Someone asked (SIGTERM, SIGINT).
    Asked,
    /// State is damaged ([`Exit::Damaged`]) or contradicts itself ([`Exit::Broken`]).
    Broken(Box<dyn Error + Send + Sync>),
    /// A part ended that never should: [`Exit::Internal`].
    Internal(Box<dyn Error + Send + Sync>),
}

impl Stop {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Asked => Exit::Ok,
            Self::Broken(error) if is_damage(error.as_ref()) => Exit::Damaged,
            Self::Broken(_) => Exit::Broken,
            Self::Internal(_) => Exit::Internal,
        }
    }
}

/// Whether the store or its disk is at the root of `error`.
fn is_damage(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let store = error.downcast_ref::<StoreError>();
        if let Some(
            StoreError::Damaged { .. }
            | StoreError::Lost { .. }
            | StoreError::Page { .. }
            | StoreError::Failed { .. },
        ) = store
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Asks the daemon to end; the first reason counts.
#[derive(Clone)]
pub struct StopHandle {
    reasons: mpsc::Sender<Stop>,
}

/// Receives the reason.
pub struct StopReceiver {
    reasons: mpsc::Receiver<Stop>,
}

/// A handle and its receiver.
pub fn channel() -> (StopHandle, StopReceiver) {
    let (sender, reasons) = mpsc::channel(1);
    (StopHandle { reasons: sender }, StopReceiver { reasons })
}

impl StopHandle {
    /// Asks for the end.
    pub fn stop(&self, reason: Stop) {
        // When the one place is taken an earlier reason stands, which counts.
        drop(self.reasons.try_send(reason));
    }
}

impl StopReceiver {
    /// The first reason; [`Stop::Asked`] when every part has gone.
    pub async fn wait(&mut self) -> Stop {
        self.reasons.recv().await.unwrap_or(Stop::Asked)
    }
}

/// An error with all of its causes, in one line.
pub fn in_words(error: &(dyn Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
