//! `operator.propose`, `operator.approve`, `operator.withdraw`, `operator.rotate_key`: how the
//! operators change who takes part.
//!
//! Owns who may approve, when enough have, and which uses a key has. What has passed about
//! operators is executed here at once; what is about voters and rules, and the removal of an
//! operator whose hosts vote, waits for the next epoch, which `epochs` decides.

use dagger_payload::id::{AccountId, CommitIndex, Generation, LedgerTime, OperatorId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{OperatorPropose, OperatorRotateKey, ProposalChange};
use dagger_payload::limits::{OPERATORS_MAX, PROPOSAL_LIFE_MS_MAX, PROPOSALS_PER_OPERATOR_MAX};
use dagger_payload::membership::{Change, Operator, OperatorStanding, Proposal, ProposalStanding};
use dagger_payload::name::Name;
use dagger_payload::object::{Cause, Effect};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::epochs::{self, Draft};
use super::state::State;
use super::{Case, Ruling, refuse};

pub(crate) fn propose(state: &State, case: &Case<'_>, body: &OperatorPropose) -> Ruling {
    let proposer = acting(state, case)?;
    let newest = state.newest_epoch().epoch;
    if let Some(expected) = body.expected_epoch.filter(|expected| *expected != newest) {
        let detail = format!("epoch {expected} expected, {newest} is the newest decided one");
        return refuse(RefusalCode::Conflict, detail);
    }
    if let Some(same) = state.proposals.values().find(|other| other.change == body.change) {
        let detail = format!("proposal {} asks for exactly this: approve it", same.id);
        return refuse(RefusalCode::AlreadyExists, detail);
    }
    require_few_proposals(state, &proposer)?;
    let proposal = Proposal {
        id: case.cause.digest,
        proposer,
        change: body.change.clone(),
        approvals: vec![proposer],
        standing: ProposalStanding::Open,
        expires: case.now.plus_ms(PROPOSAL_LIFE_MS_MAX),
        cause: case.cause,
    };
    let passed = executed(state, case, &proposal)?;
    Ok(if has_passed(state, &proposal) { passed } else { vec![effect(proposal)] })
}

/// # Errors
/// `limit_exceeded`: nobody fills the state with proposals.
pub(crate) fn require_few_proposals(state: &State, by: &OperatorId) -> Result<(), Refusal> {
    let own = state.proposals.values().filter(|other| other.proposer == *by);
    if own.count() >= PROPOSALS_PER_OPERATOR_MAX {
        let detail = format!("{PROPOSALS_PER_OPERATOR_MAX} proposals of yours are pending");
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    Ok(())
}

/// Approving again counts anew: operators may have left meanwhile.
pub(crate) fn approve(state: &State, case: &Case<'_>, body: &ProposalChange) -> Ruling {
    let operator = acting(state, case)?;
    let old = pending(state, body)?;
    if old.standing == ProposalStanding::Passed {
        return Ok(Vec::new()); // it needs no more approvals
    }
    if old.expires < case.now {
        return refuse(RefusalCode::StateWrong, "the proposal has lapsed");
    }
    let mut proposal = Proposal { cause: case.cause, ..old.clone() };
    let is_new = !proposal.approvals.contains(&operator);
    if is_new {
        let at = proposal.approvals.partition_point(|other| *other < operator);
        proposal.approvals.insert(at, operator);
    }
    if has_passed(state, &proposal) {
        return executed(state, case, &proposal);
    }
    Ok(if is_new { vec![effect(proposal)] } else { Vec::new() })
}

pub(crate) fn withdraw(state: &State, case: &Case<'_>, body: &ProposalChange) -> Ruling {
    let operator = acting(state, case)?;
    let old = pending(state, body)?;
    if old.standing == ProposalStanding::Passed {
        let detail = "enough have approved: it is executed with the next epoch";
        return refuse(RefusalCode::StateWrong, detail);
    }
    let mut proposal = Proposal { cause: case.cause, ..old.clone() };
    if proposal.proposer == operator {
        proposal.standing = ProposalStanding::Withdrawn;
        return Ok(vec![effect(proposal)]);
    }
    proposal.approvals.retain(|other| *other != operator);
    let changed = proposal.approvals.len() < old.approvals.len();
    Ok(if changed { vec![effect(proposal)] } else { Vec::new() })
}

/// Payloads of the old key that are ordered later are refused, whenever they were signed.
pub(crate) fn rotate_key(state: &State, case: &Case<'_>, body: &OperatorRotateKey) -> Ruling {
    let id = acting(state, case)?;
    // His own first key may come back.
    let is_first = OperatorId::of(&body.new_key) == id && body.new_key != *case.signer;
    let is_used = is_of_member(state, &body.new_key) || is_of_account(state, &body.new_key);
    if is_used && !is_first {
        return refuse(RefusalCode::Conflict, "new_key: this key has another use in the cluster");
    }
    let old = state.operators.get(&id);
    let old =
        old.ok_or_else(|| Refusal::new(RefusalCode::NotFound, "there is no such operator"))?;
    let (key, generation) = (body.new_key.clone(), old.generation.next());
    let operator = Operator { key, generation, cause: case.cause, ..old.clone() };
    Ok(vec![Effect::Operator(Box::new(operator))])
}

/// Proposals for which too few have approved in time.
pub(crate) fn lapsed(state: &State, now: LedgerTime) -> Vec<Effect> {
    let late = state
        .proposals
        .values()
        .filter(|proposal| proposal.standing == ProposalStanding::Open && proposal.expires < now);
    let standing = ProposalStanding::Lapsed;
    late.map(|proposal| effect(Proposal { standing, ..proposal.clone() })).collect()
}

/// Whether `key` is to be an operator's, once enough approve: it is kept for him, though another
/// proposal may name it too.
pub(crate) fn is_proposed(state: &State, key: &PublicKey) -> bool {
    state.proposals.values().any(|proposal| {
        matches!(&proposal.change, Change::AddOperator { key: coming, .. } if coming == key)
    })
}

/// Whether `key` is a ledger's, an agent's or an operator's, was a ledger's or an operator's first
/// one, or is to be a ledger's or an operator's.
pub(crate) fn is_of_member(state: &State, key: &PublicKey) -> bool {
    is_proposed(state, key) || is_present_member(state, key)
}

/// The same without those who are only proposed as operators.
fn is_present_member(state: &State, key: &PublicKey) -> bool {
    is_of_host(state, key)
        || state.operator(key).is_some()
        || state.operators.contains_key(&OperatorId::of(key))
}

/// Whether `key` is, was or is to be a ledger's, or is an agent's.
pub(crate) fn is_of_host(state: &State, key: &PublicKey) -> bool {
    let is_coming = state.proposals.values().any(|proposal| {
        matches!(&proposal.change, Change::LedgerKey { key: coming, .. } if coming == key)
    });
    is_coming || state.roster.author_of(key).is_some() || state.host_of_agent(key).is_some()
}

/// Whether `key` signs for an account, or is the first one of an account.
pub(crate) fn is_of_account(state: &State, key: &PublicKey) -> bool {
    state.account_id(key).is_some() || state.accounts.contains(&AccountId::of(key))
}

pub(crate) fn acting(state: &State, case: &Case<'_>) -> Result<OperatorId, Refusal> {
    let detail = "only an operator of this cluster can do that";
    let unknown = || Refusal::new(RefusalCode::NotAuthorized, detail);
    state.operator(case.signer).ok_or_else(unknown)
}

fn pending<'s>(state: &'s State, body: &ProposalChange) -> Result<&'s Proposal, Refusal> {
    let none = || {
        let detail = format!("no proposal {} is pending", body.proposal);
        Refusal::new(RefusalCode::NotFound, detail)
    };
    state.proposals.get(&body.proposal).ok_or_else(none)
}

/// Whether more than two thirds of the present operators approve.
fn has_passed(state: &State, proposal: &Proposal) -> bool {
    let present = |operator: &&Operator| operator.standing == OperatorStanding::Present;
    let all = state.operators.values().filter(present);
    let approving = all.clone().filter(|operator| proposal.approvals.contains(&operator.id));
    3 * approving.count() > 2 * all.count()
}

/// What comes of a proposal for which enough approve.
///
/// # Errors
/// As things stand it cannot be executed; it stays as it is.
fn executed(state: &State, case: &Case<'_>, proposal: &Proposal) -> Ruling {
    let standing = ProposalStanding::Done;
    let done = effect(Proposal { standing, ..proposal.clone() });
    match &proposal.change {
        Change::AddOperator { name, key } => {
            let operator = Effect::Operator(Box::new(admitted(state, case, name, key)?));
            Ok(vec![operator, done])
        }
        // His hosts leave at the end of this commit.
        Change::RemoveOperator { operator } if !has_voters(state, operator, case.judged) => {
            require_removable(state, operator, &[])?;
            let others = state.proposals.values().filter(|other| other.id != proposal.id);
            let gone = removed(state, &[(*operator, case.cause)], others);
            Ok(gone.into_iter().chain([done]).collect())
        }
        change @ (Change::RemoveOperator { .. }
        | Change::Voters { .. }
        | Change::Protocol { .. }
        | Change::LedgerKey { .. }) => {
            Draft::planned(state).take(state, change)?;
            let standing = ProposalStanding::Passed;
            Ok(vec![effect(Proposal { standing, ..proposal.clone() })])
        }
    }
}

fn admitted(
    state: &State,
    case: &Case<'_>,
    name: &Name,
    key: &PublicKey,
) -> Result<Operator, Refusal> {
    let id = OperatorId::of(key);
    // One who was removed may come back, with his first key.
    let old = state.operators.get(&id).filter(|old| old.standing == OperatorStanding::Left);
    // Anybody may have opened an account for that key meanwhile, so it bars nobody who was here; a
    // present operator's key may have one, too.
    let is_used = is_present_member(state, key) || is_of_account(state, key);
    if old.is_none() && is_used {
        return refuse(RefusalCode::Conflict, "key: this key has another use in the cluster");
    }
    // What was published under a name is somebody's for ever, and so is the name.
    if state.operators.values().any(|other| other.id != id && other.name == *name) {
        let detail = format!("name: an operator is, or was, called {name}");
        return refuse(RefusalCode::NameTaken, detail);
    }
    if let Some(old) = old.filter(|old| old.name != *name) {
        let detail = format!("name: this operator was called {}, and comes back so", old.name);
        return refuse(RefusalCode::Conflict, detail);
    }
    if old.is_none() && state.operators.len() >= OPERATORS_MAX {
        let detail = format!("a cluster has at most {OPERATORS_MAX} operators in all its life");
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    Ok(Operator {
        id,
        name: name.clone(),
        key: key.clone(),
        first_key: key.clone(),
        standing: OperatorStanding::Present,
        generation: old.map_or(Generation(1), |old| old.generation.next()),
        cause: case.cause,
    })
}

/// Whether hosts of an operator vote, or will in the epoch that is decided to follow.
fn has_voters(state: &State, operator: &OperatorId, judged: CommitIndex) -> bool {
    let mut seats = state.roster.present().filter(|seat| seat.operator == *operator);
    seats.any(|seat| epochs::votes(state, &seat.host, judged))
}

/// Whether an operator may go after `others` went.
///
/// # Errors
/// `not_found`, and `state_wrong` for the last one.
pub(crate) fn require_removable(
    state: &State,
    id: &OperatorId,
    others: &[OperatorId],
) -> Result<(), Refusal> {
    let stays = |operator: &&Operator| {
        operator.standing == OperatorStanding::Present && !others.contains(&operator.id)
    };
    let mut present = state.operators.values().filter(stays);
    if !present.clone().any(|operator| operator.id == *id) {
        return refuse(RefusalCode::NotFound, format!("there is no operator {id}"));
    }
    if present.all(|operator| operator.id == *id) {
        return refuse(RefusalCode::StateWrong, "the last operator stays");
    }
    Ok(())
}

/// Operators who go, each for a cause, and `others` without the approvals of those.
pub(crate) fn removed<'s>(
    state: &State,
    going: &[(OperatorId, Cause)],
    others: impl Iterator<Item = &'s Proposal>,
) -> Vec<Effect> {
    let Some((_, last)) = going.last() else { return Vec::new() };
    let left = going.iter().filter_map(|(id, cause)| {
        let old = state.operators.get(id)?;
        let (standing, generation) = (OperatorStanding::Left, old.generation.next());
        let operator = Operator { standing, generation, cause: *cause, ..old.clone() };
        Some(Effect::Operator(Box::new(operator)))
    });
    let is_going = |operator: &OperatorId| going.iter().any(|(id, _)| id == operator);
    let open = others.filter(|other| other.standing == ProposalStanding::Open);
    let approved = open.filter(|other| other.approvals.iter().any(is_going));
    let recounted = approved.map(|other| {
        let mut other = Proposal { cause: *last, ..other.clone() };
        other.approvals.retain(|approving| !is_going(approving));
        effect(other)
    });
    left.chain(recounted).collect()
}

fn effect(proposal: Proposal) -> Effect {
    Effect::Proposal(Box::new(proposal))
}
