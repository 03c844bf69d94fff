//! Who votes from the next epoch on, and by which rules.
//!
//! Owns how changes that have passed are put together, in the order in which they passed, and that
//! no operator gets more votes than may be false. Never counts approvals: `members` does. Called
//! by the rules, to see whether a change is possible, and by the judge at the end of each commit,
//! to decide.

use dagger_payload::committee::Committee;
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, HostId, ProtocolVersion};
use dagger_payload::key::PublicKey;
use dagger_payload::limits::{MEMBERS_MAX, SEATS_MAX};
use dagger_payload::membership::{Change, Proposal, ProposalStanding};
use dagger_payload::object::{Cause, Effect, Host};
use dagger_payload::refusal::{Refusal, RefusalCode};
use dagger_payload::roster::{EpochMembers, Roster, Seat, SeatStanding};
use dagger_payload::votes::Votes;

use super::refuse;
use super::state::State;

/// Members as they will be.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    roster: Roster,
    committee: Committee,
    protocol: ProtocolVersion,
}

impl Draft {
    /// As the newest decided epoch has them.
    pub(crate) fn decided(state: &State) -> Self {
        let EpochMembers { committee, protocol, .. } = *state.newest_epoch();
        Self { roster: state.roster.clone(), committee, protocol }
    }

    /// With everything that has passed and waits for the next epoch.
    pub(crate) fn planned(state: &State) -> Self {
        let mut draft = Self::decided(state);
        for proposal in queue(state) {
            if let Ok(next) = draft.with(state, &proposal.change) {
                draft = next;
            }
        }
        draft
    }

    /// With one change more.
    ///
    /// # Errors
    /// It does not fit what the members will be.
    pub(crate) fn with(&self, state: &State, change: &Change) -> Result<Self, Refusal> {
        match change {
            // What is about operators waits for no epoch.
            Change::AddOperator { .. } | Change::RemoveOperator { .. } => Ok(self.clone()),
            Change::Voters { add, remove } => self.with_voters(state, add, remove),
            Change::Protocol { version } => {
                if *version != self.protocol.next() {
                    let next = self.protocol.next();
                    let detail = format!("version: {next} is the one after the present rules");
                    return refuse(RefusalCode::Conflict, detail);
                }
                Ok(Self { protocol: *version, ..self.clone() })
            }
            Change::LedgerKey { host, key } => self.with_ledger_key(host, key),
        }
    }

    fn with_voters(
        &self,
        state: &State,
        add: &[HostId],
        remove: &[HostId],
    ) -> Result<Self, Refusal> {
        let mut voters: Vec<AuthorIndex> = self.committee.authors().collect();
        for host in remove {
            let seat = newest_seat(&self.roster, host)?;
            let Some(at) = voters.iter().position(|voter| *voter == seat.index) else {
                let detail = format!("remove: host {} does not vote", seat.name);
                return refuse(RefusalCode::StateWrong, detail);
            };
            voters.remove(at);
        }
        for host in add {
            let seat = newest_seat(&self.roster, host)?;
            if voters.contains(&seat.index) {
                let detail = format!("add: host {} votes already", seat.name);
                return refuse(RefusalCode::StateWrong, detail);
            }
            voters.push(seat.index);
        }
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
        Ok(Self { committee, ..self.clone() })
    }

    /// A host that votes sits on both seats until the epoch ends; any other one moves.
    fn with_ledger_key(&self, host: &HostId, key: &PublicKey) -> Result<Self, Refusal> {
        let old = newest_seat(&self.roster, host)?;
        let Some(index) = self.roster.next_index() else {
            let detail = format!("a cluster gives at most {SEATS_MAX} seats in all its life");
            return refuse(RefusalCode::LimitExceeded, detail);
        };
        let mut draft = self.clone();
        let new = Seat { index, ledger_key: key.clone(), ..old.clone() };
        let placed = draft.roster.put(&new);
        placed.map_err(|_| Refusal::new(RefusalCode::Conflict, "this key has a seat already"))?;
        if self.committee.contains(old.index) {
            let others = self.committee.authors().filter(|voter| *voter != old.index);
            draft.committee = Committee::of(others.chain([index])).expect("as many as before");
        } else {
            let left = Seat { standing: SeatStanding::Left, ..old.clone() };
            draft.roster.put(&left).expect("the same key");
        }
        Ok(draft)
    }

    /// Seats that are new, or other than they were.
    pub(crate) fn seats_since(&self, before: &Roster) -> Vec<Effect> {
        let changed = |seat: &&Seat| before.seat(seat.index) != Some(*seat);
        let seats = self.roster.seats().iter().filter(changed);
        seats.map(|seat| Effect::Seat(Box::new(seat.clone()))).collect()
    }
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
    let mut effects = Vec::new();
    for proposal in queue {
        let next = draft.with(state, &proposal.change);
        let standing = if next.is_ok() { ProposalStanding::Done } else { ProposalStanding::Failed };
        effects.push(Effect::Proposal(Box::new(Proposal { standing, ..proposal.clone() })));
        let Ok(next) = next else { continue };
        draft = next;
        if let Change::LedgerKey { host, key } = &proposal.change {
            let host = state.hosts.get(host);
            effects.extend(host.map(|host| with_key(host, key, proposal.cause)));
        }
    }
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
