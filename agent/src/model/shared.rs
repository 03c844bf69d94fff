//! The model behind a lock, with a signal for those who wait.
//!
//! One writer (the release stream), many readers. Readers hold the lock for one look only, never
//! across an `await`.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::Model;
use crate::verify::reader::Progress;

/// The model and where reading stands; cheap to clone.
#[derive(Clone)]
pub struct SharedModel {
    model: Arc<RwLock<Model>>,
    progress: Arc<watch::Sender<Progress>>,
}

impl SharedModel {
    /// Shares `model`.
    pub fn new(model: Model, progress: Progress) -> Self {
        Self {
            model: Arc::new(RwLock::new(model)),
            progress: Arc::new(watch::Sender::new(progress)),
        }
    }

    /// Looks at the model.
    pub fn read<T>(&self, look: impl FnOnce(&Model) -> T) -> T {
        look(&self.model.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the model; [`SharedModel::publish`] tells those who wait.
    pub fn write(&self, change: impl FnOnce(&mut Model)) {
        change(&mut self.model.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Says where reading stands, and wakes those who wait if that is news.
    pub fn publish(&self, progress: Progress) {
        self.progress.send_if_modified(|current| {
            let news = *current != progress;
            *current = progress;
            news
        });
    }

    /// Where reading stands.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// To wait for news.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}
