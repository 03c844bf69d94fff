//! What strikes hosts at times of their own, and how everything is mended in the end.
//!
//! Owns the harm of each kind and its bounds: what nobody could bear, and nobody promises to, is
//! left out (a lost state directory together with an older view; a lost disk of which nobody had
//! said that it was made). Called by the world.

use dagger_controller::Input;
use dagger_controller::machine::Power;
use dagger_controller::order::ReportSubject;
use dagger_payload::id::{VmId, VolumeId};
use dagger_payload::kind::{ReportPhase, StopManner};
use dagger_payload::volume::VolumeDisk;

use super::faults::FaultKind;
use super::host::Told;
use super::metal::Standing;
use super::promise::Broken;
use super::world::{Event, Season, World};
use dagger_controller::selection::Selection;

impl World {
    pub(super) fn strike(&mut self) -> Result<(), Broken> {
        if self.season == Season::Calm {
            return Ok(());
        }
        let host = self.random.index(self.hosts.len());
        if let Some(kind) = self.mixture.strike(&mut self.random)
            && self.is_struck(host, kind)?
        {
            self.log.note(self.now_ms, host, &format!("strikes: {kind:?}"));
            self.count(kind);
        }
        let pause_ms = self.mixture.pause_ms;
        self.after((pause_ms / 4, pause_ms * 2), Event::Strike);
        Ok(())
    }

    /// Strikes, if there is anything to strike.
    fn is_struck(&mut self, host: usize, kind: FaultKind) -> Result<bool, Broken> {
        let now_ms = self.now_ms;
        match kind {
            FaultKind::CrashAtRest => Ok(self.kill(host, "at rest")),
            FaultKind::LostState => Ok(self.lose_state(host)),
            FaultKind::LostRecord => Ok(self.lose_record(host)),
            FaultKind::SightLost => {
                let until_ms = now_ms + self.random.within((500, 40_000));
                self.hosts[host].deaf_until_ms = until_ms;
                self.lose_sight(host, until_ms)
            }
            FaultKind::HypervisorHangs => {
                let until_ms = now_ms + self.random.within((5_000, 90_000));
                self.hosts[host].hangs_until_ms = until_ms;
                self.lose_sight(host, until_ms)
            }
            FaultKind::GuestKilled => Ok(self.kill_guest(host)),
            FaultKind::HostRebooted => Ok(self.reboot(host)),
            FaultKind::DefinitionLost => Ok(self.lose_definition(host)),
            FaultKind::DiskFull => {
                self.hosts[host].metal.is_full = true;
                self.after((2_000, 60_000), Event::Room(host));
                Ok(true)
            }
            FaultKind::DiskLost => Ok(self.lose_disk(host)),
            FaultKind::VolumeLost => Ok(self.lose_volume(host)),
            FaultKind::ViewDelayed => {
                let until_ms = now_ms + self.random.within((2_000, 40_000));
                self.hosts[host].stalled_until_ms = until_ms;
                self.at(until_ms, Event::View(host));
                Ok(true)
            }
            FaultKind::OlderView => Ok(self.show_older(host)),
            FaultKind::HistoryToldAgain => Ok(self.tell_again(host)),
            FaultKind::Stranger => Ok(self.make_stranger(host)),
            FaultKind::TimeJumps => {
                self.court.ahead_ms += self.random.within((20_000, 7_200_000));
                Ok(true)
            }
            FaultKind::LocalStop => self.stop_by_hand(host),
            _ => Ok(false), // befalls what happens
        }
    }

    fn kill(&mut self, host: usize, why: &str) -> bool {
        let lived = self.hosts[host].agent.is_some();
        self.agent_dies(host, why);
        lived
    }

    fn lose_state(&mut self, host: usize) -> bool {
        let here = &mut self.hosts[host];
        if here.shown < here.mark {
            return false; // then nobody could know that it is older
        }
        (here.mark, here.journal) = (0, Default::default());
        self.kill(host, "its state is lost");
        true
    }

    fn lose_record(&mut self, host: usize) -> bool {
        let vms: Vec<VmId> = self.hosts[host].journal.keys().copied().collect();
        if vms.is_empty() {
            return false;
        }
        let vm = self.random.choose(&vms);
        self.hosts[host].journal.remove(&vm);
        self.kill(host, "a record does not read");
        true
    }

    fn lose_sight(&mut self, host: usize, until_ms: u64) -> Result<bool, Broken> {
        self.at(until_ms, Event::Hear(host));
        let life = self.life(host);
        let Some(agent) = self.agent(life) else { return Ok(true) };
        let ticket = agent.ticket();
        self.input(life, Input::SightLost { ticket })?;
        Ok(true)
    }

    /// One of the machines here for which this holds.
    fn machine(&mut self, host: usize, is_it: impl Fn(Power) -> bool) -> Option<VmId> {
        let metal = &self.hosts[host].metal;
        let all = metal.standing.keys().copied();
        let fits = all.filter(|vm| metal.domain(*vm).is_some_and(|domain| is_it(domain.power)));
        let fits: Vec<VmId> = fits.collect();
        (!fits.is_empty()).then(|| self.random.choose(&fits))
    }

    fn kill_guest(&mut self, host: usize) -> bool {
        let Some(vm) = self.machine(host, |power| power != Power::Stopped) else { return false };
        self.guest_stops(host, vm);
        true
    }

    fn reboot(&mut self, host: usize) -> bool {
        let keeps_definitions = self.random.happens(500);
        let metal = &mut self.hosts[host].metal;
        for vm in metal.standing.keys().copied().collect::<Vec<_>>() {
            metal.lose_power(vm);
        }
        metal.cards.clear();
        if !keeps_definitions {
            metal.standing.retain(|_, standing| matches!(standing, Standing::Strange(_)));
        }
        self.kill(host, "the host is switched off and on");
        true
    }

    fn lose_definition(&mut self, host: usize) -> bool {
        let Some(vm) = self.machine(host, |power| power == Power::Stopped) else { return false };
        self.hosts[host].metal.standing.remove(&vm);
        self.announce(host, vm);
        true
    }

    /// Only a disk of which its host has said that it was there.
    fn lose_disk(&mut self, host: usize) -> bool {
        let here = &self.hosts[host];
        let was_told = |vm: &&VmId| {
            let report = self.court.vms.get(*vm).and_then(|vm| vm.reported.as_ref());
            report.is_some_and(|report| {
                report.host == here.id
                    && matches!(report.phase, ReportPhase::Running | ReportPhase::Stopped)
            })
        };
        let disks = here.metal.disks.keys().filter(|vm| !here.metal.is_in_memory(**vm));
        let disks: Vec<VmId> = disks.filter(was_told).copied().collect();
        if disks.is_empty() {
            return false;
        }
        let vm = self.random.choose(&disks);
        self.hosts[host].metal.disks.remove(&vm);
        true
    }

    fn lose_volume(&mut self, host: usize) -> bool {
        let metal = &self.hosts[host].metal;
        let was_told = |volume: &&VolumeId| {
            let judged = self.court.volumes.get(*volume);
            judged.is_some_and(|volume| volume.disk == VolumeDisk::Made)
        };
        let volumes = metal.volumes.keys().filter(|volume| metal.holder(**volume).is_none());
        let volumes: Vec<VolumeId> = volumes.filter(was_told).copied().collect();
        if volumes.is_empty() {
            return false;
        }
        let volume = self.random.choose(&volumes);
        self.hosts[host].metal.volumes.remove(&volume);
        self.hosts[host].lost.insert(volume);
        true
    }

    fn show_older(&mut self, host: usize) -> bool {
        let here = &self.hosts[host];
        if here.mark < 2 || here.shown < here.mark {
            return false;
        }
        let older = here.mark - self.random.within((1, (here.mark - 1).min(40)));
        let until_ms = self.now_ms + self.random.within((1_000, 30_000));
        let here = &mut self.hosts[host];
        (here.shown, here.older_until_ms) = (older, until_ms);
        self.at(until_ms, Event::View(host));
        self.tell(host);
        true
    }

    /// As when the agent reads its ledger's history anew.
    fn tell_again(&mut self, host: usize) -> bool {
        let here = &mut self.hosts[host];
        let Some(agent) = &mut here.agent else { return false };
        if agent.state != Told::CaughtUp {
            return false;
        }
        (agent.told, agent.selection) = (0, Selection::new(here.id));
        self.tell(host);
        true
    }

    /// Under the name of a VM that may be placed here, or is.
    fn make_stranger(&mut self, host: usize) -> bool {
        let here = &self.hosts[host];
        let concerns = self.court.vms.values().filter(|vm| vm.placement.host() == Some(here.id));
        let free = concerns.map(|vm| vm.id).filter(|vm| !here.metal.standing.contains_key(vm));
        let free: Vec<VmId> = free.collect();
        if free.is_empty() {
            return false;
        }
        let vm = self.random.choose(&free);
        let why = "its tags name another host".to_owned();
        self.hosts[host].metal.standing.insert(vm, Standing::Strange(why));
        self.announce(host, vm);
        true
    }

    fn stop_by_hand(&mut self, host: usize) -> Result<bool, Broken> {
        let Some(vm) = self.machine(host, |power| power != Power::Stopped) else {
            return Ok(false);
        };
        let life = self.life(host);
        if self.agent(life).is_none() {
            return Ok(false);
        }
        let forced = self.random.happens(500);
        let manner = if forced { StopManner::Forced } else { StopManner::Graceful };
        let subject = Self::name(ReportSubject::Vm(vm));
        self.log.note(self.now_ms, host, &format!("by hand: {subject}"));
        self.input(life, Input::LocalStop(vm, manner, "smoke".to_owned()))?;
        Ok(true)
    }

    /// Nothing happens any more but what follows from what is there.
    pub(super) fn calm(&mut self) {
        self.season = Season::Calm;
        for host in 0..self.hosts.len() {
            let leaves = self.random.happens(500);
            let here = &mut self.hosts[host];
            here.metal.is_full = false;
            (here.stalled_until_ms, here.older_until_ms) = (0, 0);
            (here.deaf_until_ms, here.hangs_until_ms) = (0, 0);
            if leaves {
                let is_ours = |standing: &Standing| matches!(standing, Standing::Ours(_));
                here.metal.standing.retain(|_, standing| is_ours(standing));
            }
            self.view(host);
            self.hear(host);
            if self.random.happens(500) {
                self.kill(host, "for the last time");
            }
            self.after((1, 1_000), Event::AgentStarts(host));
        }
    }
}
