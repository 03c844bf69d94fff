//! Steps under way: the record first, then the call, then its end.
//!
//! Owns the course of a step as the agent's actuator has it (one at a time for each subject, a
//! deadline, a late call that keeps its turn), and what may befall it at each point. Called by the
//! world.

use std::rc::Rc;

use dagger_controller::machine::Power;
use dagger_controller::{Collection, Input, Outcome, Sighting, Step};
use dagger_payload::id::VmId;

use super::faults::FaultKind;
use super::promise::{Broken, Observed};
use super::work::Work;
use super::world::{Event, Life, World};

/// How long a step may take before its outcome counts as unknown.
const DEADLINE_MS: u64 = 30_000;

impl World {
    pub(super) fn begin(&mut self, life: Life, work: Work) -> Result<(), Broken> {
        self.log.note(self.now_ms, life.host, &format!("begins {}", work.line()));
        self.observe(life.host, &Observed::Begins(&work))?;
        let number = self.steps;
        self.steps += 1;
        let Some(agent) = self.agent(life) else { return Ok(()) };
        agent.awaited.insert(number);
        let (is_free, work) = (agent.turns.insert(work.subject()), Rc::new(work));
        if is_free {
            self.after((0, 30), Event::Persist(life, number, work));
        } else {
            self.after((0, 2), Event::Deadline(life, number, work));
        }
        Ok(())
    }

    pub(super) fn persist(
        &mut self,
        life: Life,
        number: u64,
        work: Rc<Work>,
    ) -> Result<(), Broken> {
        let host = life.host;
        if self.agent(life).is_none() || self.crashes(host, FaultKind::CrashBeforePersist) {
            return Ok(());
        }
        if let Some(record) = work.record() {
            self.hosts[host].write(record);
        }
        let hangs_until_ms = self.hosts[host].hangs_until_ms;
        self.at(self.now_ms + DEADLINE_MS, Event::Deadline(life, number, Rc::clone(&work)));
        if work.is_call() && hangs_until_ms > self.now_ms {
            self.at(hangs_until_ms + 1, Event::Effect(life, number, work));
        } else {
            self.after((1, 60), Event::Effect(life, number, work));
        }
        // A call that was made may outlive who made it.
        self.crashes(host, FaultKind::CrashAfterPersist);
        Ok(())
    }

    /// The step takes effect, or does not.
    pub(super) fn effect(&mut self, life: Life, number: u64, work: Rc<Work>) -> Result<(), Broken> {
        let host = life.host;
        if self.agent(life).is_none() {
            // Who made the call is dead; a hypervisor may carry it out all the same.
            if work.is_call() && self.befalls(FaultKind::LateCall) {
                self.count(FaultKind::LateCall);
                self.log.note(self.now_ms, host, &format!("too late: {}", work.line()));
                return self.act(life, &work).map(drop);
            }
            return Ok(());
        }
        let outcome = self.outcome(life, &work)?;
        if self.crashes(host, FaultKind::CrashAfterStep) {
            return Ok(());
        }
        let is_deaf = work.is_call() && self.hosts[host].is_deaf(self.now_ms);
        let Some(agent) = self.agent(life) else { return Ok(()) };
        let ticket = agent.ticket();
        let (outcome, sighting) = match is_deaf {
            true => (outcome, None),
            false => work.checked(outcome, ticket, &self.hosts[host].metal),
        };
        self.after((0, 40), Event::End(life, number, work, outcome, sighting));
        Ok(())
    }

    fn outcome(&mut self, life: Life, work: &Work) -> Result<Outcome, Broken> {
        if work.is_call() && self.hosts[life.host].is_deaf(self.now_ms) {
            return Ok(Outcome::Unknown("hypervisor_unavailable: it does not answer".to_owned()));
        }
        if self.befalls(FaultKind::StepRetried) {
            self.count(FaultKind::StepRetried);
            return Ok(Outcome::Retryable("step_failed: not now".to_owned()));
        }
        if work.may_be_terminal() && self.befalls(FaultKind::StepRefused) {
            self.count(FaultKind::StepRefused);
            return Ok(Outcome::Terminal("step_refused: never".to_owned()));
        }
        if self.befalls(FaultKind::StepUnknownUndone) {
            self.count(FaultKind::StepUnknownUndone);
            return Ok(Outcome::Unknown("deadline_passed: nobody knows".to_owned()));
        }
        let outcome = self.act(life, work)?;
        if self.befalls(FaultKind::StepUnknownDone) {
            self.count(FaultKind::StepUnknownDone);
            return Ok(Outcome::Unknown("deadline_passed: nobody knows".to_owned()));
        }
        Ok(outcome)
    }

    fn act(&mut self, life: Life, work: &Work) -> Result<Outcome, Broken> {
        let host = life.host;
        if self.agent(life).is_some() {
            self.observe(host, &Observed::Acts(work))?;
        }
        let outcome = work.carry_out(&mut self.hosts[host].metal);
        self.log.note(self.now_ms, host, &format!("{}: {outcome:?}", work.line()));
        self.show_deeds(host, Some(work))?;
        let Some(vm) = work.vm().filter(|_| work.is_call()) else { return Ok(outcome) };
        let runs = self.hosts[host].metal.domain(vm).map(|domain| domain.power);
        if work.step() == Some(Step::AskShutdown)
            && runs == Some(Power::Running)
            && self.random.happens(700)
        {
            self.after((200, 20_000), Event::GuestStops(host, vm));
        }
        self.announce(host, vm);
        Ok(outcome)
    }

    pub(super) fn show_deeds(&mut self, host: usize, work: Option<&Work>) -> Result<(), Broken> {
        for deed in self.hosts[host].metal.deeds() {
            self.observe(host, &Observed::Did(&deed, work))?;
        }
        Ok(())
    }

    /// The hypervisor mostly tells when something changed.
    pub(super) fn announce(&mut self, host: usize, vm: VmId) {
        if self.random.happens(850) {
            let life = self.life(host);
            self.after((5, 300), Event::Look(life, vm));
        }
    }

    pub(super) fn end(
        &mut self,
        life: Life,
        number: u64,
        work: &Work,
        outcome: Outcome,
        sighting: Option<Sighting>,
    ) -> Result<(), Broken> {
        let Some(agent) = self.agent(life) else { return Ok(()) };
        agent.turns.remove(&work.subject());
        if !agent.awaited.remove(&number) {
            return Ok(()); // its deadline had passed
        }
        let ticket = agent.ticket();
        self.input(life, work.ended(outcome, sighting, ticket))
    }

    /// A step has taken too long, or an earlier one still has its turn.
    pub(super) fn deadline(&mut self, life: Life, number: u64, work: &Work) -> Result<(), Broken> {
        let Some(agent) = self.agent(life) else { return Ok(()) };
        if !agent.awaited.remove(&number) {
            return Ok(());
        }
        let ticket = agent.ticket();
        let outcome = Outcome::Unknown("hypervisor_hangs: it has not returned".to_owned());
        self.input(life, work.ended(outcome, None, ticket))
    }

    pub(super) fn guest_stops(&mut self, host: usize, vm: VmId) {
        self.hosts[host].metal.lose_power(vm);
        self.log.note(self.now_ms, host, &format!("the guest of VM {vm} is off"));
        self.announce(host, vm);
    }

    pub(super) fn collect(&mut self, life: Life, collection: &Collection) -> Result<(), Broken> {
        if self.agent(life).is_none() {
            return Ok(());
        }
        let metal = &mut self.hosts[life.host].metal;
        match collection {
            Collection::Remains(proof) => metal.collect(proof),
            Collection::Image(proof) => metal.collect_image(proof.image()),
        }
        self.log.note(self.now_ms, life.host, &format!("collects {collection:?}"));
        self.show_deeds(life.host, None)?;
        self.input(life, Input::Collected)
    }
}
