//! What nobody can fill the judge's state with.

use dagger_bus::judging::AdmissionOutcome;
use dagger_payload::key::{PublicKey, Signature};
use dagger_payload::kind::{AccountAddKey, AccountRemoveKey, AccountRevoke, KeyRole};
use dagger_payload::limits::{
    ACCEPTED_REMEMBERED_PER_AUTHOR_MAX, ACCOUNTS_PER_OPERATOR_MAX, FORGOTTEN_PER_COMMIT_MAX,
    HOMELESS_VMS_PER_ACCOUNT_MAX, IMAGES_PER_PUBLISHER_MAX, IMAGES_TOGETHER_MAX,
    REFUSED_REMEMBERED_ALWAYS, REFUSED_REMEMBERED_PER_AUTHOR_MAX, REFUSED_REMEMBERED_TOGETHER_MAX,
    SEATS_PER_OPERATOR_KEPT_FOR_VOTERS, SEATS_PER_OPERATOR_MAX,
};
use dagger_payload::payload::SignatureKind;
use dagger_payload::proof::Finding;
use dagger_payload::state_tree::Subject;

use super::members::{add_operator, come, leave, proposal, propose, rotate};
use super::snapshot::copy;
use super::*;

impl Court {
    /// What becomes of many payloads, whose signatures are taken for granted.
    pub(super) fn many(
        &mut self,
        key: &SecretKey,
        bodies: impl Iterator<Item = Body>,
    ) -> Vec<Verdict> {
        self.many_of(bodies.map(|body| (key.public_key(), body)))
    }

    /// The same of several signers.
    pub(super) fn many_of(
        &mut self,
        wishes: impl Iterator<Item = (PublicKey, Body)>,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        // Each is another payload, for it has another time.
        let wishes: Vec<_> = wishes.zip(0..).collect();
        for wishes in wishes.chunks(4096) {
            let verified = wishes.iter().map(|((key, body), number)| {
                let not_after = self.now.plus_ms(1_000_000 + number);
                let (cluster, signer) = (self.cluster, key.clone());
                let payload = Payload { cluster, signer, not_after, body: body.clone() };
                let signed = SignedPayload {
                    signature_kind: SignatureKind::SshEd25519,
                    signature: Signature([0; 64]),
                    bytes: payload.to_bytes().into(),
                };
                let verified = Verified::of(&signed, Ok(Box::new(payload)));
                (signed, verified)
            });
            let (signed, verified): (Vec<_>, Vec<_>) = verified.unzip();
            let commit = self.next(signed);
            let mut release = self.judge.apply(commit, &verified).expect("the next commit");
            self.read(&mut release);
            verdicts.extend(release.releases.into_iter().map(|release| release.verdict));
        }
        verdicts
    }

    fn is_remembered(&mut self, payload: &SignedPayload) -> bool {
        let proof = self.judge.prove(&Subject::Payload(payload.digest()));
        matches!(proof.state.finding, Finding::Value(_))
    }
}

pub(super) fn codes(verdicts: &[Verdict]) -> Vec<Option<RefusalCode>> {
    let code = |verdict: &Verdict| match verdict {
        Verdict::Accepted => None,
        Verdict::Refused(refusal) => Some(refusal.code),
    };
    verdicts.iter().map(code).collect()
}

#[test]
fn what_strangers_ask_leaves_no_trace_and_counts_once_they_are_known() {
    let mut court = Court::furnished();
    let stranger = key(2);
    let wish = court.sign(&stranger, create("web", 1));
    let others = [grant(1, 1), leave(9), propose(add_operator(9)), join(8)];
    let others = others.map(|body| court.sign(&stranger, body));
    for payload in others.iter().chain([&wish]) {
        court.outcome(payload.clone()).expect_err("he is nobody");
        assert!(!court.is_remembered(payload));
    }
    let Body::AccountGrant(body) = grant(4, 4) else { panic!("a grant") };
    let body = AccountGrant { key: stranger.public_key(), ..body };
    court.accept(&operator(0), Body::AccountGrant(body));
    court.outcome(wish.clone()).expect("now he has an account");
    assert!(court.is_remembered(&wish));
    assert_eq!(court.outcome(wish), Err(RefusalCode::Duplicate));
}

#[test]
fn an_account_without_a_live_grant_leaves_no_trace_either() {
    let mut court = Court::furnished();
    let account = AccountId::of(&developer().public_key());
    for index in 0..3 {
        let body = AccountRevoke { account, expected_generation: None };
        court.accept(&operator(index), Body::AccountRevoke(body));
    }
    let wish = court.sign(&developer(), create("web", 1));
    assert_eq!(court.outcome(wish.clone()), Err(RefusalCode::AccountUnknown));
    assert!(!court.is_remembered(&wish));
}

#[test]
fn sums_of_the_largest_grants_do_not_wrap() {
    /// The largest number that a document may hold.
    const LARGEST: u64 = (1 << 53) - 1;
    let mut court = Court::furnished();
    for index in 0..3 {
        let Body::AccountGrant(mut body) = grant(u32::MAX, u32::MAX) else { panic!("a grant") };
        (body.capacity.memory_mib, body.capacity.disk_gib) = (LARGEST, LARGEST);
        court.accept(&operator(index), Body::AccountGrant(body));
    }
    court.accept(&developer(), create("one", 1));
    court.accept(&developer(), create("two", 1));
    let account = AccountId::of(&developer().public_key());
    let body = AccountRevoke { account, expected_generation: None };
    court.accept(&operator(1), Body::AccountRevoke(body));
    court.accept(&developer(), create("three", 1));
}

#[test]
fn so_many_refusals_of_one_author_are_remembered_and_his_other_requests_still_count() {
    let mut court = Court::furnished();
    let reads = key(3);
    let body =
        AccountAddKey { key: reads.public_key(), role: KeyRole::Read, expected_generation: None };
    court.accept(&developer(), Body::AccountAddKey(body));
    // A colleague who may only read asks and asks; a quarter is left for the owner.
    let left = REFUSED_REMEMBERED_PER_AUTHOR_MAX / 4;
    let refused = |court: &mut Court, key: &SecretKey, count: usize| {
        codes(&court.many(key, (0..count + 2).map(|_| create("big", 5))))
    };
    let expected = |code: RefusalCode, count: usize| {
        let codes = [vec![code; count], vec![RefusalCode::TooManyRemembered; 2]].concat();
        codes.into_iter().map(Some).collect::<Vec<_>>()
    };
    let of_reader = REFUSED_REMEMBERED_PER_AUTHOR_MAX - left;
    let verdicts = refused(&mut court, &reads, of_reader);
    assert_eq!(verdicts, expected(RefusalCode::NotAuthorized, of_reader));
    let verdicts = refused(&mut court, &developer(), left);
    assert_eq!(verdicts, expected(RefusalCode::GrantExceeded, left));
    // A judge that begins from a snapshot counts the same.
    court.judge = copy(&court);
    let late = court.sign(&developer(), create("big", 5));
    let AdmissionOutcome::Refused { refusal } = court.judge.admit(&verify(&late), court.now) else {
        panic!("admitted")
    };
    assert_eq!(refusal.code, RefusalCode::TooManyRemembered);
    assert!(refusal.detail.contains("grant_exceeded"), "{refusal}");
    assert_eq!(court.outcome(late.clone()), Err(RefusalCode::TooManyRemembered));
    assert!(!court.is_remembered(&late));
    court.vm(&developer(), on("web", 1));
    // Hours later everything has expired.
    court.now = court.now.plus_ms(DAY_MS);
    assert_eq!(court.submit(&developer(), create("big", 5)), Err(RefusalCode::GrantExceeded));
}

#[test]
fn so_many_accepted_payloads_of_one_author_are_remembered_and_then_no_more_are_taken() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let start = || Body::VmStart(change(&vm));
    let wishes = std::iter::repeat_with(start).take(ACCEPTED_REMEMBERED_PER_AUTHOR_MAX);
    let verdicts = codes(&court.many(&developer(), wishes));
    // The VM's creation is one, too.
    let (last, before) = verdicts.split_last().expect("some");
    assert!(before.iter().all(Option::is_none));
    assert_eq!(*last, Some(RefusalCode::TooManyRemembered));
    court.judge = copy(&court);
    assert_eq!(court.submit(&developer(), start()), Err(RefusalCode::TooManyRemembered));
    // As long as a refusal could be remembered, the rules are asked.
    let said = |court: &mut Court| match court.many(&developer(), [create("big", 99)].into_iter())[..]
    {
        [Verdict::Refused(ref refusal)] => refusal.clone(),
        ref other => panic!("{other:?}"),
    };
    court.now = court.now.plus_ms(1);
    assert_eq!(said(&mut court).code, RefusalCode::GrantExceeded);
    let vain = std::iter::repeat_n(create("big", 98), REFUSED_REMEMBERED_PER_AUTHOR_MAX - 1);
    court.many(&developer(), vain);
    court.now = court.now.plus_ms(1);
    let refusal = said(&mut court);
    assert_eq!(refusal.code, RefusalCode::TooManyRemembered);
    assert!(!refusal.detail.contains("grant_exceeded"), "the rules were asked: {refusal}");
    // Nobody else is in the way of others.
    court.accept(&operator(0), grant(5, 5));
    court.now = court.now.plus_ms(DAY_MS);
    court.accept(&developer(), start());
}

#[test]
fn a_key_that_was_stolen_fills_three_quarters_and_its_owner_removes_it() {
    let mut court = Court::furnished();
    let stolen = key(3);
    let body = AccountAddKey {
        key: stolen.public_key(),
        role: KeyRole::Operate,
        expected_generation: None,
    };
    court.accept(&developer(), Body::AccountAddKey(body));
    let vm = court.vm(&developer(), on("web", 1));
    let wishes = (0..ACCEPTED_REMEMBERED_PER_AUTHOR_MAX).map(|_| Body::VmStart(change(&vm)));
    let verdicts = codes(&court.many(&stolen, wishes));
    let accepted = verdicts.iter().take_while(|code| code.is_none()).count();
    assert_eq!(accepted, ACCEPTED_REMEMBERED_PER_AUTHOR_MAX / 4 * 3 - 2);
    let refused = &verdicts[accepted..];
    assert!(refused.iter().all(|code| *code == Some(RefusalCode::TooManyRemembered)));
    let body = AccountRemoveKey { key: stolen.public_key(), expected_generation: None };
    court.accept(&developer(), Body::AccountRemoveKey(body));
    court.accept(&developer(), Body::VmStop(change(&vm).into()));
}

#[test]
fn so_many_expired_payloads_are_forgotten_with_one_commit_and_the_rest_with_the_next() {
    let mut court = Court::furnished();
    let vm = court.vm(&developer(), on("web", 1));
    let starts = (2..ACCEPTED_REMEMBERED_PER_AUTHOR_MAX).map(|_| Body::VmStart(change(&vm)));
    assert!(codes(&court.many(&developer(), starts)).iter().all(Option::is_none));
    let last = |court: &Court, number: u64| {
        court.sign_until(&operator(0), grant(5, 5), court.now.plus_ms(2_000_000 + number))
    };
    let some = FORGOTTEN_PER_COMMIT_MAX - ACCEPTED_REMEMBERED_PER_AUTHOR_MAX + 20;
    let some: Vec<_> = (0..some as u64).map(|number| last(&court, number)).collect();
    for payload in &some {
        court.outcome(payload.clone()).expect("accepted");
    }
    court.now = court.now.plus_ms(DAY_MS);
    // Both what has been forgotten and what has not is refused; each by its own name.
    let newest = some.last().expect("some").clone();
    assert_eq!(court.outcome(newest.clone()), Err(RefusalCode::Duplicate));
    // A judge that begins from a snapshot forgets the same.
    let mut twin = copy(&court);
    let verified = [verify(&newest)];
    let commit = court.next(vec![newest]);
    let release = court.judge.apply(commit.clone(), &verified).expect("the next commit");
    assert_eq!(codes(&[release.releases[0].verdict.clone()]), [Some(RefusalCode::Expired)]);
    assert_eq!(twin.apply(commit, &verified), Ok(release));
}

#[test]
fn accounts_of_one_operator_share_how_many_names_they_give_and_each_has_two() {
    let mut court = Court::furnished();
    let open = |court: &mut Court, by: u8, number: usize| {
        let mut seed = [7; 32];
        seed[..8].copy_from_slice(&u64::try_from(number).expect("few").to_be_bytes());
        let owner = SecretKey::from_seed(&seed.into());
        let Body::AccountGrant(body) = grant(1, 1) else { panic!("a grant") };
        let body = AccountGrant { key: owner.public_key(), ..body };
        court.accept(&operator(by), Body::AccountGrant(body));
        owner
    };
    let names = |owner: &SecretKey, count: usize| {
        let account = AccountId::of(&owner.public_key());
        (0..count).map(move |at| image(&format!("{account}/image{at}"))).collect::<Vec<_>>()
    };
    for number in 0..IMAGES_TOGETHER_MAX / IMAGES_PER_PUBLISHER_MAX {
        let owner = open(&mut court, 1, number);
        let verdicts = court.many(&owner, names(&owner, IMAGES_PER_PUBLISHER_MAX).into_iter());
        assert!(codes(&verdicts).iter().all(Option::is_none));
    }
    let (late, elsewhere) = (open(&mut court, 1, 1000), open(&mut court, 2, 1001));
    court.judge = copy(&court);
    let verdicts = codes(&court.many(&late, names(&late, 3).into_iter()));
    assert_eq!(verdicts, [None, None, Some(RefusalCode::LimitExceeded)]);
    let verdicts = codes(&court.many(&elsewhere, names(&elsewhere, 3).into_iter()));
    assert_eq!(verdicts, [None; 3]);
    court.accept(&operator(1), image("op1/small"));
}

#[test]
fn accounts_of_one_operator_share_what_is_remembered_and_each_keeps_a_little() {
    let mut court = Court::furnished();
    let open = |court: &mut Court, by: u8, number: u16| {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        let owner = SecretKey::from_seed(&seed.into());
        let Body::AccountGrant(body) = grant(1, 1) else { panic!("a grant") };
        let body = AccountGrant { key: owner.public_key(), ..body };
        court.accept(&operator(by), Body::AccountGrant(body));
        owner
    };
    let accounts = REFUSED_REMEMBERED_TOGETHER_MAX / REFUSED_REMEMBERED_PER_AUTHOR_MAX;
    let crowd: Vec<_> = (0..accounts as u16).map(|number| open(&mut court, 1, number)).collect();
    let bystander = open(&mut court, 1, 1_000);
    let elsewhere = open(&mut court, 2, 1_001);
    // Nobody of whom they have a grant has the image.
    let wishes = |count: usize| (0..count).map(|_| create("web", 1));
    for owner in &crowd {
        let refused = codes(&court.many(owner, wishes(REFUSED_REMEMBERED_PER_AUTHOR_MAX)));
        assert!(refused.iter().all(|code| *code == Some(RefusalCode::ImageUnknown)));
    }
    let some = REFUSED_REMEMBERED_ALWAYS + 1;
    let mut expected = vec![Some(RefusalCode::ImageUnknown); some];
    assert_eq!(codes(&court.many(&elsewhere, wishes(some))), expected);
    // A judge that begins from a snapshot counts the same.
    court.judge = copy(&court);
    expected[some - 1] = Some(RefusalCode::TooManyRemembered);
    assert_eq!(codes(&court.many(&bystander, wishes(some))), expected);
    let body =
        AccountAddKey { key: key(3).public_key(), role: KeyRole::Read, expected_generation: None };
    court.accept(&bystander, Body::AccountAddKey(body));
    // What has expired is nobody's any more.
    court.now = court.now.plus_ms(DAY_MS);
    court.accept(&operator(0), grant(5, 5));
    assert_eq!(codes(&court.many(&bystander, wishes(1))), [Some(RefusalCode::ImageUnknown)]);
}

#[test]
fn a_publisher_gives_so_many_names() {
    let mut court = Court::furnished();
    let names = (1..=IMAGES_PER_PUBLISHER_MAX).map(|at| image(&format!("op0/image{at}")));
    let verdicts = codes(&court.many(&operator(0), names));
    let (last, before) = verdicts.split_last().expect("some");
    assert!(before.iter().all(Option::is_none));
    assert_eq!(*last, Some(RefusalCode::LimitExceeded));
    // Names that he has given can be used on, and others have theirs.
    let Body::ImageRegister(mut other) = image("op0/small") else { panic!("an image") };
    other.digest = ImageDigest([6; 32]);
    court.accept(&operator(0), Body::ImageRegister(other));
    court.accept(&operator(1), image("op1/small"));
}

#[test]
fn an_operator_opens_so_many_accounts() {
    let mut court = Court::furnished();
    let seeded = |number: usize| {
        let mut seed = [99; 32];
        seed[..8].copy_from_slice(&u64::try_from(number).expect("few").to_be_bytes());
        SecretKey::from_seed(&seed.into()).public_key()
    };
    let Body::AccountGrant(body) = grant(1, 1) else { panic!("a grant") };
    let granted = |key| Body::AccountGrant(AccountGrant { key, ..body.clone() });
    // The developer's account was opened by the first operator.
    let grants = (1..=ACCOUNTS_PER_OPERATOR_MAX).map(|at| granted(seeded(at)));
    let verdicts = codes(&court.many(&operator(0), grants));
    let (last, before) = verdicts.split_last().expect("some");
    assert!(before.iter().all(Option::is_none));
    assert_eq!(*last, Some(RefusalCode::LimitExceeded));
    court.judge = copy(&court);
    let newest = granted(seeded(ACCOUNTS_PER_OPERATOR_MAX));
    assert_eq!(court.submit(&operator(0), newest.clone()), Err(RefusalCode::LimitExceeded));
    court.accept(&operator(1), newest.clone());
    // Who has an account may be granted more.
    court.accept(&operator(0), newest);
}

#[test]
fn an_account_whose_vms_find_no_host_gets_no_more_of_them() {
    let mut court = Court::furnished();
    court.accept(&operator(1), grant(4, 4));
    let mut lost = Vec::new();
    while lost.len() < HOMELESS_VMS_PER_ACCOUNT_MAX {
        // One after another, on a host that does not answer.
        lost.push(court.vm(&developer(), on(&format!("vm{}", lost.len()), 1)));
        court.now = court.judge.next_deadline().expect("an open offer");
        court.commit(vec![]);
    }
    assert_eq!(court.submit(&developer(), on("more", 2)), Err(RefusalCode::LimitExceeded));
    court.judge = copy(&court);
    assert_eq!(court.submit(&developer(), on("more", 0)), Err(RefusalCode::LimitExceeded));
    court.vm(&developer(), Body::VmDelete(change(&lost[0])));
    court.vm(&developer(), on("more", 1));
}

#[test]
fn one_operator_never_takes_the_seats_of_all_and_can_still_change_the_key_of_a_voter() {
    let mut court = Court::of(4);
    court.accept(&operator(1), join(1));
    let followers = SEATS_PER_OPERATOR_MAX - SEATS_PER_OPERATOR_KEPT_FOR_VOTERS;
    // His founder has one seat.
    for index in 1..followers {
        let index = 100 + u8::try_from(index).expect("few");
        court.accept(&operator(1), come(index));
        court.accept(&operator(1), leave(index));
    }
    assert_eq!(court.submit(&operator(1), come(200)), Err(RefusalCode::LimitExceeded));
    court.accept(&operator(2), come(200));
    court.accept(&operator(1), rotate(1, &key(77)));
}

#[test]
fn nobody_can_bar_the_key_of_an_operator_who_is_proposed() {
    let mut court = Court::furnished();
    let waiting = proposal(&court.accept(&operator(0), propose(add_operator(4))));
    let wanted = operator(4).public_key();
    let add = AccountAddKey { key: wanted.clone(), role: KeyRole::Read, expected_generation: None };
    let added = court.submit(&developer(), Body::AccountAddKey(add));
    assert_eq!(added, Err(RefusalCode::Conflict));
    let Body::AccountGrant(body) = grant(1, 1) else { panic!("a grant") };
    let body = AccountGrant { key: wanted.clone(), ..body };
    assert_eq!(court.submit(&operator(2), Body::AccountGrant(body)), Err(RefusalCode::Conflict));
    let Body::HostJoin(mut host) = join(2) else { panic!("a host.join") };
    host.agent_key = wanted.clone();
    assert_eq!(court.submit(&operator(2), Body::HostJoin(host)), Err(RefusalCode::Conflict));
    let Body::HostJoin(mut host) = come(9) else { panic!("a host.join") };
    host.ledger_key = wanted.clone();
    assert_eq!(court.submit(&operator(2), Body::HostJoin(host)), Err(RefusalCode::Conflict));
    // Not even by proposing the key under a name that nobody would approve.
    let change = dagger_payload::membership::Change::AddOperator {
        name: "nobody".parse().expect("a name"),
        key: wanted,
    };
    court.accept(&operator(2), propose(change));
    court.accept(&operator(1), super::members::approve(waiting.id));
    court.accept(&operator(2), super::members::approve(waiting.id));
    court.accept(&operator(4), come(9));
}
