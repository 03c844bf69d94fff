//! Nothing is done but what an attested version asks for, the newest that the host was ever told,
//! and nothing while its ledger shows less than it did or has not told all that it has.

use std::collections::BTreeMap;

use dagger_controller::Input;
use dagger_controller::order::Order;
use dagger_payload::id::{CommitIndex, Generation, VmId, VolumeId};

use super::super::work::Work;
use super::{Observed, Scene};

#[derive(Debug, Default)]
struct Known {
    is_live: bool,
    /// The newest that this agent was told.
    vms: BTreeMap<VmId, (Generation, CommitIndex)>,
    volumes: BTreeMap<VolumeId, (Generation, CommitIndex)>,
    /// The newest that was acted on here, by whichever agent.
    acted: BTreeMap<VmId, Generation>,
}

pub(super) struct Watch(Vec<Known>);

impl Watch {
    pub(super) fn new(hosts: usize) -> Self {
        Self((0..hosts).map(|_| Known::default()).collect())
    }

    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), String> {
        let known = &mut self.0[scene.host];
        match observed {
            Observed::AgentBegan => {
                *known = Known { acted: std::mem::take(&mut known.acted), ..Known::default() };
            }
            Observed::Told(Input::Order(order)) => known.take(order),
            Observed::Begins(work) => return known.check(work, scene),
            _ => {}
        }
        Ok(())
    }
}

impl Known {
    fn take(&mut self, order: &Order) {
        match order {
            Order::Vm(told) => {
                let newest = self.vms.entry(told.vm.id).or_default();
                *newest = (*newest).max((told.vm.generation, told.commit));
            }
            Order::Volume(told) => {
                let newest = self.volumes.entry(told.volume.id).or_default();
                *newest = (*newest).max((told.volume.generation, told.commit));
            }
            Order::CaughtUp(_) => self.is_live = true,
            Order::Hold(_) => self.is_live = false,
            Order::Host(_) | Order::Image(_) | Order::LedgerTime(_) => {}
        }
    }

    fn check(&mut self, work: &Work, scene: &Scene<'_>) -> Result<(), String> {
        if let Work::Halt(_) = work {
            return Ok(()); // the operator's word counts in every mode
        }
        if !self.is_live {
            return Err(format!("{} while nothing may be done", work.line()));
        }
        let newest_shown = CommitIndex(scene.here().newest);
        match work {
            Work::Vm(job) => {
                let id = job.vm.id;
                let mut versions = scene.court.vm_versions.get(&id).into_iter().flatten();
                let is_version =
                    |(commit, vm): &&(CommitIndex, _)| *commit <= newest_shown && *vm == job.vm;
                if versions.rfind(is_version).is_none() {
                    return Err(format!("{}: no attested version says that", work.line()));
                }
                let (generation, _) = self.vms.get(&id).copied().unwrap_or_default();
                let acted = self.acted.entry(id).or_default();
                if job.vm.generation < generation.max(*acted) {
                    return Err(format!(
                        "{}, and generation {} is known",
                        work.line(),
                        generation.max(*acted)
                    ));
                }
                *acted = job.vm.generation;
            }
            Work::Volume(job) => {
                let id = job.volume.id;
                let mut versions = scene.court.volume_versions.get(&id).into_iter().flatten();
                let is_version = |(commit, volume): &&(CommitIndex, _)| {
                    *commit <= newest_shown && *volume == job.volume
                };
                let Some((commit, _)) = versions.rfind(is_version) else {
                    return Err(format!("{}: no attested version says that", work.line()));
                };
                let (_, newest) = self.volumes.get(&id).copied().unwrap_or_default();
                if *commit < newest {
                    return Err(format!("{}, of commit {commit}, not {newest}", work.line()));
                }
            }
            Work::Halt(_) => {}
        }
        Ok(())
    }
}
