//! Where hypervisors say that something happened by itself.
//!
//! Owns the channel's sending end and the memory that something was missed. Never blocks. Called by
//! the hypervisors; the observation asks it for what was missed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dagger_payload::id::HostId;
use tokio::sync::mpsc;

use super::Change;
use super::names::HostNames;

/// Where changes are announced; when the channel is full, that something was missed is remembered
/// instead.
#[derive(Debug, Clone)]
pub struct Announcer {
    names: HostNames,
    changes: mpsc::Sender<Change>,
    missed: Arc<AtomicBool>,
}

impl Announcer {
    /// For changes of this host's machines.
    pub fn new(host: HostId, changes: mpsc::Sender<Change>) -> Self {
        Self { names: HostNames::of(host), changes, missed: Arc::default() }
    }

    /// Says it, or remembers that it could not be said.
    pub(super) fn announce(&self, change: Change) {
        if self.changes.try_send(change).is_err() {
            self.miss();
        }
    }

    /// Whose machines these are.
    pub fn names(&self) -> HostNames {
        self.names
    }

    /// Remembers that something was missed.
    pub fn miss(&self) {
        self.missed.store(true, Ordering::Release);
    }

    /// Whether a change was missed since this was last asked: then only a full listing helps.
    pub fn take_missed(&self) -> bool {
        self.missed.swap(false, Ordering::AcqRel)
    }
}
