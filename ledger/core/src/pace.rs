//! When this host makes an event, and what it carries.
//!
//! Owns the own chain, the pool of payloads to pack, what counts as work, the waits for leaders and
//! certificates, and silence: without work no event is made but one that closes what was judged,
//! and those that keep up with others. Local and without influence on order. The rules stand in
//! design section 7, "When to create an event".

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use dagger_payload::event::{CommitEnd, EVENT_VERSION, Event, Header, Parent};
use dagger_payload::id::{AuthorIndex, LedgerTime, MerkleRoot, Round};
use dagger_payload::limits::{EVENT_BODY_BYTES_MAX, EVENT_PAYLOADS_MAX};
use dagger_payload::payload::SignedPayload;
use dagger_payload::peer::PeerMessage;

use crate::commit::{blamers, lower_median, voters};
use crate::limits::{
    BACKLOG_ROUND_MS, DEADLINE_ROUND_MS, FILL_MS_MAX, FILL_MS_MIN, FRESHENING_ROUNDS_MAX,
    STALE_PARENTS_MS_MAX, STRIKES_MAX, WAIT_DOUBLING_ROUNDS, WAIT_MS_MAX, WAIT_MS_MIN,
};
use crate::recovery::OwnChain;
use crate::{Core, HaltReason, Moment, Output, Record, Turn, WriteNumber};

/// Bytes of a record beyond its payload: signature, kind and CBOR heads.
const RECORD_OVERHEAD_BYTES: usize = 80;

/// The own chain and its rhythm.
#[derive(Debug)]
pub(crate) struct Pace {
    own_last: Option<Arc<Event>>,
    /// Write that made the own newest event durable.
    own_written: WriteNumber,
    /// Rounds up to this one may have been signed in a forgotten past.
    floor: Round,
    pool: VecDeque<SignedPayload>,
    /// What the own newest event attests.
    attested: CommitEnd,
    /// Since when the next round could be made, and which one.
    ready: Option<(Round, Moment)>,
    last_made: Moment,
    /// Waits that each author let expire in a row.
    strikes: BTreeMap<AuthorIndex, u8>,
    /// Fills since there was work, for the growing delay.
    idle_fills: u32,
    /// Since when an idle host sees a round above its own.
    fill_since: Option<Moment>,
    /// Quorum round at the last commit.
    committed_at: Round,
    freshening_rounds: u32,
    wake_at: Option<Moment>,
    #[cfg(feature = "planted-bugs")]
    returned: std::collections::BTreeSet<dagger_payload::id::PayloadDigest>,
}

/// Why an event is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// There is work; payloads may be packed.
    Work,
    /// A quorum is at this round already: keep up, empty.
    CatchUp,
    /// Attest what was judged.
    Close,
    /// Without work, reach a round that others have.
    Fill,
}

impl Pace {
    pub(crate) fn new(
        own_last: Option<Arc<Event>>,
        pool: Vec<SignedPayload>,
        founding: CommitEnd,
    ) -> Self {
        let attested = own_last.as_ref().map_or(founding, |e| e.header.attestation.newest);
        Self {
            floor: own_last.as_ref().map_or(Round(0), |event| event.header.round),
            own_last,
            own_written: WriteNumber(0),
            pool: pool.into(),
            attested,
            ready: None,
            last_made: Moment(0),
            strikes: BTreeMap::new(),
            idle_fills: 0,
            fill_since: None,
            committed_at: Round(0),
            freshening_rounds: 0,
            wake_at: None,
            #[cfg(feature = "planted-bugs")]
            returned: std::collections::BTreeSet::new(),
        }
    }

    /// Those that never returned before, if others are forgotten.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn first_returns(&mut self, returned: Vec<SignedPayload>) -> Vec<SignedPayload> {
        let once = planted!(ReturnedOnceOnly);
        let first = |payload: &SignedPayload| !once || self.returned.insert(payload.digest());
        returned.into_iter().filter(first).collect()
    }

    /// A new epoch begins with a chain of its own; what waits here goes on in it.
    pub(crate) fn begin_epoch(&mut self, founding: CommitEnd, handover_written: WriteNumber) {
        let pool = std::mem::take(&mut self.pool);
        *self = Self::new(None, pool.into(), founding);
        self.own_written = handover_written;
    }

    /// Recovery is over: go on after `newest`, above `floor`.
    pub(crate) fn resume(&mut self, newest: Option<Arc<Event>>, floor: Round) {
        if let Some(newest) = newest.filter(|event| event.header.round > self.own_round()) {
            self.attested = newest.header.attestation.newest;
            self.own_last = Some(newest);
        }
        self.floor = if planted!(SignBelowRecoveryFloor) { Round(0) } else { floor };
        self.floor = self.floor.max(self.own_round());
    }

    /// Whether the own chain stands at the rounds that may be signed.
    pub(crate) fn own_chain(&self) -> OwnChain {
        if self.own_round() < self.floor { OwnChain::Muted } else { OwnChain::Open }
    }

    /// What the own newest event attests.
    pub(crate) fn attested(&self) -> CommitEnd {
        self.attested
    }

    pub(crate) fn own_round(&self) -> Round {
        self.own_last.as_ref().map_or(Round(0), |event| event.header.round)
    }

    pub(crate) fn submit(&mut self, payload: SignedPayload) {
        self.pool.push_back(payload);
    }

    /// Payloads of an event that can no longer be ordered go first.
    pub(crate) fn give_back(&mut self, payloads: &[SignedPayload]) {
        for payload in payloads.iter().rev() {
            self.pool.push_front(payload.clone());
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.pool.len()
    }

    pub(crate) fn heard_from(&mut self, author: AuthorIndex) {
        self.strikes.remove(&author);
    }

    /// Whether he let too many waits expire.
    fn is_given_up(&self, author: AuthorIndex) -> bool {
        self.strikes.get(&author).is_some_and(|strikes| *strikes >= STRIKES_MAX)
    }

    pub(crate) fn committed(&mut self, quorum_round: Round) {
        self.committed_at = quorum_round;
    }

    /// How long a leader or a certificate may be waited for: longer while nothing commits.
    fn wait_ms(&self, quorum_round: Round) -> u64 {
        let rounds = quorum_round.0.saturating_sub(self.committed_at.0);
        let doublings = (rounds / WAIT_DOUBLING_ROUNDS).min(16);
        (WAIT_MS_MIN << doublings).min(WAIT_MS_MAX)
    }

    fn fill_ms(&self) -> u64 {
        (FILL_MS_MIN << self.idle_fills.min(8)).min(FILL_MS_MAX)
    }

    fn wake(&mut self, at: Moment) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }

    /// Takes as many payloads as fit into one event.
    fn pack(&mut self) -> Vec<SignedPayload> {
        let mut packed = Vec::new();
        let mut bytes = 0;
        while let Some(payload) = self.pool.front() {
            bytes += packed_bytes(std::slice::from_ref(payload));
            if bytes > EVENT_BODY_BYTES_MAX || packed.len() == EVENT_PAYLOADS_MAX {
                break;
            }
            packed.extend(self.pool.pop_front());
        }
        packed
    }
}

/// What payloads count in an event and in a commit.
pub(crate) fn packed_bytes(payloads: &[SignedPayload]) -> usize {
    payloads.iter().map(|payload| payload.bytes.len() + RECORD_OVERHEAD_BYTES).sum()
}

impl Core {
    /// The next moment at which something may become due.
    pub(crate) fn next_wake(&self, now: Moment, wall: LedgerTime) -> Moment {
        let deadline = self.judging.next_deadline.filter(|deadline| *deadline > wall);
        let deadline = deadline.map(|deadline| now.plus_ms(deadline.0 - wall.0));
        let recovery = match self.configuration.committee.contains(self.configuration.me) {
            true => self.recovery.wake_at(self.pace.own_chain()),
            false => self.recovery.wakes_follower_at(),
        };
        let wakes = [
            self.pace.wake_at,
            deadline,
            self.gossip.have_at(),
            recovery,
            self.intake.ask_at(),
            self.catch_up.wake_at(),
        ];
        let next = wakes.into_iter().flatten().min();
        next.unwrap_or(now.plus_ms(crate::limits::HAVE_MS)).max(now.plus_ms(1))
    }

    /// Makes every event that is due now.
    pub(crate) fn make_events(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        self.pace.wake_at = None;
        while let Some((round, purpose)) = self.due(turn) {
            self.make(turn, round, purpose)?;
        }
        Ok(())
    }

    /// The next own round, and why it should be made now; otherwise sets when to look again.
    fn due(&mut self, turn: &Turn<'_>) -> Option<(Round, Purpose)> {
        // One own event at a time is on its way to the disk: the next one gathers what arrives
        // meanwhile.
        let votes = self.configuration.committee.contains(self.configuration.me);
        if !votes || !self.recovery.is_over() || self.pace.own_written > self.durable {
            return None;
        }
        if self.clock.doubt().is_some() && !planted!(ClockNotDoubted) {
            return None;
        }
        let Some(round) = self.next_round() else {
            self.pace.ready = None;
            return None;
        };
        let since = match self.pace.ready {
            Some((ready, since)) if ready == round => since,
            _ => {
                self.pace.ready = Some((round, turn.now));
                turn.now
            }
        };
        let purpose = self.purpose(turn, round)?;
        match purpose {
            Purpose::CatchUp | Purpose::Fill => Some((round, purpose)),
            Purpose::Work | Purpose::Close => {
                self.waits_are_over(turn, round, since).then_some((round, purpose))
            }
        }
    }

    /// One above the own newest (and above what may have been signed in a forgotten past), if a
    /// quorum stands there. Rounds are left out only by a host that others have left behind: its
    /// next round could not be ordered any more, and what stands below is not all in memory, or was
    /// passed with the help of members who may no longer be named.
    fn next_round(&self) -> Option<Round> {
        let own = self.pace.own_round().max(self.pace.floor);
        let own = if planted!(SkippedRound) { own.max(self.graph.quorum_round()) } else { own };
        let collected = self.graph.collection_round();
        if self.graph.has_quorum(own) || (own.0 == 0 && collected.0 == 0) {
            return Some(own.next());
        }
        if own >= collected {
            return None;
        }
        self.graph.round_to_join().map(Round::next)
    }

    fn purpose(&mut self, turn: &Turn<'_>, round: Round) -> Option<Purpose> {
        let own_newest = self.pace.own_last.as_ref().map(|event| event.digest);
        let deadline = self.judging.next_deadline.filter(|deadline| *deadline <= turn.wall);
        let payload_work = !self.pace.pool.is_empty() || self.graph.has_open_payloads(own_newest);
        // Of a closed epoch nothing more is ordered.
        let crowded = self.graph.is_crowded() && !planted!(CrowdIsNoWork);
        let work = payload_work || deadline.is_some() || self.is_ending() || crowded;
        if work && !self.is_closed() {
            self.pace.idle_fills = 0;
            self.pace.fill_since = None;
            // What is packed at a round that others have passed would hardly be ordered, below the
            // collection round never.
            if self.is_passed(round) {
                return Some(Purpose::CatchUp);
            }
            let delay_ms = self.round_delay_ms(payload_work || self.is_ending());
            return self.when_rested(turn, delay_ms).then_some(Purpose::Work);
        }
        let newest = self.judging.attestation.newest;
        let attested = self.pace.attested;
        let changed = (newest.position, newest.state_root)
            != (attested.position, attested.state_root)
            || (planted!(CloseOnAnyCommit) && newest != attested)
            || (planted!(CloseOnOrdered) && self.committer.position() != attested.position);
        let ends = self.epoch_end.is_some_and(|end| end.last == newest.index);
        if changed || (ends && newest != attested) || self.pace.own_last.is_none() {
            return Some(Purpose::Close);
        }
        let worth = self.graph.highest_named_round().max(self.recovery.help_round());
        if worth < round {
            self.pace.fill_since = None;
            return None;
        }
        let since = *self.pace.fill_since.get_or_insert(turn.now);
        let fill_ms = self.pace.fill_ms();
        #[cfg(feature = "planted-bugs")]
        let fill_ms = if self.answers_at_once(worth) { 0 } else { fill_ms };
        let due = since.plus_ms(fill_ms);
        if due > turn.now {
            self.pace.wake(due);
            return None;
        }
        Some(Purpose::Fill)
    }

    /// Whether an event of this round attests less than this host does, if that matters.
    #[cfg(feature = "planted-bugs")]
    fn answers_at_once(&self, round: Round) -> bool {
        let own = self.pace.attested.position;
        let mut events = self.graph.in_round(round);
        planted!(AnswerAttestsLess)
            && events.any(|(_, event)| event.header.attestation.newest.position < own)
    }

    fn is_passed(&self, round: Round) -> bool {
        round <= self.graph.collection_round()
            || round <= self.graph.quorum_round()
            || self.graph.has_quorum_with_forkers(round)
    }

    /// Least time between two own rounds.
    fn round_delay_ms(&self, payload_work: impl Into<PayloadWork>) -> u64 {
        if self.judging_lags() {
            BACKLOG_ROUND_MS
        } else {
            match payload_work.into() {
                PayloadWork::Some => 0,
                PayloadWork::None => DEADLINE_ROUND_MS,
            }
        }
    }

    fn when_rested(&mut self, turn: &Turn<'_>, delay_ms: u64) -> bool {
        let due = self.pace.last_made.plus_ms(delay_ms);
        if due > turn.now && self.pace.own_last.is_some() && delay_ms > 0 {
            self.pace.wake(due);
            return false;
        }
        true
    }

    /// Whether the leaders of the round below are there and those of two rounds below are
    /// certified, as far as that may be waited for.
    fn waits_are_over(&mut self, turn: &Turn<'_>, round: Round, since: Moment) -> bool {
        let missing = self.missing_leaders(round);
        let uncertified = self.has_uncertified_leader(round);
        if missing.is_empty() && !uncertified {
            return true;
        }
        let due = since.plus_ms(self.pace.wait_ms(self.graph.quorum_round()));
        if due > turn.now {
            self.pace.wake(due);
            return false;
        }
        for author in missing {
            let strikes = self.pace.strikes.entry(author).or_default();
            *strikes = strikes.saturating_add(1);
        }
        true
    }

    /// Leaders of the round below `round` who are worth waiting for and have no event there.
    fn missing_leaders(&self, round: Round) -> Vec<AuthorIndex> {
        let committee = self.configuration.committee;
        let below = Round(round.0 - 1);
        if below.0 == 0 {
            return Vec::new();
        }
        let leaders = (0..committee.leader_slots())
            .map(|slot| committee.leader(self.configuration.epoch, below, slot));
        leaders
            .filter(|leader| {
                let hopeless = !self.gossip.is_connected(*leader)
                    || !self.graph.may_name(*leader)
                    || self.pace.is_given_up(*leader);
                !self.is_me(*leader)
                    && !hopeless
                    && self.graph.at(below, *leader).is_empty()
                    && blamers(&self.graph, below, *leader).len() < committee.quorum()
            })
            .collect()
    }

    /// Whether a leader that the own newest event voted for could still get its certificate from
    /// the round below.
    fn has_uncertified_leader(&self, round: Round) -> bool {
        let committee = self.configuration.committee;
        let Some(own) = self.pace.own_last.as_ref() else {
            return false;
        };
        if round.0 < 3 || own.header.round.next() != round {
            return false;
        }
        let leader_round = Round(round.0 - 2);
        let everybody_voted = committee.authors().all(|author| {
            !self.graph.at(leader_round.next(), author).is_empty()
                || !self.gossip.is_connected(author) && !self.is_me(author)
                || self.pace.is_given_up(author)
        });
        if everybody_voted {
            return false;
        }
        (0..committee.leader_slots()).any(|slot| {
            let leader = committee.leader(self.configuration.epoch, leader_round, slot);
            let voted = own
                .header
                .parents
                .iter()
                .find(|parent| parent.author == leader && parent.round == leader_round);
            voted.is_some_and(|voted| {
                voters(&self.graph, voted).len() < committee.quorum()
                    && blamers(&self.graph, leader_round, leader).len() < committee.quorum()
            })
        })
    }

    fn make(
        &mut self,
        turn: &mut Turn<'_>,
        round: Round,
        purpose: Purpose,
    ) -> Result<(), HaltReason> {
        let parents = self.parents_for(round);
        let payloads = match purpose {
            Purpose::Work if self.may_pack(turn, &parents) => self.pace.pack(),
            Purpose::Work | Purpose::CatchUp | Purpose::Close | Purpose::Fill => Vec::new(),
        };
        if purpose == Purpose::Fill {
            self.pace.idle_fills = self.pace.idle_fills.saturating_add(1);
        }
        let configuration = &self.configuration;
        let header = Header {
            version: EVENT_VERSION,
            cluster: configuration.cluster,
            epoch: configuration.epoch,
            round,
            author: configuration.me,
            parents,
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: turn.wall,
            attestation: self.judging.attestation,
        };
        let event = Arc::new(Event::make(header, payloads, |digest| self.signer.sign(digest)));
        self.clock.made(&event, turn.now);
        self.pace.attested = event.header.attestation.newest;
        self.pace.last_made = turn.now;
        self.pace.own_last = Some(event.clone());
        self.pace.own_written = self.written.following();
        if !event.payloads.is_empty() {
            let digests = event.payloads.iter().map(SignedPayload::digest).collect();
            turn.records.push(Record::Packed(digests));
        }
        let message = PeerMessage::event(&event);
        let early = planted!(SendBeforePersist);
        let after = if early { self.durable } else { self.pace.own_written };
        turn.outputs.push(Output::Broadcast { message, after });
        let me = self.configuration.me;
        self.admit(turn, me, event)
    }

    /// The own newest event, then the highest of every other author below `round`, by author.
    fn parents_for(&self, round: Round) -> Vec<Parent> {
        let own = self.pace.own_last.as_ref().map(|event| event.as_parent());
        let others = self.configuration.committee.authors().filter(|author| !self.is_me(*author));
        let named = |author| self.graph.highest_below(author, round);
        let below = Round(round.0 - 1);
        if round.0 == 1 || self.graph.has_quorum(below) {
            return own.into_iter().chain(others.filter_map(named)).collect();
        }
        let any = |author| {
            let stands = self.graph.at(below, author).first();
            stands.map(|digest| Parent { author, round: below, digest: *digest })
        };
        own.into_iter()
            .chain(others.filter_map(|author| named(author).or_else(|| any(author))))
            .collect()
    }

    /// Payloads wait while the judge lags, and while the parents' times are old: after a long
    /// silence ledger time first catches up by an empty round, so that nothing is judged at the
    /// time of the last burst.
    fn may_pack(&mut self, turn: &Turn<'_>, parents: &[Parent]) -> bool {
        if self.judging_lags() || self.is_closed() || self.pace.pool.is_empty() {
            return false;
        }
        let newest = parents.iter().map(|parent| parent.round).max();
        let below = parents.iter().filter(|parent| Some(parent.round) == newest);
        let times = below.filter_map(|parent| self.graph.get(&parent.digest));
        let time = lower_median(times.map(|event| event.header.timestamp).collect());
        let fresh = time.plus_ms(STALE_PARENTS_MS_MAX) >= turn.wall;
        if fresh || self.pace.freshening_rounds >= FRESHENING_ROUNDS_MAX {
            self.pace.freshening_rounds = 0;
            return true;
        }
        self.pace.freshening_rounds += 1;
        false
    }
}

/// Whether payloads wait to be ordered.
#[derive(Debug, Clone, Copy)]
enum PayloadWork {
    Some,
    None,
}

impl From<bool> for PayloadWork {
    fn from(some: bool) -> Self {
        if some { Self::Some } else { Self::None }
    }
}
