//! `account.*` in the model.

use dagger_payload::id::{AccountId, Generation, LedgerTime};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{
    AccountAddKey, AccountGrant, AccountRemoveKey, AccountRevoke, AccountRotateKey, Body, Capacity,
    KeyRole,
};
use dagger_payload::object::{Account, AccountKey, Effect, Grant};
use dagger_payload::refusal::RefusalCode;

use super::kinds::{Kind, of_kind};
use super::members::{is_host_key, is_member_key, is_proposed_key};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling, require_generation};
use super::volumes::draw_expected;

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "account.grant", weight: 6, draw: draw_grant, judge: judge_grant },
    Kind { name: "account.revoke", weight: 2, draw: draw_revoke, judge: judge_revoke },
    Kind { name: "account.add_key", weight: 3, draw: draw_add, judge: judge_add },
    Kind { name: "account.remove_key", weight: 2, draw: draw_remove, judge: judge_remove },
    Kind { name: "account.rotate_key", weight: 2, draw: draw_rotate, judge: judge_rotate },
];

fn draw_grant(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let ahead = random.of(&[1_000, 60_000, 10_000_000, 1_000_000_000]);
    let other = random.happens(50).then(|| Person::any(random));
    let key = scene.key(other.unwrap_or(Person::Developer(random.index(4))));
    let body = AccountGrant {
        expected_generation: expected(scene, AccountId::of(&key), random),
        key,
        capacity: Capacity {
            cpus: random.of(&[0, 2, 8, 100]),
            memory_mib: random.of(&[512, 4096, 1 << 20]),
            disk_gib: random.of(&[10, 1000]),
        },
        vms: random.of(&[0, 1, 3, 20]),
        until_ms: scene.model.now.0 + ahead,
    };
    (scene.operator_mostly(random), Body::AccountGrant(body))
}

fn judge_grant(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountGrant);
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let id = AccountId::of(&body.key);
    if model.signing(&body.key).is_ok_and(|(account, _)| account.id != id) {
        return Err(RefusalCode::Conflict);
    }
    let old = model.account(id);
    require_generation(body.expected_generation, old.map_or(Generation(0), |old| old.generation))?;
    let is_opened = |one: &&Account| one.opened_by == operator;
    let is_taken = is_proposed_key(model, &body.key) || is_host_key(model, &body.key);
    if old.is_none() && is_taken {
        return Err(RefusalCode::Conflict);
    }
    if old.is_none() && model.accounts.iter().filter(is_opened).count() >= 16_384 {
        return Err(RefusalCode::LimitExceeded);
    }
    let others = old.iter().flat_map(|old| &old.grants).filter(|old| old.operator != operator);
    let mut grants: Vec<Grant> = others.cloned().collect();
    grants.push(Grant {
        operator,
        capacity: body.capacity,
        vms: body.vms,
        until: LedgerTime(body.until_ms),
        cause: asked.cause,
    });
    grants.sort_by_key(|grant| grant.operator);
    Ok(vec![Effect::Account(Box::new(Account {
        id,
        key: old.map_or(body.key.clone(), |old| old.key.clone()),
        keys: match old {
            Some(old) => old.keys.clone(),
            None => {
                vec![AccountKey { key: body.key.clone(), role: KeyRole::Owner, cause: asked.cause }]
            }
        },
        grants,
        generation: Generation(old.map_or(0, |old| old.generation.0) + 1),
        cause: asked.cause,
        opened_by: old.map_or(operator, |old| old.opened_by),
    }))])
}

fn draw_revoke(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let account = AccountId::of(&scene.key(Person::Developer(random.index(5))));
    let expected_generation = expected(scene, account, random);
    let body = AccountRevoke { account, expected_generation };
    (scene.operator_mostly(random), Body::AccountRevoke(body))
}

/// Of an account that there may be.
fn expected(scene: &Scene, account: AccountId, random: &mut Random) -> Option<Generation> {
    let account = scene.model.account(account);
    draw_expected(account.map(|account| account.generation), random)
}

/// Of the account for which `who` signs, if he does.
fn expected_by(scene: &Scene, who: Person, random: &mut Random) -> Option<Generation> {
    let key = scene.key(who);
    let signed = scene.model.signing(&key).ok();
    draw_expected(signed.map(|(account, _)| account.generation), random)
}

fn judge_revoke(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountRevoke);
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let mut account = model.account(body.account).ok_or(RefusalCode::NotFound)?.clone();
    require_generation(body.expected_generation, account.generation)?;
    if !account.grants.iter().any(|grant| grant.operator == operator) {
        return Err(RefusalCode::NotFound);
    }
    account.grants.retain(|grant| grant.operator != operator);
    account.generation = Generation(account.generation.0 + 1);
    account.cause = asked.cause;
    Ok(vec![Effect::Account(Box::new(account))])
}

/// Mostly a key of an account that has several or will have, and a key that may come or go.
fn draw_keys(scene: &Scene, random: &mut Random) -> (Person, PublicKey) {
    let accounts = &scene.model.accounts;
    let other = match random.below(10) {
        0..6 => Person::Spare(random.index(6)),
        6..9 => Person::Developer(random.index(5)),
        _ => Person::any(random),
    };
    if accounts.is_empty() || random.happens(50) {
        return (Person::any(random), scene.key(other));
    }
    let account = &accounts[random.index(accounts.len())];
    let signer = scene.who(&account.keys[random.index(account.keys.len())].key);
    let own = account.keys[random.index(account.keys.len())].key.clone();
    let key = if random.happens(400) { own } else { scene.key(other) };
    (signer.expect("everybody's key is known"), key)
}

fn draw_add(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, key) = draw_keys(scene, random);
    let role = random.of(&[KeyRole::Owner, KeyRole::Operate, KeyRole::Read]);
    let expected_generation = expected_by(scene, who, random);
    (who, Body::AccountAddKey(AccountAddKey { key, role, expected_generation }))
}

fn draw_remove(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, key) = draw_keys(scene, random);
    let expected_generation = expected_by(scene, who, random);
    (who, Body::AccountRemoveKey(AccountRemoveKey { key, expected_generation }))
}

fn draw_rotate(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let (who, new_key) = draw_keys(scene, random);
    let expected_generation = expected_by(scene, who, random);
    (who, Body::AccountRotateKey(AccountRotateKey { new_key, expected_generation }))
}

/// Whether `key` could begin to sign for `account`.
fn require_unused(model: &Model, account: &Account, key: &PublicKey) -> Result<(), RefusalCode> {
    let signs = model.accounts.iter().flat_map(|any| &any.keys).any(|any| any.key == *key);
    let others = model.accounts.iter().filter(|any| any.id != account.id);
    let founded_another = others.into_iter().any(|any| any.key == *key);
    let used = signs || founded_another || is_member_key(model, key);
    if used { Err(RefusalCode::Conflict) } else { Ok(()) }
}

fn with_keys(account: &Account, keys: Vec<AccountKey>, asked: &Asked<'_>) -> Ruling {
    if keys.iter().all(|own| own.role != KeyRole::Owner) {
        return Err(RefusalCode::StateWrong);
    }
    let mut account = account.clone();
    account.keys = keys;
    account.generation = Generation(account.generation.0 + 1);
    account.cause = asked.cause;
    Ok(vec![Effect::Account(Box::new(account))])
}

fn judge_add(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountAddKey);
    let (account, role) = model.signing(asked.signer)?;
    if role != KeyRole::Owner {
        return Err(RefusalCode::NotAuthorized);
    }
    require_generation(body.expected_generation, account.generation)?;
    let new = AccountKey { key: body.key.clone(), role: body.role, cause: asked.cause };
    let mut keys = account.keys.clone();
    let Some(at) = keys.iter().position(|own| own.key == body.key) else {
        require_unused(model, account, &body.key)?;
        if keys.len() == 16 {
            return Err(RefusalCode::LimitExceeded);
        }
        keys.push(new);
        return with_keys(account, keys, asked);
    };
    if keys[at].role == body.role {
        return Ok(Vec::new());
    }
    keys[at] = new;
    with_keys(account, keys, asked)
}

fn judge_remove(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountRemoveKey);
    let (account, role) = model.signing(asked.signer)?;
    if role != KeyRole::Owner && body.key != *asked.signer {
        return Err(RefusalCode::NotAuthorized);
    }
    require_generation(body.expected_generation, account.generation)?;
    if account.role_of(&body.key).is_none() {
        return Err(RefusalCode::NotFound);
    }
    let keys = account.keys.iter().filter(|own| own.key != body.key).cloned().collect();
    with_keys(account, keys, asked)
}

fn judge_rotate(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountRotateKey);
    let (account, role) = model.signing(asked.signer)?;
    if role != KeyRole::Owner {
        return Err(RefusalCode::NotAuthorized);
    }
    require_generation(body.expected_generation, account.generation)?;
    require_unused(model, account, &body.new_key)?;
    let new = AccountKey { key: body.new_key.clone(), role, cause: asked.cause };
    let old = |own: &AccountKey| own.key == *asked.signer;
    let keys = account.keys.iter().map(|own| if old(own) { new.clone() } else { own.clone() });
    with_keys(account, keys.collect(), asked)
}
