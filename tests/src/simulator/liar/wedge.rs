//! A liar that drives a wedge between one host and all others: it commits a leader whom they skip,
//! if fewer certificates than a quorum are enough for it.
//!
//! Owns the attack. It behaves well until two of the hosts, the crowd, go on without the third, the
//! one apart, which still hears them. Then it makes twins: the one for the crowd names no event of
//! a leader of the round below, the one for the host apart votes for him, and is followed by one
//! that certifies him. So does an event of the host apart, which nobody else hears: two
//! certificates, of two authors. The crowd sees two votes only, and its next leaders know of no
//! certificate. Works in clusters of four, where crowd and liar are a quorum. Called by the liar.

use std::sync::Arc;

use dagger_payload::event::{Event, Parent};
use dagger_payload::id::{AuthorIndex, LedgerTime, Round};
use dagger_payload::peer::PeerMessage;

use super::{Liar, Lie, LieKind};

/// Rounds that the crowd is led on after the fork.
const ROUNDS_AFTER: u64 = 8;
/// Rounds below the fork of which the crowd is shown what the host apart said.
const ROUNDS_BEFORE: u64 = 20;

/// See the module.
#[derive(Debug)]
pub(super) struct Wedge {
    apart: AuthorIndex,
    stage: Stage,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The crowd still hears the host apart.
    Waiting,
    /// The twins are told, of this round; what the host apart was shown, if nothing follows it yet.
    Told(Round, Option<Parent>),
    /// All is told.
    Over,
}

impl Wedge {
    pub(super) fn with(apart: AuthorIndex) -> Self {
        Self { apart, stage: Stage::Waiting }
    }
}

impl Liar {
    /// Beside whom this liar tries to drive a wedge.
    pub(crate) fn apart(&self) -> Option<AuthorIndex> {
        self.wedge.as_ref().map(|wedge| wedge.apart)
    }

    /// Goes on with the own chain, or attacks. Does nothing if this liar has other plans.
    pub(super) fn wedge(&mut self, wall: LedgerTime) -> Option<Vec<Lie>> {
        let apart = self.apart()?;
        let me = self.configuration.me;
        let crowd: Vec<AuthorIndex> = self.configuration.committee.authors().collect();
        let crowd: Vec<_> = crowd.into_iter().filter(|a| ![me, apart].contains(a)).collect();
        let mut lies = Vec::new();
        while let Some(stage) = self.wedge.as_ref().map(|wedge| wedge.stage) {
            let more = match stage {
                Stage::Waiting => self.wait_for_crowd(apart, &crowd, wall),
                Stage::Told(round, twin) => {
                    lies.extend(twin.and_then(|twin| self.certify(twin, apart, &crowd, wall)));
                    self.lead_crowd_on(round, &crowd, wall)
                }
                Stage::Over => self.follow(&[&crowd[..], &[apart]].concat(), wall),
            };
            let Some(more) = more else { break };
            lies.extend(more);
        }
        Some(lies)
    }

    fn stage(&mut self, stage: Stage) {
        if let Some(wedge) = &mut self.wedge {
            wedge.stage = stage;
        }
    }

    /// The next event of the own chain as anybody would make it, for these.
    fn follow(&mut self, to: &[AuthorIndex], wall: LedgerTime) -> Option<Vec<Lie>> {
        let event = self.make(0, wall, Vec::new())?;
        Some(self.show(event, to))
    }

    /// Goes on with the main chain.
    fn show(&mut self, event: Event, to: &[AuthorIndex]) -> Vec<Lie> {
        let event = Arc::new(event);
        self.chains[0] = Some(event.as_parent());
        self.keep(event.clone());
        to.iter().map(|peer| (usize::from(peer.0), PeerMessage::event(&event))).collect()
    }

    /// Attacks if the crowd goes on alone, waits for what it takes to see that, or goes on.
    fn wait_for_crowd(
        &mut self,
        apart: AuthorIndex,
        crowd: &[AuthorIndex],
        wall: LedgerTime,
    ) -> Option<Vec<Lie>> {
        let own = self.chains[0];
        let alone = own.is_some_and(|own| self.goes_on_alone(own.round, apart, crowd));
        if let Some(own) = own.filter(|_| alone) {
            let known = |author: &AuthorIndex| self.at(own.round, *author).is_some();
            if crowd.iter().all(known) && known(&apart) {
                if let Some(lies) = self.drive(own, apart, crowd, wall) {
                    return Some(lies);
                }
            } else if self.rounds.range(own.round.next()..).next().is_none() {
                return None; // it will come
            }
        }
        self.follow(&[crowd, &[apart]].concat(), wall)
    }

    fn at(&self, round: Round, author: AuthorIndex) -> Option<Parent> {
        self.rounds.get(&round)?.get(&author)?.first().copied()
    }

    /// Whether nobody of the crowd, as far as it is known, names what the host apart said below
    /// this round, though it said something.
    fn goes_on_alone(&self, round: Round, apart: AuthorIndex, crowd: &[AuthorIndex]) -> bool {
        let below = Round(round.0.saturating_sub(1));
        let Some(said) = self.at(below, apart) else { return false };
        let mut events = crowd.iter().filter_map(|author| self.at(round, *author)).peekable();
        let names = |event: Parent| {
            let event = self.held.get(&event.digest);
            event.is_some_and(|event| event.header.parents.contains(&said))
        };
        events.peek().is_some() && !events.any(names)
    }

    /// Forks above `own`, if a leader of its round is one of the crowd.
    fn drive(
        &mut self,
        own: Parent,
        apart: AuthorIndex,
        crowd: &[AuthorIndex],
        wall: LedgerTime,
    ) -> Option<Vec<Lie>> {
        let committee = self.configuration.committee;
        let mut leaders = (0..committee.leader_slots())
            .map(|slot| committee.leader(self.configuration.epoch, own.round, slot));
        let leader = leaders.find(|leader| crowd.contains(leader))?;
        let others = crowd.iter().copied().filter(|author| *author != leader).chain([apart]);
        let silent = self.sign_above(own, &others.collect::<Vec<_>>(), wall)?;
        let voting = self.sign_above(own, crowd, wall)?;
        // Whoever names what the host apart said must be able to find it.
        let first = Round(own.round.0.saturating_sub(ROUNDS_BEFORE));
        let said: Vec<Arc<Event>> = self
            .rounds
            .range(first..=own.round)
            .filter_map(|(_, authors)| authors.get(&apart)?.first())
            .filter_map(|place| self.held.get(&place.digest).cloned())
            .collect();
        let mut lies = vec![(usize::from(apart.0), PeerMessage::event(&voting))];
        for peer in crowd.iter().map(|peer| usize::from(peer.0)) {
            lies.extend(said.iter().map(|event| (peer, PeerMessage::event(event))));
        }
        let twin = voting.as_parent();
        lies.extend(self.show(silent, crowd));
        self.held.insert(voting.digest, Arc::new(voting));
        self.told(LieKind::Wedge);
        self.stage(Stage::Told(twin.round, Some(twin)));
        Some(lies)
    }

    /// Shows the host apart a certificate above the twin that it knows.
    fn certify(
        &mut self,
        twin: Parent,
        apart: AuthorIndex,
        crowd: &[AuthorIndex],
        wall: LedgerTime,
    ) -> Option<Lie> {
        let event = self.sign_above(twin, crowd, wall)?;
        self.stage(Stage::Told(twin.round, None));
        let lie = (usize::from(apart.0), PeerMessage::event(&event));
        self.held.insert(event.digest, Arc::new(event));
        Some(lie)
    }

    /// Goes on with the crowd alone, for some rounds.
    fn lead_crowd_on(
        &mut self,
        since: Round,
        crowd: &[AuthorIndex],
        wall: LedgerTime,
    ) -> Option<Vec<Lie>> {
        let own = self.chains[0]?;
        if own.round.0 > since.0 + ROUNDS_AFTER {
            self.stage(Stage::Over);
            return Some(Vec::new());
        }
        let event = self.sign_above(own, crowd, wall)?;
        Some(self.show(event, crowd))
    }

    /// An event above `own` that names what `others` said in its round, and nothing else.
    fn sign_above(
        &mut self,
        own: Parent,
        others: &[AuthorIndex],
        wall: LedgerTime,
    ) -> Option<Event> {
        let named: Option<Vec<_>> =
            others.iter().map(|author| self.at(own.round, *author)).collect();
        let mut named = named?;
        named.sort_by_key(|parent| parent.author);
        let parents = [own].into_iter().chain(named).collect();
        let event = self.sign(own.round.next(), parents, wall, Vec::new());
        event.has_quorum_below(self.configuration.committee).then_some(event)
    }
}
