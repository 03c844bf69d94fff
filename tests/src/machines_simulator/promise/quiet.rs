//! Once nothing is left to do, the controller is quiet: it begins no step, writes nothing down and
//! reports nothing.

use super::{Observed, Scene};

#[derive(Default)]
pub(super) struct Watch {
    since_ms: Option<u64>,
}

impl Watch {
    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        if let Observed::QuietBegins = observed {
            self.since_ms = Some(scene.now_ms);
        }
        let Some(since_ms) = self.since_ms else { return Ok(()) };
        let after_ms = scene.now_ms - since_ms;
        match observed {
            Observed::Begins(work) => {
                Err(format!("{} after {after_ms} ms of nothing to do", work.line()))
            }
            Observed::Says(what) => Err(format!("a {what} after {after_ms} ms of nothing to do")),
            _ => Ok(()),
        }
    }
}
