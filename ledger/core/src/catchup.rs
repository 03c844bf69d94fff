//! Catching up after a long absence: stretch by stretch of the history, each asked of one peer.
//!
//! Owns whom a host that is far behind asks next, and how far one answer reaches. What comes is
//! accepted like any other event: its author's signature, its parents and the commit rule show
//! that a quorum ordered it, so a false server can only withhold. One that brings nothing is
//! counted and another is asked. Never decides what is true. Called after every input.

use std::collections::BTreeMap;

use dagger_payload::id::{AuthorIndex, Epoch, Round};
use dagger_payload::peer::Highest;

use crate::gossip::following;
use crate::limits::{CATCH_UP_ROUNDS, CATCH_UP_TURNS_MAX, CATCH_UP_WAIT_MS, LITTLE_TURNS_MAX};
use crate::{Core, Moment, Output, Turn};

/// A place in the history of events.
type Place = (Epoch, Round);

/// Who has been asked for what lies ahead.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    /// How far each connected peer says that it is.
    shown: BTreeMap<AuthorIndex, Place>,
    asked: Option<Asked>,
    /// Turns in a row in which the present server brought little.
    little: u32,
    /// Peers that were asked in a row and brought nothing.
    fruitless: u32,
    /// Where this host was when it asked the last of them: what has come since, however late, is
    /// worth asking on.
    fruitless_from: Place,
    /// Answers that brought nothing, by peer.
    failures: BTreeMap<AuthorIndex, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    server: AuthorIndex,
    at: Moment,
    /// Where this host was then.
    from: Place,
}

/// The highest round in what a peer has.
fn top(highest: &[Highest]) -> Round {
    highest.iter().map(|each| each.round).max().unwrap_or_default()
}

/// Up to where one answer reaches, for a peer that has this.
pub(crate) fn end_of_stretch(has: &[Highest]) -> Round {
    Round(top(has).0.saturating_add(CATCH_UP_ROUNDS))
}

impl CatchUp {
    /// A peer told what it has.
    pub(crate) fn note(&mut self, peer: AuthorIndex, epoch: Epoch, has: &[Highest]) {
        self.shown.insert(peer, (epoch, top(has)));
        self.fruitless = 0;
    }

    /// A peer sent an event of this round: so far it is at least. Without this a host that falls
    /// behind while others are busy would ask for no more than they had when they told last.
    pub(crate) fn hear(&mut self, peer: AuthorIndex, epoch: Epoch, round: Round) {
        let shown = self.shown.entry(peer).or_default();
        *shown = (*shown).max((epoch, round));
    }

    pub(crate) fn disconnected(&mut self, peer: AuthorIndex) {
        self.shown.remove(&peer);
        // Whoever was asked and is gone has brought nothing, whatever the reason.
        if self.asked.is_some_and(|asked| asked.server == peer) {
            self.fail(peer);
        }
    }

    fn fail(&mut self, server: AuthorIndex) {
        *self.failures.entry(server).or_default() += 1;
        self.fruitless = self.fruitless.saturating_add(1);
        if let Some(asked) = self.asked.take() {
            self.fruitless_from = asked.from;
        }
    }

    /// Whether a peer has been asked for what was left out.
    pub(crate) fn is_asking(&self) -> bool {
        self.asked.is_some()
    }

    /// When to look whether the answer has come.
    pub(crate) fn wake_at(&self) -> Option<Moment> {
        self.asked.map(|asked| asked.at.plus_ms(CATCH_UP_WAIT_MS))
    }

    /// Peers that brought nothing when they were asked, and how often.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (AuthorIndex, u64)> {
        self.failures.iter().map(|(peer, count)| (*peer, *count))
    }

    /// The first peer from `from` on that is further than `place`.
    fn beyond(&self, place: Place, from: AuthorIndex) -> Option<AuthorIndex> {
        let circle = self.shown.range(from..).chain(&self.shown);
        circle.filter(|(_, shown)| **shown > place).map(|(peer, _)| *peer).next()
    }

    /// Whom to ask now, if anybody. Asking begins far behind and ends when nothing lies ahead.
    fn next(&mut self, here: Place, now: Moment) -> Option<AuthorIndex> {
        let Some(asked) = self.asked else {
            if here > self.fruitless_from {
                self.fruitless = 0;
            }
            let quiet = self.fruitless >= CATCH_UP_TURNS_MAX;
            return if quiet { None } else { self.beyond(half_from(here), AuthorIndex(0)) };
        };
        let waited = asked.at.plus_ms(CATCH_UP_WAIT_MS) <= now;
        let enough = here >= half_from(asked.from);
        if enough || (waited && here > asked.from) {
            self.fruitless = 0;
            self.asked = None;
            self.little = if enough { 0 } else { self.little + 1 };
            if self.little < LITTLE_TURNS_MAX {
                return self.beyond(here, asked.server);
            }
            // Who brings little at a time would hold this host back for ever.
            self.little = 0;
            return self.beyond(here, following(asked.server));
        }
        if !waited {
            return None;
        }
        let Some(next) = self.beyond(here, following(asked.server)) else {
            self.asked = None;
            return None;
        };
        self.little = 0;
        self.fail(asked.server);
        (self.fruitless < CATCH_UP_TURNS_MAX).then_some(next)
    }
}

/// Half a stretch further.
fn half_from((epoch, round): Place) -> Place {
    (epoch, Round(round.0.saturating_add(CATCH_UP_ROUNDS / 2)))
}

impl Core {
    /// Asks one peer for the next stretch, while peers are far ahead and the judge keeps up.
    pub(crate) fn catch_up(&mut self, turn: &mut Turn<'_>) {
        if self.judging_lags() {
            return;
        }
        let round = self.graph.highest_round().max(self.graph.floor());
        let here = (self.configuration.epoch, round);
        if let Some(server) = self.catch_up.next(here, turn.now) {
            self.catch_up.asked = Some(Asked { server, at: turn.now, from: here });
            let message = self.have();
            turn.outputs.push(Output::Send { to: server, message, after: self.written });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(round: u64) -> [Highest; 1] {
        [Highest { author: AuthorIndex(0), round: Round(round) }]
    }

    fn here(round: u64) -> Place {
        (Epoch(0), Round(round))
    }

    #[test]
    fn a_server_that_brings_something_is_asked_on_and_one_that_does_not_is_counted_and_left() {
        let mut catch_up = CatchUp::default();
        for peer in [1, 2, 3] {
            catch_up.note(AuthorIndex(peer), Epoch(0), &has(10 * CATCH_UP_ROUNDS));
        }
        let ask = |catch_up: &mut CatchUp, at: u64, round: u64| {
            let server = catch_up.next(here(round), Moment(at))?;
            let from = here(round);
            catch_up.asked = Some(Asked { server, at: Moment(at), from });
            Some(server.0)
        };
        assert_eq!(ask(&mut catch_up, 0, 5), Some(1));
        assert_eq!(ask(&mut catch_up, 1, 6), None, "it is still answering");
        assert_eq!(ask(&mut catch_up, 2, 5 + CATCH_UP_ROUNDS / 2), Some(1));
        let stuck = 5 + CATCH_UP_ROUNDS / 2;
        assert_eq!(ask(&mut catch_up, 2 + CATCH_UP_WAIT_MS, stuck), Some(2));
        assert_eq!(catch_up.failures().collect::<Vec<_>>(), [(AuthorIndex(1), 1)]);
        catch_up.disconnected(AuthorIndex(2));
        assert_eq!(ask(&mut catch_up, 3 + CATCH_UP_WAIT_MS, stuck), Some(1));
        // Up to the end, and then no more.
        let (near, end) = (10 * CATCH_UP_ROUNDS - 1, 10 * CATCH_UP_ROUNDS);
        assert_eq!(ask(&mut catch_up, 4 + CATCH_UP_WAIT_MS, near), Some(1));
        assert_eq!(ask(&mut catch_up, 5 + 2 * CATCH_UP_WAIT_MS, end), None);
        // A little behind is not worth asking: it comes by itself.
        assert_eq!(ask(&mut catch_up, 6 + 2 * CATCH_UP_WAIT_MS, near), None);
    }

    #[test]
    fn what_a_peer_sends_shows_how_far_it_is_but_excuses_no_fruitless_answer() {
        let mut catch_up = CatchUp::default();
        catch_up.note(AuthorIndex(1), Epoch(0), &has(10));
        assert_eq!(catch_up.next(here(10), Moment(0)), None);
        catch_up.hear(AuthorIndex(1), Epoch(0), Round(10 + CATCH_UP_ROUNDS));
        catch_up.hear(AuthorIndex(1), Epoch(0), Round(11));
        assert_eq!(catch_up.next(here(10), Moment(0)), Some(AuthorIndex(1)));
        (catch_up.fruitless, catch_up.fruitless_from) = (CATCH_UP_TURNS_MAX, here(10));
        catch_up.hear(AuthorIndex(1), Epoch(0), Round(10 + 2 * CATCH_UP_ROUNDS));
        assert_eq!(catch_up.next(here(10), Moment(0)), None);
    }

    #[test]
    fn a_server_that_brings_little_at_a_time_is_left_for_the_next() {
        let mut catch_up = CatchUp::default();
        for peer in [1, 2] {
            catch_up.note(AuthorIndex(peer), Epoch(0), &has(10 * CATCH_UP_ROUNDS));
        }
        let asked = (0..8).map(|turn| {
            let server = catch_up.next(here(turn), Moment(turn * CATCH_UP_WAIT_MS))?;
            let (at, from) = (Moment(turn * CATCH_UP_WAIT_MS), here(turn));
            catch_up.asked = Some(Asked { server, at, from });
            Some(server.0)
        });
        assert_eq!(asked.collect::<Vec<_>>(), [1, 1, 2, 2, 1, 1, 2, 2].map(Some));
    }

    #[test]
    fn answers_that_came_too_late_are_asked_on_from_once_they_have_come() {
        let mut catch_up = CatchUp::default();
        catch_up.note(AuthorIndex(1), Epoch(0), &has(10 * CATCH_UP_ROUNDS));
        let ask = |catch_up: &mut CatchUp, at: u64, round: u64| {
            let server = catch_up.next(here(round), Moment(at))?;
            let from = here(round);
            catch_up.asked = Some(Asked { server, at: Moment(at), from });
            Some(server.0)
        };
        let asked = (0..20).filter(|turn| ask(&mut catch_up, turn * 2_000, 5).is_some()).count();
        assert_eq!(asked, usize::try_from(CATCH_UP_TURNS_MAX).expect("few"));
        assert_eq!(ask(&mut catch_up, 50_000, 6), Some(1));
    }

    #[test]
    fn a_liar_who_claims_a_far_round_is_asked_a_few_times_and_then_no_more() {
        let mut catch_up = CatchUp::default();
        catch_up.note(AuthorIndex(1), Epoch(9), &has(u64::MAX));
        let mut asked = 0;
        for turn in 0..1_000 {
            let now = Moment(turn * CATCH_UP_WAIT_MS);
            if let Some(server) = catch_up.next(here(7), now) {
                catch_up.asked = Some(Asked { server, at: now, from: here(7) });
                asked += 1;
            }
        }
        assert_eq!(asked, CATCH_UP_TURNS_MAX);
    }
}
