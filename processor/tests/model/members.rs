//! `operator.*` in the model, and what the order itself does to members.

use std::collections::BTreeMap;

use dagger_payload::committee::Committee;
use dagger_payload::id::{
    AccountId, AuthorIndex, CommitIndex, Epoch, Generation, HostId, OperatorId, PayloadDigest,
    ProtocolVersion,
};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Body, OperatorPropose, OperatorRotateKey, ProposalChange};
use dagger_payload::membership::{Change, Operator, OperatorStanding, Proposal, ProposalStanding};
use dagger_payload::name::Name;
use dagger_payload::object::{Cause, Effect, Host};
use dagger_payload::refusal::RefusalCode;
use dagger_payload::roster::{EpochMembers, Seat, SeatStanding};

use super::kinds::{Kind, of_kind};
use super::people::{Person, Scene};
use super::random::Random;
use super::state::{Asked, Model, Ruling};

pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "operator.propose", weight: 6, draw: draw_propose, judge: judge_propose },
    Kind { name: "operator.approve", weight: 20, draw: draw_approve, judge: judge_approve },
    Kind { name: "operator.withdraw", weight: 2, draw: draw_withdraw, judge: judge_withdraw },
    Kind { name: "operator.rotate_key", weight: 1, draw: draw_rotate, judge: judge_rotate },
];

const MONTH_MS: u64 = 30 * 24 * 60 * 60 * 1000;

fn draw_propose(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let model = &scene.model;
    let body = OperatorPropose {
        change: draw_change(scene, random),
        expected_epoch: random.of(&[None, None, Some(model.newest_epoch().epoch), Some(Epoch(1))]),
    };
    (scene.operator_mostly(random), Body::OperatorPropose(Box::new(body)))
}

fn draw_change(scene: &Scene, random: &mut Random) -> Change {
    let model = &scene.model;
    match random.below(10) {
        0..2 => {
            let key = match random.below(5) {
                0..3 => draw_newcomer(scene, random),
                3 => scene.fresh(random),
                _ => Person::any(random),
            };
            let key = scene.key(key);
            let known = model.operators.iter().find(|old| old.first_key == key);
            let known = known.filter(|_| random.happens(900)).map(|old| old.name.clone());
            let name =
                known.unwrap_or_else(|| format!("op{}", random.below(12)).parse().expect("a name"));
            Change::AddOperator { name, key }
        }
        2 => Change::RemoveOperator { operator: draw_removal(scene, random) },
        3 => {
            let newest = model.newest_epoch().protocol;
            let version = if random.happens(900) { newest.next() } else { newest };
            Change::Protocol { version }
        }
        _ => draw_voters(scene, random),
    }
}

/// Somebody, founders seldom: with them goes what the other draws need. Often one whose host
/// carries something.
fn draw_removal(scene: &Scene, random: &mut Random) -> OperatorId {
    let model = &scene.model;
    let on = model.vms.iter().filter_map(|vm| vm.placement.host());
    let on = on.chain(model.volumes.iter().map(|volume| volume.host));
    let carrying = on.filter_map(|host| model.host(host)).map(|host| host.operator);
    let carrying: Vec<_> = carrying.collect();
    if !carrying.is_empty() && random.happens(400) {
        return random.of(&carrying);
    }
    let operator = &model.operators[random.index(model.operators.len())];
    let mut founders = (0..3).map(|index| scene.key(Person::Operator(index)));
    let is_spared = founders.any(|key| key == operator.first_key) && random.happens(800);
    if is_spared { OperatorId([4; 16]) } else { operator.id }
}

/// One who is not there: he was removed, or never was.
fn draw_newcomer(scene: &Scene, random: &mut Random) -> Person {
    let present = |person: &Person| {
        let key = scene.key(*person);
        scene.model.operators.iter().any(|own| is_present(own) && own.first_key == key)
    };
    let absent: Vec<_> = (0..5).map(Person::Operator).filter(|one| !present(one)).collect();
    if absent.is_empty() { Person::Operator(4) } else { random.of(&absent) }
}

fn draw_voters(scene: &Scene, random: &mut Random) -> Change {
    let plan = Plan::planned(&scene.model);
    let present = |seat: &&Seat| seat.standing == SeatStanding::Present;
    let seats = plan.seats.iter().filter(present);
    let (voting, following): (Vec<&Seat>, Vec<&Seat>) =
        seats.partition(|seat| plan.voters.contains(&seat.index));
    let mut some = |seats: Vec<&Seat>, chance: u64| {
        let picked = seats.iter().filter(|_| random.happens(chance));
        let mut hosts: Vec<HostId> = picked.map(|seat| seat.host).collect();
        hosts.sort();
        hosts.dedup();
        hosts
    };
    let (mut add, mut remove) = (some(following, 400), some(voting, 150));
    if random.happens(30) {
        std::mem::swap(&mut add, &mut remove);
    }
    if add.is_empty() && remove.is_empty() {
        add.push(HostId([7; 16]));
    }
    remove.retain(|host| !add.contains(host));
    Change::Voters { add, remove }
}

fn draw_proposal(scene: &Scene, random: &mut Random) -> PayloadDigest {
    let pending = &scene.model.proposals;
    if pending.is_empty() || random.happens(20) {
        return PayloadDigest([3; 32]);
    }
    pending[random.index(pending.len())].id
}

fn draw_approve(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let proposal = draw_proposal(scene, random);
    (scene.operator_mostly(random), Body::OperatorApprove(ProposalChange { proposal }))
}

fn draw_withdraw(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let proposal = draw_proposal(scene, random);
    (scene.operator_mostly(random), Body::OperatorWithdraw(ProposalChange { proposal }))
}

fn draw_rotate(scene: &Scene, random: &mut Random) -> (Person, Body) {
    let new_key = match random.below(10) {
        0..7 => scene.fresh(random),
        7..9 => Person::Operator(random.index(5)),
        _ => Person::any(random),
    };
    let new_key = scene.key(new_key);
    (scene.operator_mostly(random), Body::OperatorRotateKey(OperatorRotateKey { new_key }))
}

fn judge_propose(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, OperatorPropose);
    let proposer = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    if body.expected_epoch.is_some_and(|epoch| epoch != model.newest_epoch().epoch) {
        return Err(RefusalCode::Conflict);
    }
    if model.proposals.iter().any(|other| other.change == body.change) {
        return Err(RefusalCode::AlreadyExists);
    }
    require_few(model, proposer)?;
    let proposal = Proposal {
        id: asked.cause.digest,
        proposer,
        change: body.change.clone(),
        approvals: vec![proposer],
        standing: ProposalStanding::Open,
        expires: model.now.plus_ms(MONTH_MS),
        cause: asked.cause,
    };
    let passed = executed(model, asked, &proposal)?;
    if has_passed(model, &proposal) { Ok(passed) } else { Ok(vec![as_effect(proposal)]) }
}

pub(crate) fn require_few(model: &Model, by: OperatorId) -> Result<(), RefusalCode> {
    let own = model.proposals.iter().filter(|other| other.proposer == by).count();
    if own < 8 { Ok(()) } else { Err(RefusalCode::LimitExceeded) }
}

fn judge_approve(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, OperatorApprove);
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let old = model.proposals.iter().find(|old| old.id == body.proposal);
    let old = old.ok_or(RefusalCode::NotFound)?;
    if old.standing == ProposalStanding::Passed {
        return Ok(Vec::new());
    }
    if old.expires < model.now {
        return Err(RefusalCode::StateWrong);
    }
    let mut new = old.clone();
    new.cause = asked.cause;
    if !new.approvals.contains(&operator) {
        new.approvals.push(operator);
        new.approvals.sort();
    }
    if has_passed(model, &new) {
        executed(model, asked, &new)
    } else if new.approvals == old.approvals {
        Ok(Vec::new())
    } else {
        Ok(vec![as_effect(new)])
    }
}

fn judge_withdraw(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, OperatorWithdraw);
    let operator = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let old = model.proposals.iter().find(|old| old.id == body.proposal);
    let mut proposal = old.ok_or(RefusalCode::NotFound)?.clone();
    if proposal.standing == ProposalStanding::Passed {
        return Err(RefusalCode::StateWrong);
    }
    proposal.cause = asked.cause;
    if proposal.proposer == operator {
        proposal.standing = ProposalStanding::Withdrawn;
    } else if proposal.approvals.contains(&operator) {
        proposal.approvals.retain(|other| *other != operator);
    } else {
        return Ok(Vec::new());
    }
    Ok(vec![as_effect(proposal)])
}

fn judge_rotate(model: &Model, asked: &Asked<'_>, body: &Body) -> Ruling {
    let body = of_kind!(body, OperatorRotateKey);
    let id = model.operator(asked.signer).ok_or(RefusalCode::NotAuthorized)?;
    let old = model.operators.iter().find(|old| old.id == id).expect("he signs");
    let comes_back = body.new_key == old.first_key && old.key != old.first_key;
    if !comes_back && (is_member_key(model, &body.new_key) || is_account_key(model, &body.new_key))
    {
        return Err(RefusalCode::Conflict);
    }
    let mut operator = old.clone();
    operator.key = body.new_key.clone();
    Ok(vec![renewed(operator, asked)])
}

fn renewed(mut operator: Operator, asked: &Asked<'_>) -> Effect {
    operator.generation = Generation(operator.generation.0 + 1);
    operator.cause = asked.cause;
    Effect::Operator(Box::new(operator))
}

pub(crate) fn as_effect(proposal: Proposal) -> Effect {
    Effect::Proposal(Box::new(proposal))
}

/// A key that somebody is to have as an operator.
pub(crate) fn is_proposed_key(model: &Model, key: &PublicKey) -> bool {
    model.proposals.iter().any(|proposal| match &proposal.change {
        Change::AddOperator { key: coming, .. } => coming == key,
        _ => false,
    })
}

/// A key of somebody who takes part or is to, or that nobody else may have.
pub(crate) fn is_member_key(model: &Model, key: &PublicKey) -> bool {
    is_proposed_key(model, key) || is_present_key(model, key)
}

fn is_present_key(model: &Model, key: &PublicKey) -> bool {
    let signs = |own: &Operator| is_present(own) && own.key == *key;
    let is_operators = model.operators.iter().any(|own| own.first_key == *key || signs(own));
    is_operators || is_host_key(model, key)
}

/// A key with which a host signs, or one that was or is to be a ledger's.
pub(crate) fn is_host_key(model: &Model, key: &PublicKey) -> bool {
    let coming = model.proposals.iter().any(|proposal| match &proposal.change {
        Change::LedgerKey { key: coming, .. } => coming == key,
        _ => false,
    });
    coming
        || model.seats.iter().any(|seat| seat.ledger_key == *key)
        || model.host_of_agent(key).is_some()
}

pub(crate) fn is_account_key(model: &Model, key: &PublicKey) -> bool {
    let founded = model.account(AccountId::of(key)).is_some();
    founded || model.accounts.iter().any(|account| account.role_of(key).is_some())
}

pub(crate) fn is_present(operator: &Operator) -> bool {
    operator.standing == OperatorStanding::Present
}

fn has_passed(model: &Model, proposal: &Proposal) -> bool {
    let all = model.operators.iter().filter(|one| is_present(one)).count();
    let ids = &proposal.approvals;
    let approving =
        model.operators.iter().filter(|one| is_present(one) && ids.contains(&one.id)).count();
    approving > all * 2 / 3
}

fn executed(model: &Model, asked: &Asked<'_>, proposal: &Proposal) -> Ruling {
    let with = |standing| as_effect(Proposal { standing, ..proposal.clone() });
    match &proposal.change {
        Change::AddOperator { name, key } => {
            let before = model.operators.iter().find(|old| old.first_key == *key);
            let is_used = is_present_key(model, key) || is_account_key(model, key);
            if before.is_some_and(is_present) || before.is_none() && is_used {
                return Err(RefusalCode::Conflict);
            }
            require_name(model, key, name)?;
            let operator = Operator {
                id: OperatorId::of(key),
                name: name.clone(),
                key: key.clone(),
                first_key: key.clone(),
                standing: OperatorStanding::Present,
                generation: Generation(before.map_or(0, |old| old.generation.0)),
                cause: asked.cause,
            };
            Ok(vec![renewed(operator, asked), with(ProposalStanding::Done)])
        }
        Change::RemoveOperator { operator } => {
            let mut seats = model.present_seats().filter(|seat| seat.operator == *operator);
            if seats.any(|seat| model.votes(seat.host)) {
                Plan::planned(model).with(model, &proposal.change)?;
                return Ok(vec![with(ProposalStanding::Passed)]);
            }
            require_removable(model, *operator, &[])?;
            let mut effects = gone(model, &[(*operator, asked.cause)], Some(proposal.id));
            effects.push(with(ProposalStanding::Done));
            Ok(effects)
        }
        change => {
            Plan::planned(model).with(model, change)?;
            Ok(vec![with(ProposalStanding::Passed)])
        }
    }
}

/// Whether the operator with this first key may be called so: as nobody else is or was, and as he
/// was himself.
fn require_name(model: &Model, first_key: &PublicKey, name: &Name) -> Result<(), RefusalCode> {
    for other in model.operators.iter().filter(|other| other.first_key != *first_key) {
        if other.name == *name {
            return Err(RefusalCode::NameTaken);
        }
    }
    let before = model.operators.iter().find(|own| own.first_key == *first_key);
    if before.is_some_and(|own| own.name != *name) { Err(RefusalCode::Conflict) } else { Ok(()) }
}

fn require_removable(
    model: &Model,
    operator: OperatorId,
    before: &[OperatorId],
) -> Result<(), RefusalCode> {
    let mut left: Vec<_> = model.operators.iter().filter(|one| is_present(one)).collect();
    left.retain(|one| !before.contains(&one.id));
    if !left.iter().any(|one| one.id == operator) {
        return Err(RefusalCode::NotFound);
    }
    if left.len() > 1 { Ok(()) } else { Err(RefusalCode::StateWrong) }
}

/// Operators who leave, then what is still open without their approvals.
fn gone(
    model: &Model,
    leaving: &[(OperatorId, Cause)],
    without: Option<PayloadDigest>,
) -> Vec<Effect> {
    let mut effects = Vec::new();
    for (id, cause) in leaving {
        let mut left = model.operators.iter().find(|one| one.id == *id).expect("known").clone();
        left.standing = OperatorStanding::Left;
        left.generation = Generation(left.generation.0 + 1);
        left.cause = *cause;
        effects.push(Effect::Operator(Box::new(left)));
    }
    let mut others: Vec<_> = model.proposals.iter().collect();
    others.sort_by_key(|other| other.id);
    for other in others {
        let mut new = other.clone();
        new.approvals.retain(|one| !leaving.iter().any(|(left, _)| left == one));
        let is_open = other.standing == ProposalStanding::Open && Some(other.id) != without;
        if is_open && new.approvals != other.approvals {
            new.cause = leaving.last().expect("somebody approved and left").1;
            effects.push(as_effect(new));
        }
    }
    effects
}

/// How many seats the hosts of an operator ever had.
pub(crate) fn count_seats(seats: &[Seat], operator: OperatorId) -> usize {
    seats.iter().filter(|seat| seat.operator == operator).count()
}

/// Members as they will be.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) seats: Vec<Seat>,
    pub(crate) voters: Vec<AuthorIndex>,
    protocol: ProtocolVersion,
    removed: Vec<OperatorId>,
}

impl Plan {
    pub(crate) fn decided(model: &Model) -> Self {
        let newest = model.newest_epoch();
        let mut seats = model.seats.clone();
        seats.sort_by_key(|seat| seat.index);
        let voters = newest.committee.authors().collect();
        Self { seats, voters, protocol: newest.protocol, removed: Vec::new() }
    }

    pub(crate) fn planned(model: &Model) -> Self {
        let start = Self::decided(model);
        waiting(model)
            .iter()
            .fold(start, |plan, proposal| plan.with(model, &proposal.change).unwrap_or(plan))
    }

    /// The newest seat on which a host sits that stays.
    fn seat(&self, model: &Model, host: HostId) -> Result<&Seat, RefusalCode> {
        let mut seats = self.seats.iter().rev();
        let found = seats.find(|seat| seat.host == host && seat.standing == SeatStanding::Present);
        let found = found.ok_or(RefusalCode::NotFound)?;
        let mut present = model.operators.iter().filter(|own| is_present(own));
        let stays = present.any(|own| own.id == found.operator);
        if stays && !self.removed.contains(&found.operator) {
            Ok(found)
        } else {
            Err(RefusalCode::NotFound)
        }
    }

    pub(crate) fn with(&self, model: &Model, change: &Change) -> Result<Self, RefusalCode> {
        let mut plan = self.clone();
        match change {
            Change::AddOperator { .. } => {}
            Change::RemoveOperator { operator } => {
                require_removable(model, *operator, &self.removed)?;
                plan.voters.retain(|seat| self.seats[usize::from(seat.0)].operator != *operator);
                plan.removed.push(*operator);
                plan.check(model)?;
            }
            Change::Protocol { version } if version.0 == self.protocol.0 + 1 => {
                plan.protocol = *version;
                plan.check(model)?;
            }
            Change::Protocol { .. } => return Err(RefusalCode::Conflict),
            Change::Voters { add, remove } => {
                for host in remove {
                    let seat = self.seat(model, *host)?.index;
                    if !plan.voters.contains(&seat) {
                        return Err(RefusalCode::StateWrong);
                    }
                    plan.voters.retain(|voter| *voter != seat);
                }
                for host in add {
                    let seat = self.seat(model, *host)?.index;
                    if plan.voters.contains(&seat) {
                        return Err(RefusalCode::StateWrong);
                    }
                    plan.voters.push(seat);
                }
                plan.check(model)?;
            }
            Change::LedgerKey { host, key } => {
                let mut seat = self.seat(model, *host)?.clone();
                let old = seat.index;
                let votes = self.voters.contains(&old);
                let (own, all) = if votes { (64, 1024) } else { (48, 1008) };
                if count_seats(&self.seats, seat.operator) >= own || self.seats.len() >= all {
                    return Err(RefusalCode::LimitExceeded);
                }
                seat.index = AuthorIndex(u16::try_from(self.seats.len()).expect("few"));
                seat.ledger_key = key.clone();
                match plan.voters.iter_mut().find(|voter| **voter == old) {
                    Some(voter) => *voter = seat.index,
                    None => plan.seats[usize::from(old.0)].standing = SeatStanding::Left,
                }
                plan.seats.push(seat);
            }
        }
        Ok(plan)
    }

    fn check(&self, model: &Model) -> Result<(), RefusalCode> {
        let mut votes = BTreeMap::<OperatorId, usize>::new();
        for voter in &self.voters {
            *votes.entry(self.seats[usize::from(voter.0)].operator).or_default() += 1;
        }
        let most = votes.values().max().ok_or(RefusalCode::StateWrong)?;
        if votes.len() >= 4 && 3 * most > self.voters.len() - 1 {
            return Err(RefusalCode::Unbalanced);
        }
        // More than two thirds know the rules.
        let mut knowing = 0;
        for voter in &self.voters {
            let host = model.host(self.seats[usize::from(voter.0)].host);
            let known = host.and_then(|host| host.protocol_max).map_or(1, |known| known.0);
            knowing += usize::from(known >= self.protocol.0);
        }
        if 3 * knowing > 2 * self.voters.len() { Ok(()) } else { Err(RefusalCode::StateWrong) }
    }
}

fn waiting(model: &Model) -> Vec<&Proposal> {
    let passed = |one: &&Proposal| one.standing == ProposalStanding::Passed;
    let mut waiting: Vec<_> = model.proposals.iter().filter(passed).collect();
    waiting.sort_by_key(|proposal| proposal.cause.position);
    waiting
}

/// Who moved to another seat when this epoch began has left the old one.
pub(crate) fn vacated(model: &Model, commit: CommitIndex) -> Vec<Effect> {
    if commit.0 != model.newest_epoch().begins_after.0 + 1 {
        return Vec::new();
    }
    let mut left: Vec<Seat> = Vec::new();
    for seat in model.present_seats() {
        if model.present_seats().any(|newer| newer.host == seat.host && newer.index > seat.index) {
            left.push(Seat { standing: SeatStanding::Left, ..seat.clone() });
        }
    }
    left.sort_by_key(|seat| seat.index);
    left.into_iter().map(|seat| Effect::Seat(Box::new(seat))).collect()
}

/// Proposals that are too old.
pub(crate) fn lapsed(model: &Model) -> Vec<Effect> {
    let old = model.proposals.iter().filter(|one| one.expires < model.now);
    let mut old: Vec<_> = old.filter(|one| one.standing == ProposalStanding::Open).collect();
    old.sort_by_key(|proposal| proposal.id);
    let standing = ProposalStanding::Lapsed;
    old.into_iter().map(|one| as_effect(Proposal { standing, ..one.clone() })).collect()
}

/// The next epoch, if anything waits for it and no end is open.
pub(crate) fn decided(model: &Model, commit: CommitIndex) -> Vec<Effect> {
    let newest = *model.newest_epoch();
    if commit <= newest.begins_after {
        return Vec::new();
    }
    let mut plan = Plan::decided(model);
    let (mut effects, mut leaving) = (Vec::new(), Vec::new());
    for proposal in waiting(model) {
        let next = plan.with(model, &proposal.change);
        let standing = match next {
            Ok(_) => ProposalStanding::Done,
            Err(_) => ProposalStanding::Failed,
        };
        effects.push(as_effect(Proposal { standing, ..proposal.clone() }));
        let Ok(next) = next else { continue };
        plan = next;
        if let Change::LedgerKey { host, key } = &proposal.change
            && let Some(host) = model.host(*host)
        {
            effects.push(with_key(host, key, proposal.cause));
        }
        if let Change::RemoveOperator { operator } = &proposal.change {
            leaving.push((*operator, proposal.cause));
        }
    }
    effects.extend(gone(model, &leaving, None));
    for seat in &plan.seats {
        if !model.seats.contains(seat) {
            effects.push(Effect::Seat(Box::new(seat.clone())));
        }
    }
    let committee = Committee::of(plan.voters).expect("in range");
    if (committee, plan.protocol) != (newest.committee, newest.protocol) {
        effects.push(Effect::Epoch(Box::new(EpochMembers {
            epoch: Epoch(newest.epoch.0 + 1),
            committee,
            begins_after: CommitIndex(commit.0 + 10),
            protocol: plan.protocol,
        })));
    }
    effects
}

/// A host with another ledger key.
pub(crate) fn with_key(host: &Host, key: &PublicKey, cause: Cause) -> Effect {
    let generation = Generation(host.generation.0 + 1);
    let ledger_key = key.clone();
    Effect::Host(Box::new(Host { ledger_key, generation, cause, ..host.clone() }))
}
