//! Reports: signed with the agent key, repeated until they are ordered, and dropped once a later
//! one says more.

use std::time::{Duration, Instant};

use dagger_agent::limits::{REPORT_ORDER_WAIT_MAX, REPORT_VALID_MS};
use dagger_agent::submit::outbox::{Outbox, SubmitOutcome};
use dagger_bus::ledger::Unavailable;
use dagger_payload::id::{ClusterId, Generation, LedgerTime, VmId, VolumeId};
use dagger_payload::kind::{Body, ReportPhase, ReportVolume, VolumePhase};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::Verdict;

use crate::agent::Agent;
use crate::fakes::OnSubmit;
use crate::http::PATIENCE;
use crate::support::{Chronicle, World, create_vm, key, refused, report};

const VM: VmId = VmId([3; 16]);
const NOW: LedgerTime = LedgerTime(1_000_000);

#[test]
fn a_later_report_about_the_same_vm_takes_the_place_of_an_earlier_one() {
    let key = World::agent_key(0);
    let mut outbox = Outbox::new(ClusterId([1; 32]), &key);
    let start = Instant::now();
    outbox.put(report(VM, ReportPhase::Running), start, NOW);
    outbox.put(report(VM, ReportPhase::Stopped), start, NOW);
    let due = outbox.due(start, NOW, 10);
    assert_eq!(due.len(), 1);
    let document = due[0].read().expect("in form");
    assert!(due[0].is_signed_by(&key.public_key()) && document.signer == key.public_key());
    assert_eq!(document.not_after, NOW.plus_ms(REPORT_VALID_MS));
    assert_eq!(document.body, Body::ReportVm(report(VM, ReportPhase::Stopped)));
    assert!(outbox.due(start, NOW, 10).is_empty(), "it is under way");
}

#[test]
fn reports_about_a_vm_and_about_a_volume_do_not_take_each_others_place() {
    let key = World::agent_key(0);
    let mut outbox = Outbox::new(ClusterId([1; 32]), &key);
    let start = Instant::now();
    let about_volume = |phase| {
        let (volume, generation) = (VolumeId(VM.0), Generation(1));
        ReportVolume { volume, generation, phase, reason: None }
    };
    outbox.put(report(VM, ReportPhase::Running), start, NOW);
    outbox.put(about_volume(VolumePhase::Degraded), start, NOW);
    outbox.put(about_volume(VolumePhase::Ready), start, NOW);
    let bodies: Vec<_> =
        outbox.due(start, NOW, 10).iter().map(|due| due.read().expect("in form").body).collect();
    let expected = [
        Body::ReportVm(report(VM, ReportPhase::Running)),
        Body::ReportVolume(about_volume(VolumePhase::Ready)),
    ];
    assert_eq!(bodies, expected);
}

#[test]
fn an_unavailable_ledger_is_tried_again_with_growing_pauses_and_the_same_bytes() {
    let key = World::agent_key(0);
    let mut outbox = Outbox::new(ClusterId([1; 32]), &key);
    let mut now = Instant::now();
    outbox.put(report(VM, ReportPhase::Running), now, NOW);
    let first = outbox.due(now, NOW, 10).remove(0);
    let mut last_pause = Duration::ZERO;
    for _ in 0..10 {
        outbox.note(&first.digest(), SubmitOutcome::Unavailable, now, NOW);
        let wake = outbox.wake_at().expect("to be tried again");
        assert!(outbox.due(now, NOW, 10).is_empty(), "too early");
        let pause = wake - now;
        assert!(pause >= last_pause && pause <= Duration::from_secs(2));
        (last_pause, now) = (pause, wake);
        assert_eq!(outbox.due(now, NOW, 10), std::slice::from_ref(&first));
    }
    assert_eq!(last_pause, Duration::from_secs(2));
    // Received, but never seen in order: the same bytes once more, in case the ledger lost its
    // disk.
    outbox.note(&first.digest(), SubmitOutcome::Received, now, NOW);
    assert_eq!(outbox.wake_at(), Some(now + REPORT_ORDER_WAIT_MAX));
}

#[test]
fn an_expired_report_is_signed_anew_and_any_other_refusal_ends_it() {
    let key = World::agent_key(0);
    let mut outbox = Outbox::new(ClusterId([1; 32]), &key);
    let now = Instant::now();
    outbox.put(report(VM, ReportPhase::Running), now, NOW);
    let first = outbox.due(now, NOW, 10).remove(0);
    let later = NOW.plus_ms(2 * REPORT_VALID_MS);
    outbox.note(&first.digest(), SubmitOutcome::Refused(RefusalCode::Expired), now, later);
    let soon = outbox.wake_at().expect("to be tried again");
    let second = outbox.due(soon, later, 10).remove(0);
    assert_ne!(second.digest(), first.digest());
    // Ordered too late as well: a third time.
    let latest = later.plus_ms(2 * REPORT_VALID_MS);
    let expired = |_: &_| Some(refused(RefusalCode::Expired));
    outbox.settle(expired, now, latest);
    let third = outbox.due(now, latest, 10).remove(0);
    outbox.note(&third.digest(), SubmitOutcome::Refused(RefusalCode::StateWrong), now, latest);
    assert!(outbox.is_empty());
}

#[test]
fn a_report_is_done_when_it_is_ordered_and_a_long_reason_is_cut() {
    let key = World::agent_key(0);
    let mut outbox = Outbox::new(ClusterId([1; 32]), &key);
    let now = Instant::now();
    let mut long = report(VM, ReportPhase::Degraded);
    long.reason = Some("é".repeat(1000));
    outbox.put(long, now, NOW);
    let due = outbox.due(now, NOW, 10).remove(0);
    let Ok(Body::ReportVm(read)) = due.read().map(|document| document.body) else {
        panic!("not in form");
    };
    assert_eq!(read.reason.map(|reason| reason.len()), Some(512));
    let digest = due.digest();
    outbox.settle(|ordered| (*ordered == digest).then_some(Verdict::Accepted), now, NOW);
    assert!(outbox.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_reaches_the_ledger_once_it_is_available_and_is_then_left_alone() {
    let mut agent = Agent::start().await;
    agent.ledger.on_submit(OnSubmit::Unavailable(Unavailable::Recovering {}));
    let mut chronicle = Chronicle::new(&agent.world);
    let vm = create_vm(&agent.world, &mut chronicle, World::DEVELOPER, "web-1");
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 1).await;
    let accepted = report(vm.id, ReportPhase::Accepted);
    agent.reports.send(accepted.clone().into()).await.expect("listens");
    let mut tries = Vec::new();
    while tries.len() < 3 {
        let tried = tokio::time::timeout(PATIENCE, agent.ledger.submitted.recv()).await;
        tries.push(tried.expect("in time").expect("the fake lives"));
        if tries.len() == 2 {
            agent.ledger.on_submit(OnSubmit::Receive);
        }
    }
    assert!(tries.iter().all(|tried| tried.digest() == tries[0].digest()));
    assert!(tries[0].is_signed_by(&World::agent_key(0).public_key()));
    assert!(!tries[0].is_signed_by(&key(World::DEVELOPER).public_key()));
    let body = tries[0].read().expect("in form").body;
    assert_eq!(body, Body::ReportVm(accepted));
    chronicle.commit(vec![(tries.remove(0), Verdict::Accepted, Vec::new())], Vec::new());
    agent.ledger.say(chronicle.newest());
    agent.until(|progress| progress.judged.0 == 2).await;
    assert!(agent.ledger.submitted.try_recv().is_err());
}
