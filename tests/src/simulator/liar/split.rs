//! A liar that tries to split the cluster on one leader: all others commit him, one host skips him.
//!
//! Owns the attack. It behaves well, but shows its events to one host, the victim, a round late.
//! Once the victim's event names no event of a leader for whom everybody else votes, the liar votes
//! for him too, and shows the victim two twins of that vote that name no such event either. Three
//! events against the leader are then there, of two authors: who counts events instead of authors
//! skips him, if he also takes in a twin that only its own author names. Works in clusters of four,
//! where two twins are enough. Called by the liar.

use std::sync::Arc;

use dagger_payload::event::{Event, Parent};
use dagger_payload::id::{AuthorIndex, LedgerTime, Round};
use dagger_payload::peer::PeerMessage;

use super::{Liar, Lie, LieKind};

/// Size of a cluster in which the attack can be carried out.
pub(super) const MEMBERS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Split {
    victim: AuthorIndex,
    /// Up to where the victim was shown the own chain.
    shown: Round,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The victim has not yet left out a leader.
    Waiting,
    /// The twins are told; what is built on the vote is kept from the victim for ever.
    Told,
}

/// Two events for one round against a leader, and one that makes the second of them wanted.
struct Twins {
    first: Event,
    second: Event,
    carrier: Event,
}

impl Split {
    pub(super) fn against(victim: AuthorIndex) -> Self {
        Self { victim, shown: Round(0), stage: Stage::Waiting }
    }
}

impl Liar {
    /// Whom this liar tries to split from the others.
    pub(crate) fn victim(&self) -> Option<AuthorIndex> {
        self.split.as_ref().map(|split| split.victim)
    }

    /// Goes on with the own chain, shows the victim what it may see, or attacks. Does nothing if
    /// this liar has other plans.
    pub(super) fn split(&mut self, wall: LedgerTime) -> Option<Vec<Lie>> {
        let victim = self.split.as_ref()?.victim;
        let mut lies = Vec::new();
        while let Some(event) = self.make(0, wall, Vec::new()) {
            let event = Arc::new(event);
            self.chains[0] = Some(event.as_parent());
            self.keep(event.clone());
            let others = self.peers().into_iter().filter(|peer| *peer != usize::from(victim.0));
            lies.extend(others.map(|peer| (peer, PeerMessage::event(&event))));
        }
        lies.extend(self.show_victim(victim, wall));
        Some(lies)
    }

    fn show_victim(&mut self, victim: AuthorIndex, wall: LedgerTime) -> Vec<Lie> {
        let newest =
            self.rounds.iter().rev().find_map(|(_, authors)| authors.get(&victim)?.first());
        let stage = self.split.as_ref().map(|split| (split.stage, split.shown));
        let (Some(newest), Some((Stage::Waiting, shown))) = (newest.copied(), stage) else {
            return Vec::new();
        };
        let to = usize::from(victim.0);
        let left_out = self.left_out_by(&newest);
        if newest.round > shown
            && let Some(leader) = left_out
            && let Some(twins) = self.twins_against(&newest, &leader, wall)
        {
            self.told(LieKind::Split);
            if let Some(split) = &mut self.split {
                split.stage = Stage::Told;
            }
            let told = [twins.first, twins.second, twins.carrier];
            return told.iter().map(|event| (to, PeerMessage::event(event))).collect();
        }
        // While the others' votes for a leader are under way, the own one is kept back.
        let until = if left_out.is_some() { newest.round } else { newest.round.next() };
        let shown = shown.next();
        if let Some(split) = &mut self.split {
            split.shown = split.shown.max(Round(until.0.saturating_sub(1)));
        }
        let me = self.configuration.me;
        let own = self.rounds.range(shown..until.max(shown));
        let own = own.filter_map(|(_, authors)| authors.get(&me)?.first());
        let own = own.filter_map(|place| self.held.get(&place.digest));
        own.map(|event| (to, PeerMessage::event(event))).collect()
    }

    /// A leader below `event` whom it does not name, though he has an event.
    fn left_out_by(&self, event: &Parent) -> Option<Parent> {
        let committee = self.configuration.committee;
        let named = &self.held.get(&event.digest)?.header.parents;
        let below = Round(event.round.0.checked_sub(1)?);
        let events = self.rounds.get(&below)?;
        (0..committee.leader_slots())
            .map(|slot| committee.leader(self.configuration.epoch, below, slot))
            .filter(|leader| *leader != self.configuration.me && *leader != event.author)
            .filter(|leader| !named.iter().any(|p| p.author == *leader && p.round == below))
            .find_map(|leader| events.get(&leader)?.first().copied())
    }

    /// The attack, if everybody but the author of `blame` votes for `leader`.
    fn twins_against(
        &mut self,
        blame: &Parent,
        leader: &Parent,
        wall: LedgerTime,
    ) -> Option<Twins> {
        let me = self.configuration.me;
        let quorum = self.configuration.committee.quorum();
        let votes = self.rounds.get(&blame.round)?;
        let vote = *votes.get(&me)?.first()?;
        let voting = votes.values().flatten().filter(|place| {
            let event = self.held.get(&place.digest);
            event.is_some_and(|event| event.header.parents.contains(leader))
        });
        if voting.count() < quorum {
            return None;
        }
        let before = *self.held.get(&vote.digest)?.header.parents.first()?;
        let others = |round: Round, but: AuthorIndex| -> Vec<Parent> {
            let authors = self.rounds.get(&round).into_iter().flatten();
            let others = authors.filter(|(author, _)| **author != me && **author != but);
            others.filter_map(|(_, events)| events.first().copied()).collect()
        };
        let below: Vec<_> =
            [before].into_iter().chain(others(leader.round, leader.author)).collect();
        let beside = others(blame.round, me);
        let first = self.sign(blame.round, below.clone(), wall, Vec::new());
        let second = self.sign(blame.round, below, wall.plus_ms(1), Vec::new());
        let above = [second.as_parent()].into_iter().chain(beside).collect();
        let carrier = self.sign(blame.round.next(), above, wall, Vec::new());
        let committee = self.configuration.committee;
        let valid = first.has_quorum_below(committee) && carrier.has_quorum_below(committee);
        (valid && before.author == me).then_some(Twins { first, second, carrier })
    }
}
