//! What is told to the ledger, and when: on change only.
//!
//! Owns the comparison between what is to be told and what was. Called by the controller only.

use dagger_payload::id::{Generation, HostId, VmId};
use dagger_payload::kind::{ReportPhase, ReportVm};
use dagger_payload::limits::REASON_BYTES_MAX;
use dagger_payload::name::SshKeyLine;
use dagger_payload::object::Vm;

use super::entry::Entry;

/// A report's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    generation: Generation,
    phase: ReportPhase,
    /// Only the stable code of the reason: the rest may differ each time.
    code: Option<String>,
    guest_host_key: Option<SshKeyLine>,
}

impl Told {
    /// Whether this is the acceptance of that generation.
    pub(super) fn accepts(&self, generation: Option<Generation>) -> bool {
        self.phase == ReportPhase::Accepted && Some(self.generation) == generation
    }
}

/// The report to send, if `phase` is news about the wanted generation.
pub(super) fn news(
    entry: &mut Entry,
    here: HostId,
    phase: ReportPhase,
    reason: Option<&str>,
) -> Option<ReportVm> {
    let wanted = entry.wanted.as_ref()?;
    let guest_host_key = match phase {
        ReportPhase::Running => entry.guest_host_key.clone(),
        ReportPhase::Accepted
        | ReportPhase::Refused
        | ReportPhase::Stopped
        | ReportPhase::Paused
        | ReportPhase::Degraded
        | ReportPhase::Deleted => None,
    };
    let now = Told {
        generation: wanted.vm.generation,
        phase,
        code: reason.map(code),
        guest_host_key: guest_host_key.clone(),
    };
    let is_ours = wanted.vm.reported.as_ref().is_some_and(|report| report.host == here);
    let ordered = ordered(&wanted.vm).filter(|_| is_ours);
    if entry.told.as_ref().or(ordered.as_ref()) == Some(&now) {
        return None;
    }
    entry.told = Some(now);
    Some(report(entry.vm, wanted.vm.generation, phase, reason, guest_host_key))
}

/// The last report about a VM as the order has it.
fn ordered(vm: &Vm) -> Option<Told> {
    let report = vm.reported.as_ref()?;
    Some(Told {
        generation: report.generation,
        phase: report.phase,
        code: report.reason.as_deref().map(code),
        guest_host_key: match report.phase {
            ReportPhase::Running => vm.guest_host_key.clone(),
            _ => None,
        },
    })
}

impl Entry {
    /// What was told last and is ordered is under way no more: from here on the order is looked at
    /// alone. An older report may yet be ordered after it, from an event that came late or whose
    /// payloads were packed again, and is then contradicted.
    pub(super) fn note_ordered(&mut self) {
        let ordered = self.wanted.as_ref().and_then(|wanted| ordered(&wanted.vm));
        if self.told == ordered {
            self.told = None;
        }
    }
}

fn report(
    vm: VmId,
    generation: Generation,
    phase: ReportPhase,
    reason: Option<&str>,
    guest_host_key: Option<SshKeyLine>,
) -> ReportVm {
    ReportVm { vm, generation, phase, reason: reason.map(shorten), guest_host_key }
}

/// The stable code at the beginning of a reason.
pub(super) fn code(reason: &str) -> String {
    reason.split(':').next().unwrap_or(reason).to_owned()
}

/// The longest beginning that a report may carry.
pub(super) fn shorten(reason: &str) -> String {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let reason = "é".repeat(REASON_BYTES_MAX);
        let cut = shorten(&reason);
        assert!(cut.len() <= REASON_BYTES_MAX && reason.starts_with(&cut));
    }
}
