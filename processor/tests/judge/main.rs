//! The judge's rules, one sentence each. The cluster has three operators with one host each and one
//! developer.

mod boot;
mod bridges;
mod burdens;
mod eviction;
mod keys;
mod limits;
mod looks;
mod members;
mod networks;
mod proofs;
mod rules;
mod snapshot;
mod snapshots;
mod told;
mod usage;
mod volumes;

use std::collections::BTreeMap;

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::{
    AccountId, AuthorIndex, ClusterId, Generation, HostId, ImageDigest, LedgerTime, Round, VmId,
};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{
    AccountGrant, Body, Capacity, GuestSubnet, HostJoin, ImageFormat, ImageRegister, ReportPhase,
    ReportVm, VmChange, VmCreate, VmImage,
};
use dagger_payload::object::{Effect, Placement, Vm, VmState, Wanted};
use dagger_payload::payload::{Payload, SignedPayload};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::release::{
    CommitRelease, OrderedCommit, OrderedPayload, Verdict, extend_prefix,
};
use dagger_processor::judge::{CommitError, Judge};
use dagger_processor::verify::{Verified, verify};

const START: LedgerTime = LedgerTime(1_700_000_000_000);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_seed(&[byte; 32].into())
}

fn operator(index: u8) -> SecretKey {
    key(10 + index)
}

fn ledger_key(index: u8) -> SecretKey {
    key(20 + index)
}

fn agent_key(index: u8) -> SecretKey {
    key(30 + index)
}

fn developer() -> SecretKey {
    key(1)
}

fn host(index: u8) -> HostId {
    HostId::of(&ledger_key(index).public_key())
}

struct Court {
    judge: Judge,
    genesis: Genesis,
    cluster: ClusterId,
    now: LedgerTime,
    round: u64,
    silent: Vec<u16>,
    /// What a reader knows of all VMs.
    vms: BTreeMap<VmId, Vm>,
}

impl Court {
    fn found() -> Self {
        Self::of(3)
    }

    /// As many operators, with one host each.
    fn of(members: u8) -> Self {
        let name = |text: String| text.parse().expect("a name");
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test".to_owned()),
            mode: GenesisMode::Judged,
            operators: (0..members)
                .map(|index| GenesisOperator {
                    name: name(format!("op{index}")),
                    key: operator(index).public_key(),
                })
                .collect(),
            hosts: (0..members)
                .map(|index| GenesisHost {
                    name: name(format!("host{index}")),
                    operator: name(format!("op{index}")),
                    ledger_key: ledger_key(index).public_key(),
                    address: "127.0.0.1:7400".parse().expect("an address"),
                })
                .collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        let judge = Judge::found(genesis.clone(), cluster);
        let (silent, vms) = (Vec::new(), BTreeMap::new());
        Self { judge, genesis, cluster, now: START, round: 0, silent, vms }
    }

    /// Three hosts have joined, all operators have granted the developer, and an image is
    /// registered.
    fn furnished() -> Self {
        let mut court = Self::found();
        for index in 0..3 {
            court.accept(&operator(index), join(index));
            court.accept(&operator(index), grant(4, 4));
        }
        court.accept(&operator(0), image("op0/small"));
        court
    }

    fn sign(&self, key: &SecretKey, body: Body) -> SignedPayload {
        self.sign_until(key, body, self.now.plus_ms(60_000 + self.round))
    }

    fn sign_until(&self, key: &SecretKey, body: Body, not_after: LedgerTime) -> SignedPayload {
        let (cluster, signer) = (self.cluster, key.public_key());
        SignedPayload::sign(key, &Payload { cluster, signer, not_after, body })
    }

    /// What a commit released, with whole VMs, as a reader makes them.
    fn commit(&mut self, payloads: Vec<SignedPayload>) -> CommitRelease {
        let mut release = self.release(payloads);
        self.read(&mut release);
        release
    }

    /// What a commit released, as it is told.
    fn release(&mut self, payloads: Vec<SignedPayload>) -> CommitRelease {
        let commit = self.next(payloads);
        let verified: Vec<Verified> =
            commit.payloads.iter().map(|ordered| verify(&ordered.payload)).collect();
        self.judge.apply(commit, &verified).expect("the next commit")
    }

    /// Puts each change of a VM onto the version before.
    fn read(&mut self, release: &mut CommitRelease) {
        let judged = release.releases.iter_mut().flat_map(|release| &mut release.effects);
        for effect in judged.chain(&mut release.time_effects) {
            if let Effect::VmChanged(change) = effect {
                let vm = change.of(&self.vms[&change.id]).expect("it is the same VM");
                *effect = Effect::Vm(Box::new(vm));
            }
            if let Effect::Vm(vm) = effect {
                self.vms.insert(vm.id, (**vm).clone());
            }
        }
    }

    fn next(&mut self, payloads: Vec<SignedPayload>) -> OrderedCommit {
        self.round += 1;
        let end = self.judge.end();
        OrderedCommit {
            index: end.index.next(),
            ledger_time: self.now,
            leader_round: Round(self.round),
            authors: self
                .judge
                .roster()
                .present()
                .map(|seat| seat.index.0)
                .filter(|author| !self.silent.contains(author))
                .map(|author| (AuthorIndex(author), Round(self.round)))
                .collect(),
            prefix_hash: extend_prefix(&end.prefix_hash, self.now, &payloads),
            payloads: payloads
                .into_iter()
                .map(|payload| OrderedPayload { author: AuthorIndex(0), payload })
                .collect(),
            first_position: end.position.next(),
        }
    }

    fn submit(&mut self, key: &SecretKey, body: Body) -> Result<Vec<Effect>, RefusalCode> {
        let payload = self.sign(key, body);
        let predicted = self.judge.admit(&verify(&payload), self.now);
        let outcome = self.outcome(payload);
        // The door must say the same as the judge.
        match (&predicted, &outcome) {
            (AdmissionOutcome::Admitted { .. }, Ok(_)) => {}
            (AdmissionOutcome::Refused { refusal }, Err(code)) => assert_eq!(refusal.code, *code),
            _ => panic!("admission said {predicted:?}, the judge {outcome:?}"),
        }
        outcome
    }

    fn outcome(&mut self, payload: SignedPayload) -> Result<Vec<Effect>, RefusalCode> {
        let release = self.commit(vec![payload]).releases.remove(0);
        match release.verdict {
            Verdict::Accepted => Ok(release.effects),
            Verdict::Refused(refusal) => {
                assert!(release.effects.is_empty());
                Err(refusal.code)
            }
        }
    }

    fn accept(&mut self, key: &SecretKey, body: Body) -> Vec<Effect> {
        self.submit(key, body).expect("accepted")
    }

    fn vm(&mut self, key: &SecretKey, body: Body) -> Vm {
        match self.accept(key, body).pop() {
            Some(Effect::Vm(vm)) => *vm,
            other => panic!("no VM but {other:?}"),
        }
    }

    fn report(&mut self, vm: &Vm, by: u8, phase: ReportPhase) -> Result<Vm, RefusalCode> {
        let body = report(vm.id, vm.generation, phase);
        self.submit(&agent_key(by), body).map(|effects| match effects.into_iter().next() {
            Some(Effect::Vm(vm)) => *vm,
            other => panic!("no VM but {other:?}"),
        })
    }
}

fn join(index: u8) -> Body {
    Body::HostJoin(Box::new(HostJoin {
        ledger_key: ledger_key(index).public_key(),
        address: None,
        agent_key: agent_key(index).public_key(),
        name: format!("host{index}").parse().expect("a name"),
        region: "region".parse().expect("a name"),
        site: None,
        reserve: Capacity::default(),
        capacity: Capacity { cpus: 8, memory_mib: 8192, disk_gib: 100 },
        guest_subnet: GuestSubnet { network: [10, 77, index, 0].into(), prefix_length: 29 },
        labels: Default::default(),
        forward_ports_first: None,
        protocol_max: None,
        bridges: Vec::new(),
    }))
}

fn grant(cpus: u32, vms: u32) -> Body {
    Body::AccountGrant(AccountGrant {
        key: developer().public_key(),
        capacity: Capacity { cpus, memory_mib: 4096, disk_gib: 50 },
        vms,
        until_ms: START.0 + 30 * DAY_MS,
        expected_generation: None,
    })
}

fn image(name: &str) -> Body {
    Body::ImageRegister(ImageRegister {
        name: name.parse().expect("an image name"),
        digest: ImageDigest([5; 32]),
        format: ImageFormat::Qcow2,
        size_bytes: 1 << 20,
        virtual_size_bytes: 1 << 26,
        sources: Vec::new(),
    })
}

/// As the developer's account may call it.
fn own_image() -> Body {
    image(&format!("{}/own", AccountId::of(&developer().public_key())))
}

fn create(name: &str, cpus: u32) -> Body {
    Body::VmCreate(Box::new(create_body(name, cpus)))
}

fn create_body(name: &str, cpus: u32) -> VmCreate {
    VmCreate {
        name: name.parse().expect("a name"),
        image: VmImage {
            digest: ImageDigest([5; 32]),
            format: ImageFormat::Qcow2,
            virtual_size_bytes: 1 << 26,
        },
        cpus,
        memory_mib: 512,
        disk_gib: 3,
        ssh_keys: Vec::new(),
        region: None,
        host: None,
        host_labels: Default::default(),
        apart: Vec::new(),
        labels: Default::default(),
        public_user_data: None,
        restart: Default::default(),
        network: None,
        boot: None,
        more_cards: Vec::new(),
    }
}

fn on(name: &str, index: u8) -> Body {
    Body::VmCreate(Box::new(VmCreate { host: Some(host(index)), ..create_body(name, 1) }))
}

fn change(vm: &Vm) -> VmChange {
    VmChange { vm: vm.id, expected_generation: None }
}

fn report(vm: VmId, generation: Generation, phase: ReportPhase) -> Body {
    Body::ReportVm(ReportVm { vm, generation, phase, reason: None, guest_host_key: None })
}

#[test]
fn a_vm_is_offered_accepted_run_stopped_started_and_deleted() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    assert_eq!((vm.state(), vm.placement.host()), (VmState::Pending, Some(host(1))));
    let vm = court.report(&vm, 1, ReportPhase::Accepted).expect("accepted");
    assert_eq!(vm.state(), VmState::Converging);
    let vm = court.report(&vm, 1, ReportPhase::Running).expect("accepted");
    assert_eq!(vm.state(), VmState::Running);
    let vm = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    assert_eq!((vm.state(), vm.generation), (VmState::Converging, Generation(2)));
    let vm = court.report(&vm, 1, ReportPhase::Stopped).expect("accepted");
    assert_eq!(vm.state(), VmState::Stopped);
    let vm = court.vm(&developer(), Body::VmStart(change(&vm)));
    let vm = court.report(&vm, 1, ReportPhase::Running).expect("accepted");
    let vm = court.vm(&developer(), Body::VmDelete(change(&vm)));
    assert_eq!(vm.state(), VmState::Deleting);
    let vm = court.report(&vm, 1, ReportPhase::Deleted).expect("accepted");
    assert_eq!(vm.state(), VmState::Deleted);
    // Name and capacity are free again.
    court.vm(&developer(), on("web", 1));
}

#[test]
fn only_who_may_gets_what_he_asks() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let stranger = key(2);
    for (who, body, code) in [
        (&stranger, create("other", 1), RefusalCode::AccountUnknown),
        (&stranger, Body::VmStop(change(&vm).into()), RefusalCode::AccountUnknown),
        (&stranger, grant(1, 1), RefusalCode::NotAuthorized),
        (&operator(1), join(0), RefusalCode::NotAuthorized),
        (&stranger, image("x/y"), RefusalCode::AccountUnknown),
        (&operator(1), image("op0/small"), RefusalCode::NotAuthorized),
        (&operator(0), image("op0/small"), RefusalCode::AlreadyExists),
        (
            &developer(),
            report(vm.id, vm.generation, ReportPhase::Accepted),
            RefusalCode::AccountUnknown,
        ),
        (&agent_key(0), report(vm.id, vm.generation, ReportPhase::Accepted), RefusalCode::Conflict),
        (&agent_key(1), report(vm.id, Generation(9), ReportPhase::Accepted), RefusalCode::Conflict),
        (
            &agent_key(1),
            report(vm.id, vm.generation, ReportPhase::Running),
            RefusalCode::StateWrong,
        ),
        (&developer(), create("web", 1), RefusalCode::NameTaken),
    ] {
        assert_eq!(court.submit(who, body.clone()), Err(code), "{body:?}");
    }
}

#[test]
fn nobody_gets_more_than_was_granted_or_than_fits() {
    let mut court = Court::furnished();
    assert_eq!(court.submit(&developer(), create("big", 5)), Err(RefusalCode::GrantExceeded));
    court.accept(&operator(0), grant(100, 100));
    assert_eq!(court.submit(&developer(), create("big", 9)), Err(RefusalCode::NoHostFits));
    for index in 0..4 {
        court.vm(&developer(), on(&format!("vm{index}"), 2));
    }
    assert_eq!(court.submit(&developer(), on("vm4", 2)), Err(RefusalCode::NoHostFits));
    let mut unknown = create_body("web", 1);
    unknown.image.virtual_size_bytes += 1;
    let body = Body::VmCreate(Box::new(unknown));
    assert_eq!(court.submit(&developer(), body), Err(RefusalCode::ImageUnknown));
}

#[test]
fn vms_on_one_host_have_different_addresses_and_a_freed_one_rests() {
    let mut court = Court::furnished();
    court.accept(&operator(0), grant(8, 8));
    let first = court.vm(&developer(), on("a", 0));
    let second = court.vm(&developer(), on("b", 0));
    assert_ne!(first.placement.address(), second.placement.address());
    court.vm(&developer(), Body::VmDelete(change(&first)));
    let third = court.vm(&developer(), on("c", 0));
    assert_ne!(third.placement.address(), first.placement.address());
    assert_ne!(third.placement.address(), second.placement.address());
}

#[test]
fn an_offer_that_lapses_goes_to_each_host_once_and_a_late_acceptance_is_refused() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), create("web", 1));
    let mut seen = vec![vm.placement.host().expect("offered")];
    let first = (vm.clone(), seen[0]);
    for _ in 0..2 {
        let deadline = court.judge.next_deadline().expect("an open offer");
        court.now = LedgerTime(deadline.0 - 1);
        assert!(court.commit(vec![]).is_empty());
        court.now = deadline;
        let release = court.commit(vec![]);
        let [Effect::Vm(moved)] = &release.time_effects[..] else { panic!("{release:?}") };
        seen.push(moved.placement.host().expect("offered"));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3);
    let by = (0..3).find(|index| host(*index) == first.1).expect("one of them");
    assert_eq!(court.report(&first.0, by, ReportPhase::Accepted), Err(RefusalCode::Conflict));
    court.now = court.judge.next_deadline().expect("an open offer");
    let release = court.commit(vec![]);
    let [Effect::Vm(lost)] = &release.time_effects[..] else { panic!("{release:?}") };
    assert_eq!((lost.state(), &lost.placement), (VmState::Degraded, &Placement::NoHost {}));
    assert_eq!(court.judge.next_deadline(), None);
    let again = court.vm(&developer(), Body::VmStart(change(lost)));
    assert_eq!(again.state(), VmState::Pending);
}

#[test]
fn a_refused_offer_moves_on_at_once_even_within_one_full_grant() {
    let mut court = Court::furnished();
    court.accept(&operator(0), grant(1, 1));
    court.accept(&operator(1), grant(1, 1));
    court.accept(&operator(2), grant(0, 0));
    let vm = court.vm(&developer(), create("web", 1));
    let at = vm.placement.host().expect("offered");
    let by = (0..3).find(|index| host(*index) == at).expect("one of them");
    let moved = court.report(&vm, by, ReportPhase::Refused).expect("accepted");
    assert_ne!(moved.placement.host(), Some(at));
    assert_eq!((moved.generation, moved.wanted), (Generation(2), Wanted::Running));
}

#[test]
fn a_host_that_stays_silent_while_others_order_is_offered_nothing() {
    let mut court = Court::furnished();
    court.silent = vec![2];
    for _ in 0..20 {
        court.commit(vec![]);
    }
    court.now = court.now.plus_ms(20_000);
    court.commit(vec![]);
    assert_eq!(court.submit(&developer(), on("web", 2)), Err(RefusalCode::NoHostFits));
    court.silent.clear();
    court.commit(vec![]);
    court.vm(&developer(), on("web", 2));
}

#[test]
fn a_replayed_payload_is_refused_and_the_door_knows_it() {
    let mut court = Court::furnished();
    let payload = court.sign(&developer(), create("web", 1));
    assert!(court.outcome(payload.clone()).is_ok());
    assert!(matches!(
        court.judge.admit(&verify(&payload), court.now),
        AdmissionOutcome::Known { .. }
    ));
    assert_eq!(court.outcome(payload), Err(RefusalCode::Duplicate));
}

#[test]
fn what_was_refused_once_is_not_accepted_by_sending_it_again() {
    let mut court = Court::furnished();
    let payload = court.sign(&developer(), create("big", 5));
    assert_eq!(court.outcome(payload.clone()), Err(RefusalCode::GrantExceeded));
    court.accept(&operator(0), grant(8, 8));
    assert_eq!(court.outcome(payload), Err(RefusalCode::Duplicate));
}

#[test]
fn a_copy_with_a_broken_signature_does_not_poison_the_owners() {
    let mut court = Court::furnished();
    let payload = court.sign(&developer(), create("web", 1));
    let mut broken = payload.clone();
    broken.signature.0[3] ^= 1;
    assert_eq!(court.outcome(broken), Err(RefusalCode::SignatureInvalid));
    assert!(court.outcome(payload).is_ok());
}

#[test]
fn what_a_clock_ten_minutes_off_signs_is_carried_out_once_or_refused_with_the_ledgers_time() {
    const OFF_MS: u64 = 10 * 60 * 1000;
    let mut court = Court::furnished();
    let began = court.now;
    // Signed for ten minutes, ten minutes ahead: good for twenty, and remembered for as long.
    let ahead = court.sign_until(&developer(), create("web", 1), began.plus_ms(2 * OFF_MS));
    assert!(court.outcome(ahead.clone()).is_ok());
    court.now = began.plus_ms(2 * OFF_MS);
    assert_eq!(court.outcome(ahead.clone()), Err(RefusalCode::Duplicate));
    court.now = court.now.plus_ms(1);
    assert_eq!(court.outcome(ahead), Err(RefusalCode::Expired));

    let mut told = |name, not_after| {
        let payload = court.sign_until(&developer(), create(name, 1), not_after);
        match court.commit(vec![payload]).releases.remove(0).verdict {
            Verdict::Refused(refusal) => (refusal.code, refusal.detail),
            Verdict::Accepted => panic!("it was accepted"),
        }
    };
    // Signed for ten minutes, ten minutes behind, a moment ago; and for a day, ten minutes ahead.
    let now = began.plus_ms(2 * OFF_MS + 1);
    let late = "not_after_ms passed 5 ms of ledger time ago".to_owned();
    assert_eq!(told("late", LedgerTime(now.0 - 5)), (RefusalCode::Expired, late));
    let far = format!("ledger time is {now}; not_after_ms may be a day ahead");
    let day = now.plus_ms(DAY_MS + OFF_MS);
    assert_eq!(told("far", day), (RefusalCode::NotAfterTooFar, far));
}

#[test]
fn payloads_out_of_time_or_of_another_cluster_are_refused_and_not_remembered() {
    let mut court = Court::furnished();
    let late = court.sign_until(&developer(), create("a", 1), LedgerTime(court.now.0 - 1));
    assert_eq!(court.outcome(late), Err(RefusalCode::Expired));
    let far = court.sign_until(&developer(), create("b", 1), court.now.plus_ms(DAY_MS + 1));
    assert_eq!(court.outcome(far.clone()), Err(RefusalCode::NotAfterTooFar));
    court.now = court.now.plus_ms(10);
    assert!(court.outcome(far).is_ok());
    let foreign = Payload {
        cluster: ClusterId([9; 32]),
        signer: developer().public_key(),
        not_after: court.now,
        body: create("c", 1),
    };
    let foreign = SignedPayload::sign(&developer(), &foreign);
    assert_eq!(court.outcome(foreign), Err(RefusalCode::ClusterWrong));
}

#[test]
fn expired_payloads_are_forgotten_and_then_refused_for_their_age() {
    let mut court = Court::furnished();
    let payload = court.sign(&developer(), create("web", 1));
    court.outcome(payload.clone()).expect("accepted");
    court.now = court.now.plus_ms(2 * DAY_MS);
    court.commit(vec![]);
    assert_eq!(court.outcome(payload), Err(RefusalCode::Expired));
}

#[test]
fn an_empty_commit_changes_no_root_and_equal_histories_give_equal_releases() {
    let (mut one, mut two) = (Court::furnished(), Court::furnished());
    let vm = one.vm(&developer(), create("web", 1));
    two.vm(&developer(), create("web", 1));
    assert_eq!(one.judge.end(), two.judge.end());
    let root = one.judge.end().state_root;
    one.now = one.now.plus_ms(1_000);
    one.commit(vec![]);
    assert_eq!(one.judge.end().state_root, root);
    one.vm(&developer(), Body::VmStop(change(&vm).into()));
    assert_ne!(one.judge.end().state_root, root);
}

#[test]
fn a_commit_that_does_not_continue_the_history_is_not_judged() {
    let mut court = Court::furnished();
    let end = court.judge.end();
    let mut skipped = court.next(vec![]);
    skipped.index = skipped.index.next();
    let refused = court.judge.apply(skipped, &[]);
    assert_eq!(refused, Err(CommitError::OutOfOrder { expected: end.index.next() }));
    let mut forged = court.next(vec![]);
    forged.prefix_hash.0[0] ^= 1;
    assert_eq!(court.judge.apply(forged, &[]), Err(CommitError::Discontinuous));
    let payload = court.sign(&developer(), create("web", 1));
    let commit = court.next(vec![payload]);
    assert_eq!(court.judge.apply(commit, &[]), Err(CommitError::Mismatched));
    assert_eq!(court.judge.end(), end);
}
