//! Who votes from the next epoch on, and by which rules.
//!
//! Owns how changes that have passed are put together, in the order in which they passed, and that
//! no operator gets more votes than may be false. Never counts approvals: `members` does. Called
//! by the rules, to see whether a change is possible, and by the judge at the end of each commit,
//! to decide.

use std::borrow::Cow;

use dagger_payload::committee::Committee;
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, HostId, OperatorId, ProtocolVersion};
use dagger_payload::key::PublicKey;
use dagger_payload::limits::{
    MEMBERS_MAX, SEATS_KEPT_FOR_VOTERS, SEATS_MAX, SEATS_PER_OPERATOR_KEPT_FOR_VOTERS,
    SEATS_PER_OPERATOR_MAX,
};
use dagger_payload::membership::{Change, OperatorStanding, Proposal, ProposalStanding};
use dagger_payload::object::{Cause, Effect, Host};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::roster::{EpochMembers, Roster, Seat, SeatStanding};
use dagger_payload::votes::Votes;

use super::members::{removed, require_removable};
use super::refuse;
use super::state::State;
use crate::limits::LACKING_HOSTS_TOLD_MAX;

/// Members as they will be.
#[derive(Debug)]
pub(crate) struct Draft<'s> {
    /// The present one until a change gives a seat: most changes only look at it.
    roster: Cow<'s, Roster>,
    committee: Committee,
    protocol: ProtocolVersion,
    /// Operators who go.
    removed: Vec<OperatorId>,
}

/// What a host is that gets another seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seated {
    Voter,
    Follower,
}

impl<'s> Draft<'s> {
    /// As the newest decided epoch has them.
    pub(crate) fn decided(state: &'s State) -> Self {
        let EpochMembers { committee, protocol, .. } = *state.newest_epoch();
        let roster = Cow::Borrowed(&state.roster);
        Self { roster, committee, protocol, removed: Vec::new() }
    }

    /// With everything that has passed and waits for the next epoch.
    pub(crate) fn planned(state: &'s State) -> Self {
        let mut draft = Self::decided(state);
        for proposal in queue(state) {
            // One that does not fit any more changes nothing.
            let _ = draft.take(state, &proposal.change);
        }
        draft
    }

    /// Takes one change more.
    ///
    /// # Errors
    /// It does not fit what the members will be; nothing has changed then.
    pub(crate) fn take(&mut self, state: &State, change: &Change) -> Result<(), Refusal> {
        match change {
            // What is about operators waits for no epoch.
            Change::AddOperator { .. } => Ok(()),
            Change::RemoveOperator { operator } => self.take_out(state, operator),
            Change::Voters { add, remove } => self.take_voters(state, add, remove),
            Change::Protocol { version } => {
                if *version != self.protocol.next() {
                    let next = self.protocol.next();
                    let detail = format!("version: {next} is the one after the present rules");
                    return refuse(RefusalCode::Conflict, detail);
                }
                self.require_known(state, &self.committee, *version)?;
                self.protocol = *version;
                Ok(())
            }
            Change::LedgerKey { host, key } => self.take_ledger_key(state, host, key),
        }
    }

    /// His hosts keep their seats until the epoch ends, and vote no more afterwards.
    fn take_out(&mut self, state: &State, operator: &OperatorId) -> Result<(), Refusal> {
        require_removable(state, operator, &self.removed)?;
        let is_his = |author: &AuthorIndex| {
            self.roster.seat(*author).is_some_and(|seat| seat.operator == *operator)
        };
        let voters = self.committee.authors().filter(|author| !is_his(author)).collect();
        self.take_committee(state, voters)?;
        self.removed.push(*operator);
        Ok(())
    }

    /// The newest seat of a host that stays.
    fn seat(&self, state: &State, host: &HostId) -> Result<&Seat, Refusal> {
        let seat = newest_seat(&self.roster, host)?;
        let operator = state.operators.get(&seat.operator);
        let is_left = operator.is_none_or(|own| own.standing == OperatorStanding::Left);
        if is_left || self.removed.contains(&seat.operator) {
            let detail = format!("host {} leaves with its operator", seat.name);
            return refuse(RefusalCode::NotFound, detail);
        }
        Ok(seat)
    }

    fn take_voters(
        &mut self,
        state: &State,
        add: &[HostId],
        remove: &[HostId],
    ) -> Result<(), Refusal> {
        let mut voters: Vec<AuthorIndex> = self.committee.authors().collect();
        for host in remove {
            let seat = self.seat(state, host)?;
            let Some(at) = voters.iter().position(|voter| *voter == seat.index) else {
                let detail = format!("remove: host {} does not vote", seat.name);
                return refuse(RefusalCode::StateWrong, detail);
            };
            voters.remove(at);
        }
        for host in add {
            let seat = self.seat(state, host)?;
            if voters.contains(&seat.index) {
                let detail = format!("add: host {} votes already", seat.name);
                return refuse(RefusalCode::StateWrong, detail);
            }
            voters.push(seat.index);
        }
        self.take_committee(state, voters)
    }

    fn take_committee(&mut self, state: &State, voters: Vec<AuthorIndex>) -> Result<(), Refusal> {
        if voters.is_empty() {
            return refuse(RefusalCode::StateWrong, "remove: at least one host must vote");
        }
        let Some(committee) = Committee::of(voters) else {
            return refuse(RefusalCode::LimitExceeded, format!("add: at most {MEMBERS_MAX} vote"));
        };
        Votes::of(&self.roster, committee).check_balance().map_err(|unbalanced| {
            let operator = state.operators.get(&unbalanced.operator);
            let words = operator.map(|operator| unbalanced.naming(&operator.name));
            let detail = words.unwrap_or_else(|| unbalanced.to_string());
            Refusal::new(RefusalCode::Unbalanced, detail)
        })?;
        self.require_known(state, &committee, self.protocol)?;
        self.committee = committee;
        Ok(())
    }

    /// Whether a quorum of those who will vote has declared that it knows the rules that will
    /// count: fewer would judge nothing, and no build could say so from what it knows itself.
    fn require_known(
        &self,
        state: &State,
        committee: &Committee,
        protocol: ProtocolVersion,
    ) -> Result<(), Refusal> {
        let seats = committee.authors().filter_map(|author| self.roster.seat(author));
        let knows = |seat: &&Seat| {
            let declared = state.hosts.get(&seat.host).and_then(|host| host.protocol_max);
            declared.unwrap_or(ProtocolVersion::FIRST) >= protocol
        };
        let (knowing, others): (Vec<&Seat>, Vec<&Seat>) = seats.partition(knows);
        let (knowing, quorum) = (knowing.len(), committee.quorum());
        if knowing >= quorum {
            return Ok(());
        }
        let others: Vec<&str> =
            others.iter().take(LACKING_HOSTS_TOLD_MAX).map(|seat| seat.name.as_str()).collect();
        let detail = format!(
            "{knowing} of {} hosts that will vote declare that they know version {protocol} of the \
             rules, and it takes {quorum}; not: {}",
            committee.members(),
            others.join(", ")
        );
        refuse(RefusalCode::StateWrong, detail)
    }

    /// A host that votes sits on both seats until the epoch ends; any other one moves.
    fn take_ledger_key(
        &mut self,
        state: &State,
        host: &HostId,
        key: &PublicKey,
    ) -> Result<(), Refusal> {
        let old = self.seat(state, host)?.clone();
        let seated = match self.committee.contains(old.index) {
            true => Seated::Voter,
            false => Seated::Follower,
        };
        let index = next_seat(&self.roster, &old.operator, seated)?;
        let new = Seat { index, ledger_key: key.clone(), ..old.clone() };
        let placed = self.roster.to_mut().put(&new);
        placed.map_err(|_| Refusal::new(RefusalCode::Conflict, "this key has a seat already"))?;
        if self.committee.contains(old.index) {
            let others = self.committee.authors().filter(|voter| *voter != old.index);
            self.committee = Committee::of(others.chain([index])).expect("as many as before");
        } else {
            let left = Seat { standing: SeatStanding::Left, ..old };
            self.roster.to_mut().put(&left).expect("the same key");
        }
        Ok(())
    }

    /// Seats that are new, or other than they were.
    pub(crate) fn seats_since(&self, before: &Roster) -> Vec<Effect> {
        let changed = |seat: &&Seat| before.seat(seat.index) != Some(*seat);
        let seats = self.roster.seats().iter().filter(changed);
        seats.map(|seat| Effect::Seat(Box::new(seat.clone()))).collect()
    }
}

/// The number of the next seat for a host of `operator`. The last ones are for hosts that vote, so
/// that nobody who brings and takes away followers keeps a voter from changing a key that was lost.
///
/// # Errors
/// `limit_exceeded`.
pub(crate) fn next_seat(
    roster: &Roster,
    operator: &OperatorId,
    seated: Seated,
) -> Result<AuthorIndex, Refusal> {
    let (kept, own_kept) = match seated {
        Seated::Voter => (0, 0),
        Seated::Follower => (SEATS_KEPT_FOR_VOTERS, SEATS_PER_OPERATOR_KEPT_FOR_VOTERS),
    };
    let own = roster.seats().iter().filter(|seat| seat.operator == *operator).count();
    if own >= SEATS_PER_OPERATOR_MAX - own_kept {
        let detail = format!(
            "an operator's hosts get at most {SEATS_PER_OPERATOR_MAX} seats in all his life, the \
             last {SEATS_PER_OPERATOR_KEPT_FOR_VOTERS} for new keys of hosts that vote"
        );
        return refuse(RefusalCode::LimitExceeded, detail);
    }
    let next = roster.next_index().filter(|_| roster.seats().len() < SEATS_MAX - kept);
    next.ok_or_else(|| {
        let detail = format!(
            "a cluster gives at most {SEATS_MAX} seats in all its life, the last \
             {SEATS_KEPT_FOR_VOTERS} for new keys of hosts that vote"
        );
        Refusal::new(RefusalCode::LimitExceeded, detail)
    })
}

/// The seat that a present host got last.
///
/// # Errors
/// `not_found`.
pub(crate) fn newest_seat<'r>(roster: &'r Roster, host: &HostId) -> Result<&'r Seat, Refusal> {
    let seat = roster.present().filter(|seat| seat.host == *host).last();
    let unknown = || Refusal::new(RefusalCode::NotFound, format!("host {host} is no member"));
    seat.ok_or_else(unknown)
}

/// Whether a host votes in the epoch of the commit after `judged`, or in the one that is decided to
/// follow.
pub(crate) fn votes(state: &State, host: &HostId, judged: CommitIndex) -> bool {
    let (present, newest) = (state.epoch_at(judged.next()), state.newest_epoch());
    state
        .roster
        .present()
        .filter(|seat| seat.host == *host)
        .any(|seat| present.committee.contains(seat.index) || newest.committee.contains(seat.index))
}

/// What has passed and waits, in the order in which it passed.
fn queue(state: &State) -> Vec<&Proposal> {
    let passed = |proposal: &&Proposal| proposal.standing == ProposalStanding::Passed;
    let mut queue: Vec<_> = state.proposals.values().filter(passed).collect();
    queue.sort_by_key(|proposal| proposal.cause.position);
    queue
}

/// Whether the next commit decides something.
pub(crate) fn is_deciding_due(state: &State, judged: CommitIndex) -> bool {
    !queue(state).is_empty() && state.newest_epoch().begins_after <= judged
}

/// Where the epoch ends, from the commit that decides it to the epoch's last one.
pub(crate) fn end(state: &State, judged: CommitIndex) -> Option<EpochEnd> {
    let newest = state.newest_epoch();
    let is_open = newest.epoch > Epoch(0) && newest.begins_after >= judged;
    is_open.then_some(EpochEnd { last: newest.begins_after, committee: newest.committee })
}

/// Seats of hosts that vote with another key since `commit`: nobody sits there any more.
pub(crate) fn vacated(state: &State, commit: CommitIndex) -> Vec<Effect> {
    if state.newest_epoch().begins_after.next() != commit {
        return Vec::new();
    }
    let is_left = |seat: &&Seat| {
        state.roster.present().any(|other| other.host == seat.host && other.index > seat.index)
    };
    let left = |seat: &Seat| Seat { standing: SeatStanding::Left, ..seat.clone() };
    let seats = state.roster.present().filter(is_left).map(left);
    seats.map(|seat| Effect::Seat(Box::new(seat))).collect()
}

/// Decides about everything that has passed, unless an end is open: who votes and by which rules
/// from the epoch on that begins `handover_distance_commits` after `commit`.
pub(crate) fn decide(state: &State, commit: CommitIndex) -> Vec<Effect> {
    let (newest, queue) = (*state.newest_epoch(), queue(state));
    if queue.is_empty() || newest.begins_after >= commit {
        return Vec::new();
    }
    let mut draft = Draft::decided(state);
    let (mut effects, mut going) = (Vec::new(), Vec::new());
    for proposal in queue {
        let is_done = draft.take(state, &proposal.change).is_ok();
        let standing = if is_done { ProposalStanding::Done } else { ProposalStanding::Failed };
        effects.push(Effect::Proposal(Box::new(Proposal { standing, ..proposal.clone() })));
        if !is_done {
            continue;
        }
        match &proposal.change {
            Change::LedgerKey { host, key } => {
                let host = state.hosts.get(host);
                effects.extend(host.map(|host| with_key(host, key, proposal.cause)));
            }
            Change::RemoveOperator { operator } => going.push((*operator, proposal.cause)),
            Change::AddOperator { .. } | Change::Voters { .. } | Change::Protocol { .. } => {}
        }
    }
    effects.extend(removed(state, &going, state.proposals.values()));
    effects.extend(draft.seats_since(&state.roster));
    if (draft.committee, draft.protocol) != (newest.committee, newest.protocol) {
        effects.push(Effect::Epoch(Box::new(EpochMembers {
            epoch: newest.epoch.next(),
            committee: draft.committee,
            begins_after: CommitIndex(commit.0.saturating_add(state.handover_distance_commits)),
            protocol: draft.protocol,
        })));
    }
    effects
}

/// A host whose newest seat has this key.
pub(crate) fn with_key(host: &Host, key: &PublicKey, cause: Cause) -> Effect {
    let (ledger_key, generation) = (key.clone(), host.generation.next());
    Effect::Host(Box::new(Host { ledger_key, generation, cause, ..host.clone() }))
}

#[cfg(test)]
mod tests;
