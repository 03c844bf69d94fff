//! `account.grant`, `account.revoke`: an operator lets an account use his hosts, or no more.
//!
//! Owns that a grant replaces the same operator's earlier one, and that it opens the account. There
//! is no central administrator: each operator speaks for his own hosts.

use dagger_payload::id::{AccountId, Generation, LedgerTime};
use dagger_payload::kind::{AccountGrant, AccountRevoke};
use dagger_payload::object::{Account, Effect, Grant};
use dagger_payload::refusal::RefusalCode;

use super::state::State;
use super::{Case, Ruling, refuse};

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
    let old = state.accounts.get(&id);
    let mut grants = old.map_or_else(Vec::new, |account| account.grants.clone());
    grants.retain(|grant| grant.operator != operator);
    let at = grants.partition_point(|other| other.operator < operator);
    grants.insert(at, grant);
    let generation = old.map_or(Generation(1), |account| account.generation.next());
    let account = Account { id, key: body.key.clone(), grants, generation, cause: case.cause };
    Ok(vec![Effect::Account(Box::new(account))])
}

/// What runs stays: only `vm.start` and placement ask for a live grant.
pub(crate) fn revoke(state: &State, case: &Case<'_>, body: &AccountRevoke) -> Ruling {
    let Some(operator) = state.operator(case.signer) else {
        return refuse(RefusalCode::NotAuthorized, "only an operator of this cluster can revoke");
    };
    let Some(old) = state.accounts.get(&body.account) else {
        return refuse(RefusalCode::NotFound, format!("there is no account {}", body.account));
    };
    let mut account = old.clone();
    account.grants.retain(|grant| grant.operator != operator);
    if account.grants.len() == old.grants.len() {
        return refuse(RefusalCode::NotFound, "you have granted this account nothing");
    }
    account.generation = old.generation.next();
    account.cause = case.cause;
    Ok(vec![Effect::Account(Box::new(account))])
}
