//! Every object of the state is proven by its root to whoever has nothing else, and nothing is that
//! is not there.

use dagger_payload::codec;
use dagger_payload::history::Chains;
use dagger_payload::id::{AccountId, PayloadDigest, VmId, VolumeId};
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::{Effect, Vm};
use dagger_payload::proof::StateProof;
use dagger_payload::proven::Proven;
use dagger_payload::refusal::Refusal;
use dagger_payload::state_tree::Subject;

use super::{
    CommitRelease, Court, RefusalCode, Verdict, agent_key, change, create, developer, grant, host,
    join, operator, report,
};

/// What a stranger finds who has the root; the proof goes over a wire in between.
pub(super) fn shown(court: &mut Court, subject: &Subject) -> Option<Proven> {
    let proof = court.judge.prove(subject);
    let now = court.judge.end();
    assert_eq!((proof.end.state_root, proof.end.position), (now.state_root, now.position));
    let bytes = codec::encode(&proof.state);
    let read: StateProof = codec::decode(&bytes).expect("reads");
    let value = read.verify(&now.state_root, subject).expect("it holds");
    value.map(|value| Proven::read(subject, value).expect("an object"))
}

#[test]
fn every_kind_of_object_is_proven_as_it_is_and_no_other() {
    let mut court = Court::furnished();
    let account = AccountId::of(&developer().public_key());
    let vm = court.vm(&developer(), create("web-1", 1));
    let payload = Subject::Payload(vm.created.digest);
    let present = [
        Subject::Vm(vm.id),
        Subject::Account(account),
        Subject::Host(host(0)),
        Subject::Host(host(2)),
        Subject::Image("op0/small".parse().expect("a name")),
        payload.clone(),
    ];
    for subject in &present {
        let object = shown(&mut court, subject).unwrap_or_else(|| panic!("{subject:?}"));
        let named = object.causes(subject);
        assert!(!named.is_empty(), "{object:?}");
    }
    assert_eq!(shown(&mut court, &present[0]), Some(Proven::Vm(Box::new(vm.clone()))));
    let Some(Proven::Payload(judgement)) = shown(&mut court, &payload) else { panic!("it is") };
    assert_eq!((judgement.position, judgement.refused), (vm.created.position, None));
    let absent = [
        Subject::Vm(VmId([7; 16])),
        Subject::Account(AccountId([7; 16])),
        Subject::Image("op0/other".parse().expect("a name")),
        Subject::Volume(VolumeId([7; 16])),
        Subject::Usage(account, host(0)),
        Subject::Payload(PayloadDigest::of(b"nobody's")),
    ];
    for subject in &absent {
        assert_eq!(shown(&mut court, subject), None, "{subject:?}");
    }
    // A proof against an earlier root shows nothing now.
    let before = court.judge.prove(&present[0]);
    court.vm(&developer(), create("web-2", 1));
    let now = court.judge.end().state_root;
    assert!(before.state.verify(&now, &present[0]).is_err());
    assert!(before.state.verify(&before.end.state_root, &present[0]).is_ok());
}

/// What an exported history is believed by: see `dagger_payload::history`.
#[test]
fn the_order_is_proven_and_everything_released_adds_up_to_it_and_to_nothing_else() {
    let mut court = Court::found();
    let mut releases = vec![court.whole(&operator(0), join(0))];
    court.pass(2);
    releases.push(court.whole(&operator(0), grant(4, 4)));
    let refused = court.sign(&operator(1), join(0));
    releases.push(court.commit(vec![refused]));
    court.pass(1);
    let Some(Proven::Order(ordered)) = shown(&mut court, &Subject::Order) else { panic!("it is") };
    let end = court.judge.prove(&Subject::Order).end;
    let lead = |releases: &[CommitRelease]| {
        let mut chains = Chains::founding(&court.cluster);
        let took = releases.iter().all(|release| chains.take(&codec::encode(release)).is_ok());
        took && chains.lead_to(&end, &ordered)
    };
    assert!(lead(&releases));
    assert!(!lead(&releases[..2]) && !lead(&releases[1..]));
    let changed = |change: fn(&mut CommitRelease)| {
        let mut changed = releases.clone();
        change(&mut changed[1]);
        lead(&changed)
    };
    assert!(!changed(|release| release.ledger_time.0 += 1));
    assert!(!changed(|release| release.releases[0].effects.clear()));
    assert!(!changed(|release| release.releases[0].position.0 += 1));
    assert!(!changed(|release| release.releases[0].verdict = Verdict::Refused(unheard_of())));
    assert!(!changed(|release| release.releases[0].ordered.payload.signature.0[3] ^= 1));
    assert!(!changed(|release| release.releases.clear()));
}

fn unheard_of() -> Refusal {
    Refusal::new(RefusalCode::Conflict, "")
}

#[test]
fn a_vm_that_was_deleted_is_proven_to_be_gone_and_what_it_used_to_stay() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), create("web-1", 1));
    let by = (0..3).find(|index| vm.placement.host() == Some(host(*index))).expect("placed");
    court.report(&vm, by, ReportPhase::Accepted).expect("accepted");
    court.report(&vm, by, ReportPhase::Running).expect("accepted");
    let deleted = court.vm(&developer(), dagger_payload::kind::Body::VmDelete(change(&vm)));
    assert!(shown(&mut court, &Subject::Vm(vm.id)).is_some());
    let gone = report(vm.id, deleted.generation, ReportPhase::Deleted);
    let effects = court.accept(&agent_key(by), gone);
    let last = effects.iter().find_map(|effect| match effect {
        Effect::Vm(vm) => Some((**vm).clone()),
        _ => None,
    });
    let last: Vm = last.expect("its last version");
    assert_eq!(last.id, vm.id);
    assert_eq!(shown(&mut court, &Subject::Vm(vm.id)), None);
    let usage = shown(&mut court, &Subject::Usage(vm.account, host(by)));
    assert!(matches!(usage, Some(Proven::Usage(_))), "{usage:?}");
}
