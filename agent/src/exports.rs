//! Copies of disks that are handed out whole.
//!
//! Owns the way from the API to the store; one at a time, since each may fill a disk. Changes
//! no disk; an image that is found damaged below one is put aside by the store. Asked by the API
//! through the [`SightBoard`](crate::handover::SightBoard).

use std::sync::Arc;

use dagger_images::{FlatDisk, ImageError};
use dagger_payload::object::Vm;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::actuator::store::{StoredDisks, disk_error};
use crate::limits::EXPORTS_TOGETHER_MAX;

/// Makes copies. Cheap to clone.
#[derive(Clone)]
pub struct Exporter {
    disks: Arc<StoredDisks>,
    turns: Arc<Semaphore>,
}

impl std::fmt::Debug for Exporter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Exporter").finish_non_exhaustive()
    }
}

/// A copy, and the turn that ends with it.
#[derive(Debug)]
pub struct Copied {
    /// The copy.
    pub disk: FlatDisk,
    /// Held for as long as the copy is.
    pub turn: OwnedSemaphorePermit,
}

/// Why there is no copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoCopy {
    /// Another one is being made or handed out.
    Busy,
    /// It would be larger than any image: asking again helps nothing.
    TooLarge(String),
    /// The store says why.
    Failed(String),
}

impl From<&ImageError> for NoCopy {
    fn from(error: &ImageError) -> Self {
        if matches!(error, ImageError::CopyTooLarge { .. }) {
            return Self::TooLarge(error.to_string());
        }
        Self::Failed(disk_error(error).to_string())
    }
}

impl Exporter {
    /// One that copies these disks.
    pub fn new(disks: Arc<StoredDisks>) -> Self {
        Self { disks, turns: Arc::new(Semaphore::new(EXPORTS_TOGETHER_MAX)) }
    }

    /// A copy of what the guest of `vm`, which is switched off, would see.
    ///
    /// # Errors
    /// [`NoCopy`].
    pub async fn copy(&self, vm: &Vm) -> Result<Copied, NoCopy> {
        let turn = Arc::clone(&self.turns).try_acquire_owned().map_err(|_| NoCopy::Busy)?;
        let (disks, vm, image) = (Arc::clone(&self.disks), vm.id, vm.image.clone());
        // The work keeps its turn also when nobody waits for it any more.
        let work = move || disks.flatten(vm, &image).map(|disk| Copied { disk, turn });
        match tokio::task::spawn_blocking(work).await {
            Ok(copied) => copied.map_err(|error| NoCopy::from(&error)),
            Err(error) => Err(NoCopy::Failed(format!("the copying ended: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use hyper::StatusCode;

    use super::*;
    use crate::api::ApiProblem;

    #[test]
    fn a_disk_that_is_too_large_is_refused_and_one_without_room_may_be_asked_for_again() {
        let too_large = NoCopy::from(&ImageError::CopyTooLarge { bytes: 2, max_bytes: 1 });
        let NoCopy::TooLarge(why) = too_large else { panic!("{too_large:?}") };
        assert!(why.contains("fstrim"), "{why}");
        let status = ApiProblem::copy_too_large(why).into_response().status();
        assert_eq!(status, StatusCode::CONFLICT);
        let directory = "/srv".into();
        let (bytes, reserve_bytes, free_bytes) = (2, 1, 1);
        let full = ImageError::NoRoom { bytes, reserve_bytes, free_bytes, directory };
        assert!(matches!(NoCopy::from(&full), NoCopy::Failed(why) if why.contains("no_room")));
    }
}
