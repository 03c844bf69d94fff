//! How much one operator's hosts carry of everybody's state, and one account has.

use dagger_payload::kind::{Protection, VmProtect, VolumeCreate, VolumePhase};
use dagger_payload::limits::{
    COMMIT_CHANGES_BYTES_PER_OPERATOR_MAX, COMMIT_REWRITTEN_BYTES_PER_OPERATOR_MAX,
    LAPSED_PER_COMMIT_MAX, OBJECTS_PER_ACCOUNT_MAX, OBJECTS_PER_OPERATOR_MAX, USER_DATA_BYTES_MAX,
    VM_BYTES_PER_OPERATOR_MAX,
};
use dagger_payload::volume::Volume;

use super::limits::codes;
use super::snapshot::copy;
use super::volumes::{delete, told};
use super::*;

/// Operator 1 says that his host is as large as none is, and grants everything to his friends.
fn boasting() -> Court {
    let mut court = Court::furnished();
    court.accept(&operator(1), large(1));
    court.accept(&operator(1), image("op1/small"));
    for friend in 0..3 {
        court.accept(&operator(1), everything(&friend_key(friend)));
    }
    court
}

pub(super) fn large(index: u8) -> Body {
    let Body::HostJoin(mut body) = join(index) else { panic!("a host.join") };
    body.capacity = Capacity { cpus: u32::MAX, memory_mib: 1 << 40, disk_gib: 1 << 40 };
    body.guest_subnet = GuestSubnet { network: [10, 77 + index, 0, 0].into(), prefix_length: 16 };
    Body::HostJoin(body)
}

pub(super) fn friend_key(number: u8) -> SecretKey {
    key(50 + number)
}

pub(super) fn everything(key: &SecretKey) -> Body {
    let Body::AccountGrant(body) = grant(u32::MAX, u32::MAX) else { panic!("a grant") };
    let capacity = Capacity { cpus: u32::MAX, memory_mib: 1 << 40, disk_gib: 1 << 40 };
    Body::AccountGrant(AccountGrant { key: key.public_key(), capacity, ..body })
}

fn data(number: usize) -> Body {
    let name = format!("data{number}").parse().expect("a name");
    Body::VolumeCreate(VolumeCreate { name, size_gib: 1, host: host(1) })
}

/// As large as a VM may be made without keys.
fn talkative(number: usize) -> Body {
    Body::VmCreate(Box::new(VmCreate {
        host: Some(host(1)),
        public_user_data: Some("x".repeat(USER_DATA_BYTES_MAX)),
        ..create_body(&format!("vm{number}"), 1)
    }))
}

/// What the detail of a refusal with `limit_exceeded` says.
fn limit(court: &mut Court, key: &SecretKey, body: Body) -> String {
    court.now = court.now.plus_ms(1); // else it would be the same bytes
    let payload = court.sign(key, body);
    match court.commit(vec![payload]).releases.remove(0).verdict {
        Verdict::Refused(refusal) if refusal.code == RefusalCode::LimitExceeded => refusal.detail,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_account_has_so_many_things_and_the_hosts_of_one_operator_carry_so_many() {
    let mut court = boasting();
    let verdicts = codes(&court.many(&friend_key(0), (0..=OBJECTS_PER_ACCOUNT_MAX).map(data)));
    let (last, before) = verdicts.split_last().expect("some");
    assert!(before.iter().all(Option::is_none));
    assert_eq!(*last, Some(RefusalCode::LimitExceeded));
    let left = OBJECTS_PER_OPERATOR_MAX - OBJECTS_PER_ACCOUNT_MAX - 1;
    let verdicts = codes(&court.many(&friend_key(1), (0..left).map(data)));
    assert!(verdicts.iter().all(Option::is_none));
    let effects = court.accept(&friend_key(1), data(left));
    let [Effect::Volume(newest)] = &effects[..] else { panic!("{effects:?}") };
    let newest: Volume = (**newest).clone();

    // A judge that begins from a snapshot counts the same.
    for _ in 0..2 {
        let said = limit(&mut court, &friend_key(0), on("web", 1));
        assert!(said.contains(&OBJECTS_PER_ACCOUNT_MAX.to_string()), "{said}");
        for body in [data(0), on("web", 1)] {
            let said = limit(&mut court, &friend_key(2), body);
            assert!(said.contains("20000") && said.contains("op1"), "{said}");
        }
        court.judge = copy(&court);
    }
    // Elsewhere there is room, and here again when something has gone.
    court.accept(&operator(2), everything(&friend_key(2)));
    court.accept(&operator(2), image("op2/small"));
    assert_eq!(court.vm(&friend_key(2), create("web", 1)).placement.host(), Some(host(2)));
    let gone = court.accept(&friend_key(1), delete(&newest));
    let [Effect::Volume(gone)] = &gone[..] else { panic!("{gone:?}") };
    court.accept(&agent_key(1), told(gone, VolumePhase::Deleted));
    court.accept(&friend_key(2), data(0));
    limit(&mut court, &friend_key(1), data(left));
}

fn only_vm(effect: &Effect) -> &Vm {
    match effect {
        Effect::Vm(vm) => vm,
        other => panic!("no VM but {other:?}"),
    }
}

/// Bytes that only the judge sees here: a document has fewer.
const WIDE_BYTES: usize = 2 * USER_DATA_BYTES_MAX;

fn wide(number: usize) -> Body {
    let Body::VmCreate(body) = talkative(number) else { panic!("a vm.create") };
    let public_user_data = Some("x".repeat(WIDE_BYTES));
    Body::VmCreate(Box::new(VmCreate { public_user_data, host: None, ..*body }))
}

#[test]
fn so_much_changes_with_one_commit_and_no_operator_keeps_the_others_from_it() {
    let mut court = Court::of(6);
    for index in 0..6 {
        court.accept(&operator(index), large(index));
        court.accept(&operator(index), image(&format!("op{index}/small")));
        court.accept(&operator(index), everything(&friend_key(index)));
    }
    let share = COMMIT_CHANGES_BYTES_PER_OPERATOR_MAX / WIDE_BYTES;
    let of = |friend: u8, count: usize| {
        (0..count).map(move |at| (friend_key(friend).public_key(), wide(at)))
    };
    // The fifth still finds room after the first asked for more than his share, the sixth none.
    let less = share - 2;
    let wishes = of(0, share + 5).chain(of(1, less)).chain(of(2, less)).chain(of(4, 1));
    let verdicts = codes(&court.many_of(wishes.chain(of(3, less)).chain(of(5, 20))));
    let full = Some(RefusalCode::CommitFull);
    let refused: Vec<_> = (0..verdicts.len()).filter(|at| verdicts[*at] == full).collect();
    let of_first = refused.iter().filter(|at| **at < share + 5).count();
    assert!((5..20).contains(&of_first), "{refused:?}");
    assert_eq!(verdicts[share + 5 + 2 * less], None, "of another operator's account");
    let of_last = refused.iter().filter(|at| **at >= verdicts.len() - 20).count();
    assert_eq!(refused.len(), of_first + of_last);
    assert!((5..20).contains(&of_last), "{refused:?}");
}

#[test]
fn so_much_changes_for_one_operator_with_a_commit_and_what_found_no_room_may_be_sent_again() {
    let mut court = boasting();
    let count = COMMIT_CHANGES_BYTES_PER_OPERATOR_MAX / WIDE_BYTES + 10;
    court.accept(&operator(2), large(2));
    court.accept(&operator(2), everything(&friend_key(0)));
    let now = court.now;
    let verdicts = codes(&court.many(&friend_key(0), (0..count).map(wide)));
    let full = verdicts.iter().filter(|code| **code == Some(RefusalCode::CommitFull)).count();
    let accepted = verdicts.iter().take_while(|code| code.is_none()).count();
    assert_eq!((accepted + full, now), (count, court.now), "{:?}", verdicts.last());
    assert!((1..20).contains(&full), "{full}");
    // The same bytes, in the next commit.
    let verdicts = codes(&court.many(&friend_key(0), (0..count).map(wide)));
    let of = |code| verdicts.iter().filter(|other| **other == code).count();
    assert_eq!(of(Some(RefusalCode::Duplicate)), accepted, "they left a trace, the others none");
    assert_eq!(of(None) + of(Some(RefusalCode::LimitExceeded)), full);
}

#[test]
fn so_much_is_written_anew_for_one_operator_with_a_commit_however_little_is_told_of_it() {
    let mut court = boasting();
    court.accept(&operator(2), large(2));
    court.accept(&operator(2), image("op2/small"));
    let (own, other) = (friend_key(0), friend_key(9));
    court.accept(&operator(2), everything(&other));
    let small = court.vm(&own, on("small", 1)).id;
    let elsewhere = court.vm(&other, on("small", 2)).id;
    assert_eq!(codes(&court.many(&own, [wide(0)].into_iter())), [None]);
    let mut vms = court.vms.values();
    let wide = vms.find(|vm| vm.public_user_data.is_some()).expect("it was made").id;
    let turned = |vm: VmId, at: usize| {
        let protection = match at.is_multiple_of(2) {
            true => Protection::Protected,
            false => Protection::Unprotected,
        };
        Body::VmProtect(VmProtect { vm, protection, expected_generation: None })
    };
    let count = COMMIT_REWRITTEN_BYTES_PER_OPERATOR_MAX / WIDE_BYTES;
    let wishes = (0..count + 2).map(|at| (own.public_key(), turned(wide, at)));
    let others = [(own.public_key(), turned(small, 0)), (other.public_key(), turned(elsewhere, 0))];
    let verdicts = codes(&court.many_of(wishes.chain(others)));
    let full = Some(RefusalCode::CommitFull);
    let accepted = verdicts.iter().take_while(|code| code.is_none()).count();
    assert!((count - 10..=count).contains(&accepted), "{accepted} of {count}");
    // Of his no other one counts, of another operator's all do.
    let (of_other, of_own) = verdicts.split_last().expect("some");
    assert!(of_own[accepted..].iter().all(|code| *code == full));
    assert_eq!(*of_other, None);
    // The next commit begins anew, also for a judge that began from a snapshot.
    court.judge = copy(&court);
    court.accept(&own, turned(small, 0));
}

#[test]
fn vms_of_so_many_bytes_count_with_an_operator_also_when_their_offers_lapse_commit_by_commit() {
    let mut court = boasting();
    let count = VM_BYTES_PER_OPERATOR_MAX / USER_DATA_BYTES_MAX;
    // More than one commit may change.
    let mut verdicts = Vec::new();
    for some in (0..count + 10).collect::<Vec<_>>().chunks(count / 5) {
        let wishes = some.iter().map(|number| talkative(*number));
        verdicts.extend(codes(&court.many(&friend_key(0), wishes)));
    }
    let accepted = verdicts.iter().take_while(|code| code.is_none()).count();
    assert!((count - 50..=count).contains(&accepted), "{accepted}");
    let refused = &verdicts[accepted..];
    assert!(refused.iter().all(|code| *code == Some(RefusalCode::LimitExceeded)));
    // Not one is accepted, so that in the end no host has them.
    let mut homeless = Vec::new();
    while let Some(deadline) = court.judge.next_deadline() {
        court.now = court.now.max(deadline);
        let lapsed = court.commit(vec![]).time_effects;
        // Never more with one commit, and as many as that until none is left.
        assert_eq!(lapsed.len(), LAPSED_PER_COMMIT_MAX.min(accepted - homeless.len()));
        homeless.extend(lapsed);
        court.judge = copy(&court);
    }
    assert_eq!(homeless.len(), accepted);
    let homeless: Vec<&Vm> = homeless.iter().map(only_vm).collect();
    assert!(homeless.iter().all(|vm| vm.placement == Placement::NoHost {}));
    // Without their offers they are a little shorter.
    let more = codes(&court.many(&friend_key(1), (0..4).map(talkative)));
    assert_eq!(more.last(), Some(&Some(RefusalCode::LimitExceeded)));
    for _ in 0..2 {
        let said = limit(&mut court, &friend_key(2), on("web", 1));
        assert!(said.contains(&VM_BYTES_PER_OPERATOR_MAX.to_string()), "{said}");
        court.judge = copy(&court);
    }
    for vm in &homeless[..2] {
        court.vm(&friend_key(0), Body::VmDelete(change(vm)));
    }
    court.vm(&friend_key(2), on("web", 1));
}
