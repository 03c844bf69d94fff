//! A stop by hand: the operator of a host switches a machine off, whatever the ledger says or
//! cannot say (R10).
//!
//! Owns that it works in every mode, from what is seen and written down alone; that it is durable
//! before it is carried out; and when it ends: with anything newer that the owner asks for. Called
//! by the controller only.

use dagger_payload::id::{HostId, VmId};
use dagger_payload::kind::{ReportPhase, StopManner};

use super::decide::{Rungs, ladder};
use super::entry::{Entry, Then};
use super::proof::StopProof;
use super::step::{HaltJob, Rung, Seen};
use super::{Controller, Monotonic, Output};
use crate::machine::{Machine, Power};
use crate::record::{DiskMark, Halt, Record};

/// The stable code before the operator's own words.
const CODE: &str = "local_stop";

/// Who says what is next for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charge {
    /// Its operator, who wants it off.
    Operator,
    /// Its owner.
    Owner,
}

impl Controller {
    /// Takes the operator's word about a machine that this host has, or has written down.
    pub(super) fn take_local_stop(
        &mut self,
        now: Monotonic,
        vm: VmId,
        (manner, reason): (StopManner, String),
        outputs: &mut Vec<Output>,
    ) {
        let here = self.here;
        if let Some(machine @ Machine::Ours { .. }) = self.strangers.remove(&vm) {
            let sighting = super::Sighting { ticket: self.listed, seen: Seen::Present(machine) };
            self.entries.entry(vm).or_insert_with(|| Entry::new(vm, None)).see(sighting);
        }
        let Some(entry) = self.entries.get_mut(&vm) else { return };
        let Some(record) = entry.record_of_machine(here) else { return };
        let generation = entry.generation().unwrap_or(record.generation);
        let tagged = entry.tags().map_or(generation, |tags| tags.generation);
        let generation = generation.max(tagged);
        let record = Record { halted_at: Some(Halt { generation, manner, reason }), ..record };
        outputs.push(Output::Persist(Box::new(record.clone())));
        entry.record = Some(record);
        entry.failure = None;
        self.advance(now, vm, outputs);
    }

    /// The operator's word about a machine, while it counts.
    pub fn halt_of(&self, vm: &VmId) -> Option<&Halt> {
        self.entries.get(vm).and_then(Entry::written_halt)
    }

    /// Sees that a machine which is to be off by its operator's word goes off.
    pub(super) fn halt(&mut self, now: Monotonic, vm: VmId, outputs: &mut Vec<Output>) -> Charge {
        let Some(entry) = self.entries.get_mut(&vm) else { return Charge::Owner };
        let Some(halt) = entry.written_halt() else { return Charge::Owner };
        let manner = halt.manner;
        let power = match &entry.sighting.seen {
            Seen::Unknown => {
                if !std::mem::replace(&mut entry.look_asked, true) {
                    outputs.push(Output::Look(vm));
                }
                return Charge::Operator;
            }
            Seen::Present(Machine::Ours { power, .. }) => *power,
            Seen::Absent | Seen::Present(Machine::Foreign(_)) => return Charge::Owner,
        };
        if let Some(Then::Retry(at)) = entry.failure.as_ref().map(|failure| failure.then)
            && at > now
        {
            entry.wake = Some(at);
            return Charge::Operator;
        }
        let rung = match (power, manner) {
            (Power::Stopped, _) => return Charge::Owner,
            (Power::Paused, _) | (_, StopManner::Forced) => Rung::Destroy,
            (Power::Running, StopManner::Graceful) => match ladder(entry.asked, now) {
                Rungs::Climb(rung) => rung,
                Rungs::Wait(until) => {
                    entry.wake = Some(until);
                    return Charge::Operator;
                }
            },
        };
        entry.wake = None;
        begin(entry, rung, outputs);
        Charge::Operator
    }
}

fn begin(entry: &mut Entry, rung: Rung, outputs: &mut Vec<Output>) {
    let Some(generation) = entry.generation() else { return };
    let Some(record) = &mut entry.record else { return };
    let Some(proof) = StopProof::of_operator(record) else { return };
    let step = rung.step();
    record.attempts = if record.step == Some(step) { record.attempts.saturating_add(1) } else { 1 };
    record.step = Some(step);
    let record = record.clone();
    entry.busy = Some(step);
    outputs.push(Output::Halt(Box::new(HaltJob { generation, record, rung, proof })));
}

impl Entry {
    /// The operator's word in the journal, while nothing newer is known to be wanted.
    pub(super) fn written_halt(&self) -> Option<&Halt> {
        let halt = self.record.as_ref()?.halted_at.as_ref()?;
        let newest = self.wanted.as_ref().map(|wanted| wanted.vm.generation);
        newest.is_none_or(|newest| newest <= halt.generation).then_some(halt)
    }

    /// Why the machine is to stay off, if its operator wants that: by the journal or, where that
    /// was lost, by what this host told the ledger.
    pub(super) fn halted(&self, here: HostId) -> Option<String> {
        if let Some(halt) = self.written_halt() {
            return Some(format!("{CODE}: {}", halt.reason));
        }
        let wanted = self.wanted.as_ref()?;
        let report = wanted.vm.reported.as_ref()?;
        let is_current = report.host == here && report.generation == wanted.vm.generation;
        let reason = report.reason.as_ref().filter(|reason| super::report::code(reason) == CODE)?;
        (is_current && report.phase == ReportPhase::Stopped).then(|| reason.clone())
    }

    /// The record of a machine that this host has: the one in the journal, or a new one by its
    /// acceptance, or by the tags that the machine carries.
    fn record_of_machine(&mut self, here: HostId) -> Option<Record> {
        if let Some(record) = &self.record {
            return Some(record.clone());
        }
        if self.is_accepted_by(here)
            && let Some(wanted) = self.wanted.clone()
        {
            return Some(self.record_now(here, &wanted).clone());
        }
        let tags = self.tags()?;
        let mut record = Record::new(here, self.vm, tags.generation, tags.payload);
        record.disk = DiskMark::Made;
        Some(record)
    }
}
