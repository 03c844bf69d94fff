//! A VM's history in plain words, from the signature that caused a step to the machine.
//!
//! Owns the sentences. They are for people; whoever counts on something reads the fields beside
//! them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use dagger_api::{HistoryEntry, HistoryPayload, HistoryView};
use dagger_payload::id::{AuthorIndex, CommitIndex, HostId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Body, Protection, ReportPhase};
use dagger_payload::name::Name;
use dagger_payload::object::{Agreement, Placement, Vm};
use dagger_payload::payload::Payload;
use dagger_payload::refusal::Refusal;
use dagger_payload::release::{Release, Verdict};
use dagger_payload::sshsig::{self, Namespace};

use super::Members;
use super::addition::Known;
use super::archive::ArchiveError;
use super::look::LookBack;
use super::past::VmStep;
use crate::limits::{HISTORY_BYTES_MAX, HISTORY_STEPS_MAX};

/// Names of the members who attest `commit`, given the highest commit that each attests.
fn attested_by(
    members: &Members,
    same: &BTreeMap<AuthorIndex, CommitIndex>,
    commit: CommitIndex,
) -> Vec<Name> {
    same.iter()
        .filter(|(_, highest)| **highest >= commit)
        .filter_map(|(author, _)| members.seat_name(*author).cloned())
        .collect()
}

/// What an accepted payload did to a VM.
pub(super) fn accepted(
    known: &Known<'_>,
    document: Option<&Payload>,
    before: Option<&Vm>,
    after: &Vm,
) -> String {
    let placed = placed(known, before, after);
    let with_place = |what: String| match &placed {
        Some(place) => format!("{what}; {place}"),
        None => what,
    };
    let Some(document) = document else {
        return with_place("changed".to_owned());
    };
    let who = with_key(known, &document.signer);
    match &document.body {
        Body::VmCreate(_) => match &placed {
            Some(place) => format!("created by {who}, {place}"),
            None => format!("created by {who}"),
        },
        Body::VmStart(_) => with_place(format!("start asked for by {who}")),
        Body::VmStop(_) => with_place(format!("stop asked for by {who}")),
        Body::VmPause(_) => with_place(format!("pause asked for by {who}")),
        Body::VmResume(_) => with_place(format!("resume asked for by {who}")),
        Body::VmReboot(_) => with_place(format!("reboot asked for by {who}")),
        Body::VmResize(_) => with_place(format!(
            "resized to {} CPUs and {} MiB by {who}",
            after.size.cpus, after.size.memory_mib
        )),
        Body::VmNetwork(_) => with_place(format!("reached otherwise, as {who} asked")),
        Body::VmProtect(change) => with_place(match change.protection {
            Protection::Protected => format!("protected against deletion by {who}"),
            Protection::Unprotected => format!("unprotected by {who}"),
        }),
        Body::VolumeAttach(_) => format!("a volume was attached by {who}"),
        Body::VolumeGrow(_) => format!("a volume was grown by {who}"),
        Body::VolumeProtect(change) => with_place(match change.protection {
            Protection::Protected => format!("a volume was protected against deletion by {who}"),
            Protection::Unprotected => format!("a volume was unprotected by {who}"),
        }),
        Body::VolumeDetach(_) => format!("a volume was detached by {who}"),
        Body::VolumeCreate(_)
        | Body::VolumeDelete(_)
        | Body::VolumeSnapshot(_)
        | Body::VolumeRestore(_)
        | Body::VolumeClone(_)
        | Body::SnapshotDelete(_)
        | Body::ReportVolume(_)
        | Body::ReportSnapshot(_) => with_place(format!("a volume was changed by {who}")),
        Body::VmDelete(_) => with_place(format!("delete asked for by {who}")),
        Body::ReportVm(report) => {
            let host = reporter(known, &document.signer);
            let what = reported(&host, report.phase, report.reason.as_deref());
            with_place(judged_by_order(what, after))
        }
        Body::HostJoin(host) => with_place(format!("host {} was declared anew", host.name)),
        Body::HostDrain(_) => with_place(format!("a host was drained by {who}")),
        Body::HostResume(_) => with_place(format!("a host was resumed by {who}")),
        Body::HostLeave(_)
        | Body::HostRotateLedgerKey(_)
        | Body::OperatorPropose(_)
        | Body::OperatorApprove(_)
        | Body::OperatorWithdraw(_)
        | Body::OperatorRotateKey(_) => with_place(format!("members were changed by {who}")),
        Body::AccountGrant(_) | Body::AccountRevoke(_) => {
            with_place(format!("the account's grant by {who} changed"))
        }
        Body::AccountAddKey(_) | Body::AccountRemoveKey(_) | Body::AccountRotateKey(_) => {
            with_place(format!("the account's keys were changed by {who}"))
        }
        Body::ImageRegister(image) => with_place(format!("image {} was registered", image.name)),
        Body::ImageRetire(image) => with_place(format!("image {} was retired", image.name)),
    }
}

/// A payload that named a VM and was refused.
pub(super) fn refused(known: &Known<'_>, document: &Payload, refusal: &Refusal) -> String {
    let who = with_key(known, &document.signer);
    let kind = document.body.kind();
    format!("{kind} by {who} was refused: {refusal}")
}

/// What the passing of ledger time did to a VM.
pub(super) fn passing_of_time(known: &Known<'_>, before: Option<&Vm>, after: &Vm) -> String {
    let late = before.and_then(|before| match &before.placement {
        Placement::Offered { host, .. } => Some(host_name(known, host)),
        Placement::Accepted { .. } | Placement::NoHost {} | Placement::Lost { .. } => None,
    });
    match (late, placed(known, before, after)) {
        (Some(late), Some(place)) => format!("{late} did not accept in time; {place}"),
        (Some(late), None) => format!("{late} did not accept in time"),
        (None, Some(place)) => place,
        (None, None) => "ledger time passed a deadline".to_owned(),
    }
}

fn placed(known: &Known<'_>, before: Option<&Vm>, after: &Vm) -> Option<String> {
    let old = before.map(|before| (before.placement.host(), before.generation));
    match (&after.placement, old) {
        (Placement::NoHost {}, Some((None, _))) => None,
        (Placement::NoHost {}, _) => Some("no host is left to take it".to_owned()),
        (Placement::Lost { host }, Some((Some(_), _))) => {
            Some(format!("{} left the cluster without giving it up", host_name(known, host)))
        }
        (Placement::Lost { .. }, _) => None,
        (Placement::Offered { host, .. } | Placement::Accepted { host, .. }, old) => {
            let moved = old.is_none_or(|(old, _)| old != Some(*host));
            moved.then(|| format!("placed on {}", host_name(known, host)))
        }
    }
}

fn reported(host: &str, phase: ReportPhase, reason: Option<&str>) -> String {
    let what = match phase {
        ReportPhase::Accepted => format!("{host} accepted"),
        ReportPhase::Refused => format!("{host} refused"),
        ReportPhase::Running => format!("{host} reports running"),
        ReportPhase::Stopped => format!("{host} reports stopped"),
        ReportPhase::Paused => format!("{host} reports paused"),
        ReportPhase::Degraded => format!("{host} reports degraded"),
        ReportPhase::Deleted => format!("{host} reports deleted"),
    };
    match reason {
        Some(reason) => format!("{what}: {reason}"),
        None => what,
    }
}

/// What a host reported, and that it is not as ordered, if the judge marked it so.
fn judged_by_order(what: String, after: &Vm) -> String {
    match after.reported.as_ref().map(|known| known.agreement) {
        Some(Agreement::AgainstOrder) => format!("{what}; that is against the order"),
        Some(Agreement::WithOrder) | None => what,
    }
}

fn host_name(known: &Known<'_>, host: &HostId) -> String {
    match known.host_name(host) {
        Some(name) => name.to_string(),
        None => format!("host {host}"),
    }
}

fn reporter(known: &Known<'_>, agent_key: &PublicKey) -> String {
    let host = known.host_of_key(agent_key);
    host.map_or_else(|| "a host".to_owned(), |host| host.name.to_string())
}

fn with_key(known: &Known<'_>, key: &PublicKey) -> String {
    format!("{} ({} key)", signer_name(known, key), key.fingerprint())
}

/// Who a key is: `operator NAME`, `host NAME` or `account ID`.
pub(super) fn signer_name(known: &Known<'_>, key: &PublicKey) -> String {
    if let Some(operator) = known.operator_of_key(key) {
        return format!("operator {operator}");
    }
    match known.host_of_key(key) {
        Some(host) => format!("host {}", host.name),
        None => format!("account {}", known.account_signed_by(key)),
    }
}

impl LookBack {
    /// The newest steps of a VM before step `before`, oldest first, as many as fit into one answer;
    /// `same` says what the members attest.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn history(
        &self,
        vm: &Vm,
        before: Option<u64>,
        same: &BTreeMap<AuthorIndex, CommitIndex>,
    ) -> Result<HistoryView, ArchiveError> {
        let (mut steps, mut earlier, mut bytes) = (Vec::new(), None, 0);
        self.read(|past| {
            past.walk_steps(&vm.id, before.unwrap_or(u64::MAX), |number, step| {
                if steps.len() >= HISTORY_STEPS_MAX || bytes >= HISTORY_BYTES_MAX {
                    return Ok(ControlFlow::Break(()));
                }
                let placed = match step.position {
                    Some(position) => past.payload_at(position)?,
                    None => None,
                };
                let size = placed.as_ref().map_or(0, |it| it.release.ordered.payload.bytes.len());
                bytes += size + step.summary.len();
                steps.push((number, step, placed.map(|placed| placed.release)));
                Ok(ControlFlow::Continue(()))
            })?;
            if let Some((oldest, ..)) = steps.last() {
                past.walk_steps(&vm.id, *oldest, |_, _| {
                    earlier = Some(*oldest);
                    Ok(ControlFlow::Break(()))
                })?;
            }
            Ok(())
        })?;
        let entries = self.model(|model| {
            let known = Known::now(model);
            let entry = |(_, step, release)| entry(&known, step, release, same);
            steps.into_iter().rev().map(entry).collect()
        });
        Ok(HistoryView { vm: vm.id, name: vm.name.clone(), entries, earlier })
    }
}

fn entry(
    known: &Known<'_>,
    step: VmStep,
    release: Option<Release>,
    same: &BTreeMap<AuthorIndex, CommitIndex>,
) -> HistoryEntry {
    let refusal = release.as_ref().and_then(|release| match &release.verdict {
        Verdict::Accepted => None,
        Verdict::Refused(refusal) => Some(refusal.clone()),
    });
    HistoryEntry {
        position: step.position,
        commit: step.commit,
        ledger_time: step.ledger_time,
        payload: release.and_then(|release| history_payload(known, &release)),
        summary: step.summary,
        generation: step.generation,
        phase: step.phase,
        refusal,
        attested_by: attested_by(known.members(), same, step.commit),
    }
}

fn history_payload(known: &Known<'_>, release: &Release) -> Option<HistoryPayload> {
    let payload = &release.ordered.payload;
    let document = payload.read().ok()?;
    let carrier = known.members().seat_name(release.ordered.author)?;
    Some(HistoryPayload {
        digest: release.digest,
        kind: document.body.kind().to_owned(),
        signer: document.signer.to_openssh(),
        signer_name: signer_name(known, &document.signer),
        carried_by: carrier.clone(),
        document: String::from_utf8(payload.bytes.to_vec()).ok()?,
        signature: sshsig::to_armor(&document.signer, Namespace::Payload, &payload.signature),
    })
}
