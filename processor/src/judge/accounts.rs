//! `account.grant`, `account.revoke`: an operator lets an account use his hosts, or no more;
//! `account.add_key`, `account.remove_key`, `account.rotate_key`: who signs for an account.
//!
//! Owns that a grant replaces the same operator's earlier one, and that it opens the account. There
//! is no central administrator: each operator speaks for his own hosts. Owns what each role of a
//! key allows, and that a key signs for one account only.

use dagger_payload::id::{AccountId, Generation, LedgerTime, OperatorId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{
    AccountAddKey, AccountGrant, AccountRemoveKey, AccountRevoke, AccountRotateKey, KeyRole,
};
use dagger_payload::limits::{ACCOUNT_KEYS_MAX, ACCOUNTS_PER_OPERATOR_MAX};
use dagger_payload::object::{Account, AccountKey, Effect, Grant};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::members::{is_of_host, is_of_member, is_proposed};
use super::state::State;
use super::{Case, Ruling, refuse, require_generation};

pub(crate) fn grant(state: &State, case: &Case<'_>, body: &AccountGrant) -> Ruling {
    let Some(operator) = state.operator(case.signer) else {
        return refuse(RefusalCode::NotAuthorized, "only an operator of this cluster can grant");
    };
    let grant = Grant {
        operator,
        capacity: body.capacity,
        vms: body.vms,
        until: LedgerTime(body.until_ms),
        cause: case.cause,
    };
    let id = AccountId::of(&body.key);
    // An owner adds a key without its holder: what is meant for the holder must not go to him.
    if let Some(other) = state.account_id(&body.key).filter(|other| *other != id) {
        let detail = format!("this key was added to account {other}: name that one's first key");
        return refuse(RefusalCode::Conflict, detail);
    }
    let old = state.accounts.get(&id);
    let before = old.map_or(Generation(0), |account| account.generation);
    require_generation(body.expected_generation, ("account", before))?;
    if old.is_none() {
        require_opening(state, &operator, &body.key)?;
    }
    let mut grants = old.map_or_else(Vec::new, |account| account.grants.clone());
    grants.retain(|grant| grant.operator != operator);
    let at = grants.partition_point(|other| other.operator < operator);
    grants.insert(at, grant);
    let generation = before.next();
    let cause = case.cause;
    let (key, keys) = match old {
        Some(account) => (account.key.clone(), account.keys.clone()),
        None => {
            let first = AccountKey { key: body.key.clone(), role: KeyRole::Owner, cause };
            (body.key.clone(), vec![first])
        }
    };
    let opened_by = old.map_or(operator, |account| account.opened_by);
    let account = Account { id, key, grants, generation, cause, keys, opened_by };
    Ok(vec![Effect::Account(Box::new(account))])
}

/// Whether `operator` may open an account for `key`.
fn require_opening(state: &State, operator: &OperatorId, key: &PublicKey) -> Result<(), Refusal> {
    if is_proposed(state, key) {
        return refuse(RefusalCode::Conflict, "key: it is proposed as an operator's");
    }
    if is_of_host(state, key) {
        return refuse(RefusalCode::Conflict, "key: it is a host's");
    }
    if state.tallies.accounts_opened_by(operator) >= ACCOUNTS_PER_OPERATOR_MAX {
        let detail = format!("you have opened {ACCOUNTS_PER_OPERATOR_MAX} accounts");
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    Ok(())
}

/// The account for which the signer may act.
///
/// # Errors
/// `account_unknown`, and `not_authorized` for a key that may only read or that signs no more.
pub(crate) fn acting<'s>(state: &'s State, case: &Case<'_>) -> Result<&'s Account, Refusal> {
    let (account, role) = signing(state, case)?;
    if role == KeyRole::Read {
        return refuse(RefusalCode::NotAuthorized, "this key of the account may only read");
    }
    Ok(account)
}

fn signing<'s>(state: &'s State, case: &Case<'_>) -> Result<(&'s Account, KeyRole), Refusal> {
    if let Some(signing) = case.signing
        && let Some(account) = state.accounts.get(&signing.account)
    {
        return Ok((account, signing.role));
    }
    if state.accounts.contains(&AccountId::of(case.signer)) {
        return refuse(RefusalCode::NotAuthorized, "this key signs for its account no more");
    }
    let detail = format!("{} has no account", case.signer.fingerprint());
    refuse(RefusalCode::AccountUnknown, detail)
}

fn owned<'s>(state: &'s State, case: &Case<'_>) -> Result<&'s Account, Refusal> {
    match signing(state, case)? {
        (account, KeyRole::Owner) => Ok(account),
        (_, KeyRole::Operate | KeyRole::Read) => {
            refuse(RefusalCode::NotAuthorized, "only an owner's key changes keys of the account")
        }
    }
}

pub(crate) fn add_key(state: &State, case: &Case<'_>, body: &AccountAddKey) -> Ruling {
    let account = owned(state, case)?;
    require_generation(body.expected_generation, ("account", account.generation))?;
    let mut keys = account.keys.clone();
    let cause = case.cause;
    match keys.iter_mut().find(|own| own.key == body.key) {
        Some(own) if own.role == body.role => return Ok(Vec::new()), // it is so already
        Some(own) => (own.role, own.cause) = (body.role, cause),
        None => {
            require_free(state, account, &body.key)?;
            if keys.len() >= ACCOUNT_KEYS_MAX {
                let detail = format!("an account has at most {ACCOUNT_KEYS_MAX} keys");
                return refuse(RefusalCode::LimitExceeded, detail);
            }
            keys.push(AccountKey { key: body.key.clone(), role: body.role, cause });
        }
    }
    with_keys(account, keys, case)
}

pub(crate) fn remove_key(state: &State, case: &Case<'_>, body: &AccountRemoveKey) -> Ruling {
    let account = match signing(state, case)? {
        (account, _) if body.key == *case.signer => account,
        _ => owned(state, case)?,
    };
    require_generation(body.expected_generation, ("account", account.generation))?;
    let mut keys = account.keys.clone();
    keys.retain(|own| own.key != body.key);
    if keys.len() == account.keys.len() {
        return refuse(RefusalCode::NotFound, "the account has no such key");
    }
    with_keys(account, keys, case)
}

/// Payloads of the old key that are ordered later are refused, whenever they were signed. Only an
/// owner's: whoever stole another one could else change it with every commit, and an owner who
/// takes it out would always name the one before.
pub(crate) fn rotate_key(state: &State, case: &Case<'_>, body: &AccountRotateKey) -> Ruling {
    let account = owned(state, case)?;
    require_generation(body.expected_generation, ("account", account.generation))?;
    require_free(state, account, &body.new_key)?;
    let mut keys = account.keys.clone();
    for own in keys.iter_mut().filter(|own| own.key == *case.signer) {
        (own.key, own.cause) = (body.new_key.clone(), case.cause);
    }
    with_keys(account, keys, case)
}

/// Whether nobody else signs with `key`, or did so for an account of its own. The account's own
/// first key may come back.
fn require_free(state: &State, account: &Account, key: &PublicKey) -> Result<(), Refusal> {
    let founded = AccountId::of(key);
    let founded_another = founded != account.id && state.accounts.contains(&founded);
    if founded_another || state.account_id(key).is_some() || is_of_member(state, key) {
        return refuse(RefusalCode::Conflict, "this key has another use in the cluster");
    }
    Ok(())
}

fn with_keys(account: &Account, keys: Vec<AccountKey>, case: &Case<'_>) -> Ruling {
    if !keys.iter().any(|own| own.role == KeyRole::Owner) {
        return refuse(RefusalCode::StateWrong, "one key of the account must stay its owner");
    }
    let generation = account.generation.next();
    let account = Account { keys, generation, cause: case.cause, ..account.clone() };
    Ok(vec![Effect::Account(Box::new(account))])
}

/// What runs stays: only `vm.start`, placement and a host's acceptance ask for a live grant.
pub(crate) fn revoke(state: &State, case: &Case<'_>, body: &AccountRevoke) -> Ruling {
    let Some(operator) = state.operator(case.signer) else {
        return refuse(RefusalCode::NotAuthorized, "only an operator of this cluster can revoke");
    };
    let Some(old) = state.accounts.get(&body.account) else {
        return refuse(RefusalCode::NotFound, format!("there is no account {}", body.account));
    };
    require_generation(body.expected_generation, ("account", old.generation))?;
    let mut account = old.clone();
    account.grants.retain(|grant| grant.operator != operator);
    if account.grants.len() == old.grants.len() {
        return refuse(RefusalCode::NotFound, "you have granted this account nothing");
    }
    account.generation = old.generation.next();
    account.cause = case.cause;
    Ok(vec![Effect::Account(Box::new(account))])
}
