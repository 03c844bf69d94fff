//! Who takes part: operators, what they propose, seats and epochs, as the API shows them.
//!
//! Owns these objects' newest versions and the sentences about proposals. Repeats no rule: how a
//! proposal stands, and who votes, the judge has said. Called by fold, views and the API.

use std::collections::BTreeMap;

use dagger_api::{EpochView, OperatorView, ProposalView, Vote};
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, HostId, OperatorId, PayloadDigest};
use dagger_payload::key::PublicKey;
use dagger_payload::membership::{self, Change, Operator, OperatorStanding, Proposal};
use dagger_payload::name::Name;
use dagger_payload::object::Effect;
use dagger_payload::roster::{EpochMembers, Roster, Seat, SeatStanding};
use dagger_payload::votes::Votes;

use super::Model;
use crate::limits::PAST_PROPOSALS_SHOWN_MAX;

/// Everything about who takes part.
#[derive(Debug, Clone)]
pub struct Members {
    operators: BTreeMap<OperatorId, Operator>,
    /// Keys that sign for an operator, or once did.
    operator_keys: BTreeMap<PublicKey, OperatorId>,
    proposals: BTreeMap<PayloadDigest, Proposal>,
    roster: Roster,
    /// Every epoch that has begun, and the next one once it is decided; never empty.
    epochs: BTreeMap<Epoch, EpochMembers>,
    host_names: BTreeMap<HostId, Name>,
}

impl Members {
    /// The founders.
    pub(super) fn founding(genesis: &Genesis) -> Self {
        let mut members = Self {
            operators: BTreeMap::new(),
            operator_keys: BTreeMap::new(),
            proposals: BTreeMap::new(),
            roster: Roster::default(),
            epochs: BTreeMap::new(),
            host_names: BTreeMap::new(),
        };
        membership::founding(genesis).iter().for_each(|effect| members.fold(effect));
        members
    }

    /// Takes in what concerns members.
    pub(super) fn fold(&mut self, effect: &Effect) {
        match effect {
            Effect::Operator(operator) => {
                self.operator_keys.insert(operator.key.clone(), operator.id);
                self.operators.insert(operator.id, (**operator).clone());
            }
            Effect::Proposal(proposal) => {
                self.proposals.insert(proposal.id, (**proposal).clone());
                self.drop_past_proposals();
            }
            Effect::Seat(seat) => {
                self.host_names.insert(seat.host, seat.name.clone());
                // The rules place seats in their order.
                let _ = self.roster.put(seat);
            }
            Effect::Epoch(members) => {
                self.epochs.insert(members.epoch, **members);
            }
            Effect::Host(_)
            | Effect::Account(_)
            | Effect::Image(_)
            | Effect::Vm(_)
            | Effect::VmChanged(_)
            | Effect::Volume(_)
            | Effect::Usage(_) => {}
        }
    }

    /// Nobody sees more of them.
    fn drop_past_proposals(&mut self) {
        let past = self.proposals.values().filter(|proposal| !proposal.standing.is_pending());
        let mut past: Vec<_> = past.map(|one| (one.cause.position, one.id)).collect();
        past.sort_unstable_by(|one, other| other.cmp(one));
        for (_, id) in past.split_off(past.len().min(PAST_PROPOSALS_SHOWN_MAX)) {
            self.proposals.remove(&id);
        }
    }

    /// All seats.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// What the host of a seat is called.
    pub fn seat_name(&self, author: AuthorIndex) -> Option<&Name> {
        self.roster.seat(author).map(|seat| &seat.name)
    }

    /// What a host is or was called.
    pub fn host_name(&self, id: &HostId) -> Option<&Name> {
        self.host_names.get(id)
    }

    /// The host that is called so.
    pub fn host_named(&self, name: &Name) -> Option<HostId> {
        self.host_names.iter().find(|(_, own)| *own == name).map(|(id, _)| *id)
    }

    /// The seat of the host that is called so; of several the one where it sits, or sat last.
    pub fn seat_named(&self, name: &Name) -> Option<AuthorIndex> {
        let seats = self.roster.seats().iter().filter(|seat| seat.name == *name);
        let newest = seats.max_by_key(|seat| (seat.standing == SeatStanding::Present, seat.index));
        newest.map(|seat| seat.index)
    }

    /// The operator who is called so; of several the present one, if any.
    pub fn operator_named(&self, name: &Name) -> Option<OperatorId> {
        let operators = self.operators.values().filter(|operator| operator.name == *name);
        let is_present = |operator: &&Operator| operator.standing == OperatorStanding::Present;
        operators.max_by_key(is_present).map(|operator| operator.id)
    }

    /// The present operator for whom `key` signs now.
    pub fn operator_signed_by(&self, key: &PublicKey) -> Option<&Operator> {
        let operator = self.operators.get(self.operator_keys.get(key)?)?;
        let signs = operator.key == *key && operator.standing == OperatorStanding::Present;
        signs.then_some(operator)
    }

    /// What the operator is called for whom `key` signs or once signed.
    pub fn operator_of_key(&self, key: &PublicKey) -> Option<&Name> {
        Some(&self.operators.get(self.operator_keys.get(key)?)?.name)
    }

    /// What an operator is or was called.
    pub(super) fn operator_name(&self, id: &OperatorId) -> Option<&Name> {
        self.operators.get(id).map(|operator| &operator.name)
    }

    /// The epoch of the commit after `judged`.
    pub fn epoch_after(&self, judged: CommitIndex) -> &EpochMembers {
        let begun = self.epochs.values().rev().find(|members| members.begins_after <= judged);
        begun.or(self.epochs.values().next()).expect("founded with one")
    }

    /// The epoch that is decided and has not begun with the commit after `judged`.
    pub fn epoch_to_come(&self, judged: CommitIndex) -> Option<&EpochMembers> {
        self.epochs.values().next_back().filter(|members| members.begins_after > judged)
    }

    /// The seats of present hosts, and of those that vote after `judged`, by number.
    pub fn seats_shown(&self, judged: CommitIndex) -> impl Iterator<Item = &Seat> {
        let voters = self.epoch_after(judged).committee;
        self.roster.seats().iter().filter(move |seat| {
            seat.standing == SeatStanding::Present || voters.contains(seat.index)
        })
    }

    /// Whether a seat votes after `judged`.
    pub fn vote(&self, author: AuthorIndex, judged: CommitIndex) -> Vote {
        let now = self.epoch_after(judged).committee.contains(author);
        let next = self.epoch_to_come(judged).map(|next| next.committee.contains(author));
        match (now, next) {
            (true, Some(false)) => Vote::Ending,
            (true, _) => Vote::Votes,
            (false, Some(true)) => Vote::Coming,
            (false, _) => Vote::Follows,
        }
    }

    /// How the votes after `judged` are spread.
    pub fn votes(&self, judged: CommitIndex) -> Votes {
        Votes::of(&self.roster, self.epoch_after(judged).committee)
    }

    /// An epoch with names.
    pub fn epoch_view(&self, members: &EpochMembers) -> EpochView {
        let names = members.committee.authors().filter_map(|author| self.seat_name(author));
        EpochView {
            epoch: members.epoch,
            begins_after: members.begins_after,
            protocol: members.protocol,
            voters: names.cloned().collect(),
        }
    }

    /// All operators, with their hosts as they are after `judged`.
    pub fn operator_views(&self, judged: CommitIndex) -> Vec<OperatorView> {
        let view = |operator: &Operator| {
            let (mut hosts, mut followers) = (Vec::new(), Vec::new());
            for seat in self.seats_shown(judged).filter(|seat| seat.operator == operator.id) {
                match self.vote(seat.index, judged) {
                    Vote::Votes | Vote::Ending => hosts.push(seat.name.clone()),
                    Vote::Coming | Vote::Follows => followers.push(seat.name.clone()),
                }
            }
            // A host that changes its key sits twice until the epoch ends.
            followers.retain(|name| !hosts.contains(name));
            OperatorView {
                id: operator.id,
                name: operator.name.clone(),
                key: operator.key.clone(),
                standing: operator.standing,
                hosts,
                followers,
            }
        };
        let mut views: Vec<_> = self.operators.values().map(view).collect();
        views.sort_by(|one, other| {
            (one.standing as u8, &one.name).cmp(&(other.standing as u8, &other.name))
        });
        views
    }

    /// What is proposed: first what is pending, oldest first, then the newest of what is past.
    pub fn proposal_views(&self) -> Vec<ProposalView> {
        let (mut pending, mut past): (Vec<_>, Vec<_>) =
            self.proposals.values().partition(|proposal| proposal.standing.is_pending());
        pending.sort_by_key(|proposal| proposal.cause.position);
        past.sort_by_key(|proposal| std::cmp::Reverse(proposal.cause.position));
        let shown = pending.into_iter().chain(past.into_iter().take(PAST_PROPOSALS_SHOWN_MAX));
        shown.map(|proposal| self.proposal_view(proposal)).collect()
    }

    fn proposal_view(&self, proposal: &Proposal) -> ProposalView {
        let present = |operator: &&Operator| operator.standing == OperatorStanding::Present;
        let names = |ids: &[OperatorId]| {
            ids.iter().filter_map(|id| self.operator_name(id)).cloned().collect::<Vec<_>>()
        };
        let all = self.operators.values().filter(present).count();
        let waiting_for = self.operators.values().filter(present);
        let waiting_for = waiting_for.filter(|operator| !proposal.approvals.contains(&operator.id));
        ProposalView {
            summary: self.in_words(&proposal.change),
            proposer_name: self.operator_name(&proposal.proposer).cloned(),
            approved_by: names(&proposal.approvals),
            not_approved_by: waiting_for.map(|operator| operator.name.clone()).collect(),
            approvals_needed: u16::try_from(2 * all / 3 + 1).unwrap_or(u16::MAX),
            proposal: proposal.clone(),
        }
    }

    fn in_words(&self, change: &Change) -> String {
        let host = |id: &HostId| match self.host_name(id) {
            Some(name) => name.to_string(),
            None => format!("host {id}"),
        };
        let hosts = |ids: &[HostId]| ids.iter().map(host).collect::<Vec<_>>().join(", ");
        match change {
            Change::AddOperator { name, key } => {
                format!("{name} ({}) becomes an operator", key.fingerprint())
            }
            Change::RemoveOperator { operator } => match self.operator_name(operator) {
                Some(name) => format!("{name} is an operator no more, and his hosts leave"),
                None => format!("operator {operator} is one no more, and his hosts leave"),
            },
            Change::Voters { add, remove } if remove.is_empty() => {
                format!("{} to vote", hosts(add))
            }
            Change::Voters { add, remove } if add.is_empty() => {
                format!("{} to vote no more", hosts(remove))
            }
            Change::Voters { add, remove } => {
                format!("{} to vote, {} no more", hosts(add), hosts(remove))
            }
            Change::Protocol { version } => format!("version {version} of the rules counts"),
            Change::LedgerKey { host: id, key } => {
                format!("the ledger of {} signs with {}", host(id), key.fingerprint())
            }
        }
    }
}

impl Model {
    /// Who takes part.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// What a host is or was called.
    pub fn host_name(&self, id: &HostId) -> Option<&Name> {
        self.members.host_name(id)
    }
}
