//! No step is carried out for a VM before its intent is durable: which step, in which generation,
//! by which payload.

use super::super::work::Work;
use super::{Observed, Scene};

pub(super) fn watch(observed: &Observed<'_>, scene: &Scene<'_>) -> Result<(), String> {
    let Observed::Acts(work) = observed else { return Ok(()) };
    let Some(vm) = work.vm() else { return Ok(()) };
    let Some(record) = scene.here().record(vm) else {
        return Err(format!("{}, and nothing is written down", work.line()));
    };
    // A newer request may have been written down since.
    let is_older = |generation| record.generation > generation;
    match work {
        Work::Vm(job) if is_older(job.tags.generation) => Ok(()),
        Work::Vm(job) => {
            let told = (record.step, record.generation, record.payload);
            let done = (work.step(), job.tags.generation, job.tags.payload);
            if told == done {
                return Ok(());
            }
            Err(format!("{}, and {told:?} is written down", work.line()))
        }
        Work::Halt(job) => {
            let is_written = record.halted_at.is_some() && record.step == work.step();
            let is_right = is_written || is_older(job.generation);
            if is_right { Ok(()) } else { Err(format!("{} is not written down", work.line())) }
        }
        Work::Volume(_) => Ok(()),
    }
}
