//! `account.*` in the model.

use dagger_payload::id::{AccountId, Generation, LedgerTime};
use dagger_payload::kind::{AccountGrant, AccountRevoke, Body, Capacity};
use dagger_payload::object::{Account, Effect, Grant};
use dagger_payload::refusal::RefusalCode;

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling};

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "account.grant", weight: 6, draw: draw_grant, judge: judge_grant },
    Kind { name: "account.revoke", weight: 2, draw: draw_revoke, judge: judge_revoke },
];

fn operator_mostly(random: &mut Random) -> Person {
    if random.happens(900) { Person::Operator(random.index(3)) } else { Person::any(random) }
}

fn draw_grant(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let ahead = random.of(&[1_000, 60_000, 10_000_000, 1_000_000_000]);
    let body = AccountGrant {
        key: scene.key(Person::Developer(random.index(4))),
        capacity: Capacity {
            cpus: random.of(&[0, 2, 8, 100]),
            memory_mib: random.of(&[512, 4096, 1 << 20]),
            disk_gib: random.of(&[10, 1000]),
        },
        vms: random.of(&[0, 1, 3, 20]),
        until_ms: scene.model.now.0 + ahead,
    };
    (operator_mostly(random), Body::AccountGrant(body))
}

fn judge_grant(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountGrant);
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let id = AccountId::of(&body.key);
    let old = model.account(id);
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
        key: body.key.clone(),
        grants,
        generation: Generation(old.map_or(0, |old| old.generation.0) + 1),
        cause: asked.cause,
    }))])
}

fn draw_revoke(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let account = AccountId::of(&scene.key(Person::Developer(random.index(5))));
    (operator_mostly(random), Body::AccountRevoke(AccountRevoke { account }))
}

fn judge_revoke(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, AccountRevoke);
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let mut account = model.account(body.account).ok_or(RefusalCode::NotFound)?.clone();
    if !account.grants.iter().any(|grant| grant.operator == operator) {
        return Err(RefusalCode::NotFound);
    }
    account.grants.retain(|grant| grant.operator != operator);
    account.generation = Generation(account.generation.0 + 1);
    account.cause = asked.cause;
    Ok(vec![Effect::Account(Box::new(account))])
}
