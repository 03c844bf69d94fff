//! Who signs for an account, and what each role allows.

use dagger_payload::id::AccountId;
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{
    AccountAddKey, AccountRemoveKey, AccountRotateKey, ImageRetire, KeyRole,
};
use dagger_payload::limits::ACCOUNT_KEYS_MAX;

use super::members::{add_operator, propose, remove_operator};
use super::*;

fn spare(number: u8) -> SecretKey {
    SecretKey::from_seed(&[200 + number; 32].into())
}

fn add(key: &SecretKey, role: KeyRole) -> Body {
    Body::AccountAddKey(AccountAddKey { key: key.public_key(), role, expected_generation: None })
}

fn remove(key: PublicKey) -> Body {
    Body::AccountRemoveKey(AccountRemoveKey { key, expected_generation: None })
}

fn rotate(new: &SecretKey) -> Body {
    Body::AccountRotateKey(AccountRotateKey {
        new_key: new.public_key(),
        expected_generation: None,
    })
}

#[test]
fn each_role_may_do_what_it_says_and_no_more() {
    let mut court = Court::furnished();
    let (operates, reads) = (spare(0), spare(1));
    court.accept(&developer(), add(&operates, KeyRole::Operate));
    court.accept(&developer(), add(&reads, KeyRole::Read));
    let vm = court.vm(&operates, on("web", 1));
    assert_eq!(vm.account, AccountId::of(&developer().public_key()));
    court.vm(&developer(), Body::VmStop(change(&vm).into()));
    for body in [on("other", 1), Body::VmStart(change(&vm)), own_image()] {
        assert_eq!(court.submit(&reads, body), Err(RefusalCode::NotAuthorized));
    }
    for key in [&operates, &reads] {
        let owners = [add(&spare(2), KeyRole::Read), remove(developer().public_key())];
        for body in owners {
            assert_eq!(court.submit(key, body), Err(RefusalCode::NotAuthorized));
        }
        // Whoever holds a key may give it up.
        court.accept(key, remove(key.public_key()));
        assert_eq!(court.submit(key, on("other", 1)), Err(RefusalCode::AccountUnknown));
    }
}

#[test]
fn a_rotated_key_signs_no_more_also_for_what_it_signed_before() {
    let mut court = Court::furnished();
    court.accept(&developer(), own_image());
    let vm = court.vm(&developer(), on("web", 1));
    // Signed before, on its way while the key changes.
    let late = court.sign(&developer(), Body::VmDelete(change(&vm)));
    let new = spare(0);
    let turn = court.sign(&developer(), rotate(&new));
    let release = court.commit(vec![turn, late]);
    assert_eq!(release.releases[0].verdict, Verdict::Accepted);
    let Verdict::Refused(refusal) = &release.releases[1].verdict else { panic!("{release:?}") };
    assert_eq!(refusal.code, RefusalCode::NotAuthorized);
    // Everything of the account is the new key's: VMs, images, grants.
    court.vm(&new, Body::VmStop(change(&vm).into()));
    let Body::ImageRegister(own) = own_image() else { panic!("an image") };
    court
        .accept(&new, Body::ImageRetire(ImageRetire { name: own.name, expected_generation: None }));
    court.vm(&new, on("other", 1));
    let granted = |key: &SecretKey| {
        let Body::AccountGrant(body) = grant(9, 9) else { panic!("a grant") };
        Body::AccountGrant(AccountGrant { key: key.public_key(), ..body })
    };
    // Operators go on naming the first key, from which the account has its id.
    assert_eq!(court.submit(&operator(0), granted(&new)), Err(RefusalCode::Conflict));
    let effects = court.accept(&operator(0), granted(&developer()));
    let [Effect::Account(account)] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((account.id, account.grants.len()), (vm.account, 3));
    // The first key may come back.
    court.accept(&new, add(&developer(), KeyRole::Operate));
    court.vm(&developer(), Body::VmStart(change(&vm)));
}

#[test]
fn a_key_that_was_stolen_is_removed_by_the_owner_however_fast_the_thief_signs() {
    let mut court = Court::furnished();
    for (number, role) in [(0, KeyRole::Operate), (10, KeyRole::Read)] {
        let stolen = spare(number);
        court.accept(&developer(), add(&stolen, role));
        // In one commit, the thief first; both are judged in the order in which they came.
        let flight = court.sign(&stolen, rotate(&spare(number + 1)));
        let removal = court.sign(&developer(), remove(stolen.public_key()));
        let release = court.commit(vec![flight, removal]);
        let Verdict::Refused(refusal) = &release.releases[0].verdict else { panic!("{release:?}") };
        assert_eq!(refusal.code, RefusalCode::NotAuthorized);
        assert_eq!(release.releases[1].verdict, Verdict::Accepted);
        for key in [stolen, spare(number + 1)] {
            assert_eq!(court.submit(&key, on("web", 1)), Err(RefusalCode::AccountUnknown));
        }
    }
}

#[test]
fn what_is_granted_to_a_key_never_goes_to_an_account_that_claimed_it() {
    let mut court = Court::furnished();
    let newcomer = spare(0);
    court.accept(&developer(), add(&newcomer, KeyRole::Read));
    let Body::AccountGrant(body) = grant(9, 9) else { panic!("a grant") };
    let body = Body::AccountGrant(AccountGrant { key: newcomer.public_key(), ..body });
    assert_eq!(court.submit(&operator(0), body.clone()), Err(RefusalCode::Conflict));
    // Its holder leaves, and begins an account of his own.
    court.accept(&newcomer, remove(newcomer.public_key()));
    court.accept(&operator(0), body);
    let vm = court.vm(&newcomer, on("web", 0));
    assert_eq!(vm.account, AccountId::of(&newcomer.public_key()));
}

#[test]
fn an_account_keeps_an_owner_and_a_key_signs_for_one_account_only() {
    let mut court = Court::furnished();
    let owner = developer();
    court.accept(&owner, add(&spare(0), KeyRole::Operate));
    for body in [remove(owner.public_key()), add(&owner, KeyRole::Read)] {
        assert_eq!(court.submit(&owner, body), Err(RefusalCode::StateWrong));
    }
    for key in [operator(0), ledger_key(0), agent_key(0)] {
        assert_eq!(court.submit(&owner, add(&key, KeyRole::Read)), Err(RefusalCode::Conflict));
        assert_eq!(court.submit(&owner, rotate(&key)), Err(RefusalCode::Conflict));
    }
    let Body::AccountGrant(body) = grant(1, 1) else { panic!("a grant") };
    let other = AccountGrant { key: spare(1).public_key(), ..body };
    court.accept(&operator(0), Body::AccountGrant(other));
    let taken = [add(&spare(1), KeyRole::Read), rotate(&spare(0))];
    for body in taken {
        assert_eq!(court.submit(&owner, body), Err(RefusalCode::Conflict));
    }
    assert_eq!(court.submit(&spare(2), rotate(&spare(3))), Err(RefusalCode::AccountUnknown));
    for number in 2..u8::try_from(ACCOUNT_KEYS_MAX).expect("few") {
        court.accept(&owner, add(&spare(number), KeyRole::Read));
    }
    let one_more = add(&spare(40), KeyRole::Read);
    assert_eq!(court.submit(&owner, one_more), Err(RefusalCode::LimitExceeded));
}

#[test]
fn no_host_declares_the_key_of_an_account_as_its_agents() {
    let mut court = Court::furnished();
    let Body::HostJoin(mut body) = join(2) else { panic!("a host.join") };
    body.agent_key = developer().public_key();
    assert_eq!(court.submit(&operator(2), Body::HostJoin(body)), Err(RefusalCode::Conflict));
    court.vm(&developer(), on("web", 2));
}

/// An account for a key.
fn account_of(key: &SecretKey) -> Body {
    let Body::AccountGrant(body) = grant(1, 1) else { panic!("a grant") };
    Body::AccountGrant(AccountGrant { key: key.public_key(), ..body })
}

#[test]
fn a_removed_operator_comes_back_also_when_somebody_opened_an_account_for_his_key() {
    let mut court = Court::of(4);
    court.agree(&[0, 1, 2], add_operator(4));
    court.agree(&[0, 1, 2, 3], remove_operator(4));
    court.accept(&operator(3), account_of(&operator(4)));
    court.agree(&[0, 1, 2], add_operator(4));
    court.accept(&operator(4), image("op4/small"));
    // Whoever was never here does not come with an account's key.
    court.accept(&operator(3), account_of(&operator(5)));
    let new = court.submit(&operator(0), propose(add_operator(5)));
    assert_eq!(new, Err(RefusalCode::Conflict));
}

#[test]
fn no_account_is_opened_for_a_key_of_a_host() {
    let mut court = Court::of(4);
    court.accept(&operator(1), join(1));
    for key in [ledger_key(1), agent_key(1)] {
        let opened = court.submit(&operator(0), account_of(&key));
        assert_eq!(opened, Err(RefusalCode::Conflict));
    }
    // Agents' keys that hosts have no more are anybody's.
    let Body::HostJoin(mut body) = join(1) else { panic!("a host.join") };
    body.agent_key = agent_key(9).public_key();
    court.accept(&operator(1), Body::HostJoin(body));
    court.accept(&operator(0), account_of(&agent_key(1)));
}
