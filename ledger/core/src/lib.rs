//! The consensus of the ledger: an uncertified DAG with leader slots in every round, as a
//! deterministic state machine.
//!
//! Owns the graph, the commit rule, when an event is made, what it carries, and what peers are
//! told. Never reads a clock, opens a socket or file, starts a thread or draws a random number:
//! time comes in with each call, everything else goes out as an [`Output`]. Called by the ledger's
//! driver and by the simulator. The argument for safety and liveness stands in
//! `../decisions.md`.
#![forbid(unsafe_code)]

/// Whether a bug is planted here: never, but under the simulator's feature.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "planted-bugs")]
        let planted = crate::planted::is(crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted-bugs"))]
        let planted = false;
        planted
    }};
}

mod adopt;
mod allowance;
mod catchup;
mod clock;
mod commit;
mod epoch;
mod gossip;
mod graph;
mod held;
mod intake;
pub mod interface;
mod limits;
mod missing;
mod pace;
#[cfg(feature = "planted-bugs")]
pub mod planted;
mod quota;
mod recovery;
mod twins;

use std::collections::BTreeMap;
use std::sync::Arc;

use dagger_payload::event::{Attestation, CHECKPOINT_COMMITS, CommitEnd, Event, SignedHeader};
use dagger_payload::handover::EpochEnd;
use dagger_payload::id::{AuthorIndex, CommitIndex, LedgerTime, PrefixHash, Round};
use dagger_payload::peer::Highest;
use dagger_payload::release::{OrderedCommit, OrderedPayload};

pub use adopt::Frontier;
pub use clock::ClockDoubt;
pub use held::Held;
pub use interface::{
    CommitRecord, CoreConfiguration, CoreStatus, EventSigner, Fork, HaltReason, Input, Memory,
    Moment, Output, Phase, Record, RestoredState, WriteNumber,
};
pub use limits::{SUSPENDED_BYTES_MAX, SUSPENDED_BYTES_OF_OTHERS_MAX, TWINS_BYTES_PER_AUTHOR_MAX};

use catchup::CatchUp;
use clock::Clock;
use commit::Committer;
use gossip::Gossip;
use graph::Graph;
use intake::Intake;
use pace::Pace;
use recovery::{Beginning, OwnChain, Recovery};

/// The consensus of one member.
pub struct Core {
    configuration: CoreConfiguration,
    signer: Box<dyn EventSigner + Send>,
    graph: Graph,
    committer: Committer,
    intake: Intake,
    gossip: Gossip,
    catch_up: CatchUp,
    clock: Clock,
    pace: Pace,
    recovery: Recovery,
    judging: Judging,
    /// Where this epoch ends, once the judge has said so.
    epoch_end: Option<EpochEnd>,
    /// Headers that attest the end of this epoch, by author.
    closing: BTreeMap<AuthorIndex, SignedHeader>,
    /// Number of the last write that was given out, and of the last one that is durable.
    written: WriteNumber,
    durable: WriteNumber,
    halted: Option<HaltReason>,
}

/// What the judge has said so far.
#[derive(Debug)]
struct Judging {
    /// Newest judged commit.
    index: CommitIndex,
    /// What the next event attests.
    attestation: Attestation,
    next_deadline: Option<LedgerTime>,
    /// Prefixes of commits that are not judged yet, to compare the judge's answers with.
    unjudged: std::collections::BTreeMap<CommitIndex, PrefixHash>,
}

/// What one call collects before it is given out.
struct Turn<'a> {
    now: Moment,
    wall: LedgerTime,
    records: Vec<Record>,
    /// Outputs that must follow this turn's write.
    outputs: Vec<Output>,
    sink: &'a mut Vec<Output>,
}

impl Core {
    /// Starts from what the store holds. Nothing is signed before recovery is over.
    pub fn restore(
        configuration: CoreConfiguration,
        signer: Box<dyn EventSigner + Send>,
        state: RestoredState,
    ) -> Self {
        let committee = configuration.committee;
        let mut graph = Graph::new(committee);
        let mut committer = Committer::new(&configuration);
        if let Some(last) = state.commits.last() {
            committer.restore(last);
            graph.restore(last.collection_round, last.floor);
        }
        if !planted!(FatesForgotten) {
            graph.expect_fates(&state.commits);
        }
        for event in &state.events {
            graph.insert(event.clone());
        }
        for highest in &state.highest {
            if committee.contains(highest.author) {
                graph.raise_highest(highest.author, highest.round);
            }
        }
        let founding = configuration.founding.end;
        let founded = founding.index > CommitIndex(0);
        let beginning = if founded { Beginning::Handover } else { Beginning::Founding };
        let attestation = state
            .own_last
            .as_ref()
            .map_or(Attestation { newest: founding, checkpoint: None }, |event| {
                event.header.attestation
            });
        let unjudged = state.commits.iter().map(|c| (c.index, c.prefix_hash)).collect();
        Self {
            recovery: Recovery::new(
                (committee, beginning),
                configuration.me,
                state.memory,
                state.questions_above,
            ),
            pace: Pace::new(state.own_last, state.pool, founding),
            intake: Intake::new(committee),
            gossip: Gossip::default(),
            catch_up: CatchUp::default(),
            clock: Clock::default(),
            epoch_end: None,
            closing: BTreeMap::new(),
            judging: Judging { index: founding.index, attestation, next_deadline: None, unjudged },
            configuration,
            signer,
            graph,
            committer,
            written: WriteNumber(0),
            durable: WriteNumber(0),
            halted: None,
        }
    }

    /// Takes one input and appends what is to be done. `now` is the driver's monotonic clock,
    /// `wall` the host's clock, which goes into this host's timestamps and decides when a deadline
    /// is worth a round, and is itself looked at: a clock in doubt ends this host's events until
    /// [`Input::ClockConfirmed`].
    pub fn handle(
        &mut self,
        now: Moment,
        wall: LedgerTime,
        input: Input,
        outputs: &mut Vec<Output>,
    ) {
        if self.halted.is_some() {
            return;
        }
        self.clock.read(now, wall);
        let turn = &mut Turn { now, wall, records: Vec::new(), outputs: Vec::new(), sink: outputs };
        let result = self.take(turn, input).and_then(|()| self.advance(turn));
        self.give_out(turn);
        if let Err(reason) = result {
            self.halted = Some(reason);
            turn.sink.push(Output::Halted(reason));
            return;
        }
        turn.sink.push(Output::WakeAt(self.next_wake(now, wall)));
    }

    fn take(&mut self, turn: &mut Turn<'_>, input: Input) -> Result<(), HaltReason> {
        match input {
            Input::EventReceived { from, event } => self.receive(turn, from, event)?,
            Input::ClosingShown { header, signed } => self.note_closing(&header, || signed),
            Input::PeerConnected(peer) => self.peer_connected(turn, peer),
            Input::PeerDisconnected(peer) => {
                self.gossip.disconnected(peer);
                self.catch_up.disconnected(peer);
            }
            Input::PeerHave { from, highest, epoch } => self.peer_has(turn, from, epoch, highest),
            Input::PeerWant { from, events, epoch } => self.peer_wants(turn, from, events, epoch),
            Input::RecoveryAsked { from, nonce, epoch } => {
                self.answer_recovery(turn, from, nonce, epoch);
            }
            Input::RecoveryAnswered { from, answer, epoch } => {
                if epoch == self.configuration.epoch {
                    self.recovery.answered(from, answer);
                }
            }
            Input::Submitted(payload) => self.pace.submit(payload),
            Input::Judged { end, next_deadline, epoch_end } => {
                self.judged(end, next_deadline)?;
                if let Some(last) = epoch_end.filter(|_| end.index > self.founding_index()) {
                    self.ends_at(last)?;
                    self.attest_last(end);
                }
                self.commit_what_is_decided(turn)?;
            }
            Input::Adopted { frontier, end, epoch_end } => {
                self.adopt(turn, *frontier, end, epoch_end)?;
            }
            Input::WriteDurable(number) => self.durable = number.max(self.durable),
            Input::ClockConfirmed => self.clock.confirm(),
            Input::Tick => {}
        }
        Ok(())
    }

    /// Does what time or the input has made due.
    fn advance(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        self.admit_freed(turn)?;
        self.hand_over(turn);
        self.ask_recovery(turn)?;
        self.ask_missing(turn)?;
        self.tell_have(turn);
        self.catch_up(turn);
        self.make_events(turn)
    }

    /// Accepted events may decide slots; commits may return payloads.
    fn commit_what_is_decided(&mut self, turn: &mut Turn<'_>) -> Result<(), HaltReason> {
        while self.committer.index() < self.commit_limit()
            && let Some(new) = self.committer.next_commit(&mut self.graph)?
        {
            let (collection_round, floor) = (new.record.collection_round, new.record.floor);
            self.judging.unjudged.insert(new.record.index, new.record.prefix_hash);
            turn.records.push(Record::Commit(new.record));
            let early = planted!(HandOnBeforePersist);
            let after = if early { self.durable } else { self.written.following() };
            turn.outputs.push(Output::Committed { commit: new.commit, after });
            self.pace.committed(self.graph.quorum_round());
            let left_out = !self.judging_lags() && self.intake.take_left_out().is_some();
            if left_out && !self.catch_up.is_asking() {
                self.gossip.tell_have_at(turn.now); // peers send it again
            }
            let me = self.configuration.me;
            let lost = self.graph.collect(collection_round, floor, me);
            self.intake.collect(floor);
            self.give_back(turn, &lost);
        }
        Ok(())
    }

    /// Payloads of own events that no order can reach any more return to the pool.
    fn give_back(&mut self, turn: &mut Turn<'_>, lost: &[Arc<Event>]) {
        let returned: Vec<_> = lost.iter().flat_map(|e| e.payloads.iter().cloned()).collect();
        #[cfg(feature = "planted-bugs")]
        let returned = self.pace.first_returns(returned);
        if !returned.is_empty() && !planted!(PayloadsNotGivenBack) {
            self.pace.give_back(&returned);
            if !planted!(ReturnNotPersisted) {
                turn.records.push(Record::Returned(returned));
            }
        }
    }

    /// Ends the graph: whatever of its own events was not ordered returns to the pool.
    fn give_back_all(&mut self, turn: &mut Turn<'_>) {
        let all = Round(u64::MAX);
        let lost = self.graph.collect(all, all, self.configuration.me);
        self.give_back(turn, &lost);
    }

    fn judged(
        &mut self,
        end: CommitEnd,
        next_deadline: Option<LedgerTime>,
    ) -> Result<(), HaltReason> {
        let judging = &mut self.judging;
        if end.index > self.committer.index() {
            return Err(HaltReason::JudgedForeign { index: end.index });
        }
        if judging.unjudged.get(&end.index).is_some_and(|prefix| *prefix != end.prefix_hash) {
            return Err(HaltReason::JudgedForeign { index: end.index });
        }
        let attested = &mut judging.attestation;
        for known in [Some(attested.newest), attested.checkpoint].into_iter().flatten() {
            if known.index == end.index && known != end {
                return Err(HaltReason::JudgedDifferently { index: end.index });
            }
        }
        // A judge that was restarted judges again from the beginning; what was attested stays
        // attested.
        if end.index > judging.index {
            judging.index = end.index;
            judging.next_deadline = next_deadline;
            judging.unjudged = judging.unjudged.split_off(&end.index);
        }
        if end.index > attested.newest.index {
            let same = (end.position, end.state_root)
                == (attested.newest.position, attested.newest.state_root);
            let (newest_of_equals, any) =
                (planted!(NewestOfEqualsAttested), planted!(CloseOnAnyCommit));
            if !same || newest_of_equals || any {
                attested.newest = end;
            }
            if end.index.0.is_multiple_of(CHECKPOINT_COMMITS) {
                attested.checkpoint = Some(end);
            }
        }
        Ok(())
    }

    /// The last commit end of an epoch is attested by itself, also where it equals the one before.
    fn attest_last(&mut self, end: CommitEnd) {
        if self.epoch_end.is_some_and(|last| last.last == end.index) {
            self.judging.attestation.newest = end;
        }
    }

    fn founding_index(&self) -> CommitIndex {
        self.configuration.founding.end.index
    }

    /// Numbers this turn's records and puts everything into the driver's list.
    fn give_out(&mut self, turn: &mut Turn<'_>) {
        if !turn.records.is_empty() {
            self.written = self.written.following();
            let records = std::mem::take(&mut turn.records);
            turn.sink.push(Output::Write { number: self.written, records });
        }
        turn.sink.append(&mut turn.outputs);
    }

    /// How the core is.
    pub fn status(&self) -> CoreStatus {
        let configuration = &self.configuration;
        let votes = configuration.committee.contains(configuration.me);
        let may_sign = self.recovery.is_over() && self.pace.own_chain() == OwnChain::Open;
        let phase = match (self.halted, may_sign) {
            (Some(_), _) => Phase::Halted,
            (None, _) if !votes => Phase::Follower,
            (None, false) => Phase::Recovering,
            (None, true) => Phase::Member,
        };
        CoreStatus {
            phase,
            epoch: configuration.epoch,
            committee: configuration.committee,
            round: self.pace.own_round(),
            committed: self.committer.index(),
            judged: self.judging.index,
            position: self.committer.position(),
            ledger_time: self.committer.ledger_time(),
            waiting: self.pace.waiting(),
            highest: self.highest(),
            forkers: self.graph.forkers().collect(),
            fruitless: self.catch_up.failures().collect(),
            clock_doubt: self.clock.doubt(),
        }
    }

    fn highest(&self) -> Vec<Highest> {
        let authors = self.configuration.committee.authors();
        authors.map(|author| Highest { author, round: self.graph.highest_of(author) }).collect()
    }

    fn is_me(&self, author: AuthorIndex) -> bool {
        author == self.configuration.me
    }
}

impl WriteNumber {
    /// The next write.
    #[must_use]
    pub fn following(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl CommitRecord {
    /// Rebuilds the commit for the judge from its events, given in the record's order. `None` when
    /// they are not those.
    pub fn to_ordered_commit(&self, events: &[Arc<Event>]) -> Option<OrderedCommit> {
        let same = events.len() == self.events.len()
            && events.iter().zip(&self.events).all(|(event, parent)| event.digest == parent.digest);
        let payloads = events.iter().flat_map(|event| {
            let author = event.header.author;
            event.payloads.iter().cloned().map(move |payload| OrderedPayload { author, payload })
        });
        same.then(|| commit::ordered_commit(self, payloads.collect(), &self.events))
    }
}
