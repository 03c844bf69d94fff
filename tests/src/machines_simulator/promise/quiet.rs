//! Once nothing is left to do, the controller is quiet: it begins no step, writes nothing down and
//! reports nothing. Only a snapshot that could not be taken is tried again, twice a minute at most:
//! its volume was given to a machine that cannot have it before it is switched on anew.

use std::collections::BTreeMap;

use dagger_controller::{Input, Outcome, VolumeAction};
use dagger_payload::id::SnapshotId;

use super::super::work::Work;
use super::{Observed, Scene};

/// Between two tries.
const PAUSE_MS_MIN: u64 = 20_000;

#[derive(Default)]
pub(super) struct Watch {
    since_ms: Option<u64>,
    /// Snapshots that could not be taken, by host, and when they were last tried.
    failing: BTreeMap<(usize, SnapshotId), u64>,
}

impl Watch {
    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        match observed {
            Observed::QuietBegins => self.since_ms = Some(scene.now_ms),
            Observed::Told(Input::VolumeFinished(finished)) => {
                if let (Some((snapshot, _)), Outcome::Retryable(_)) =
                    (finished.snapshot, &finished.outcome)
                {
                    self.failing.insert((scene.host, snapshot), scene.now_ms);
                }
            }
            _ => {}
        }
        let Some(since_ms) = self.since_ms else { return Ok(()) };
        let after_ms = scene.now_ms - since_ms;
        match observed {
            Observed::Begins(work) if self.is_tried_again(work, scene) => Ok(()),
            Observed::Begins(work) => {
                Err(format!("{} after {after_ms} ms of nothing to do", work.line()))
            }
            Observed::Says(what) => Err(format!("a {what} after {after_ms} ms of nothing to do")),
            _ => Ok(()),
        }
    }

    fn is_tried_again(&self, work: &Work, scene: &Scene<'_>) -> bool {
        let Work::Volume(job) = work else { return false };
        let VolumeAction::Keep(snapshot, _) = job.action else { return false };
        let failed = self.failing.get(&(scene.host, snapshot));
        failed.is_some_and(|at_ms| at_ms + PAUSE_MS_MIN <= scene.now_ms)
    }
}
