//! Snapshots in a run: hosts keep them, prune what lies before, and begin from each other's.
//!
//! Owns when a host keeps one, and the way of one from host to host. What a snapshot counts for,
//! what may be pruned, what is offered and what is written when a host begins from one are rules of
//! the real ledger, over the real records; the asking itself, which is a task of the daemon there,
//! is modelled here: the first offer makes a host ask all others, then it takes that of whoever
//! failed least, believes a frontier that more members than may lie name, and a state that a quorum
//! attests. Called by the world.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use dagger_ledger::limits::SNAPSHOTS_KEPT;
use dagger_ledger::transfer::{Piece, server};
use dagger_ledger_core::interface::Input;
use dagger_ledger_core::{Core, Frontier};
use dagger_payload::codec;
use dagger_payload::event::CommitEnd;
use dagger_payload::id::StateRoot;
use dagger_payload::peer::{Part, PeerMessage};
use dagger_payload::snapshot::{SnapshotHead, SnapshotOffer};

use super::disk::WitnessFate;
use super::judge::Judge;
use super::liar::LieKind;
use super::world::{Happening, HostHappening, Step, World};
use crate::promise::Observed;

/// How long further offers are waited for after the first, from and to, in microseconds.
const OFFERS_WAIT_US: (u64, u64) = (5_000, 1_000_000);
/// How long chunks travel, from and to, in microseconds.
const CHUNKS_US: (u64, u64) = (5_000, 500_000);
/// Between a transfer that failed and the next, in microseconds.
const REST_US: u64 = 1_000_000;
/// Until the store has written what came before, in microseconds.
const WRITES_WAIT_US: u64 = 500;
/// From the write with which a host begins to the core's knowledge of it, in microseconds.
const CORE_HEARS_US: (u64, u64) = (1, 30_000);
/// Chance that a host loses power between the two, in thousandths.
const CRASH_PERMILLE: u64 = 150;
/// Chance that a host loses power before pruned bodies are gone, in thousandths.
const PRUNING_CUT_PERMILLE: u64 = 200;
/// How long after the faults have stopped a disk may be lost, from and to, in microseconds.
const LOSSES_US: (u64, u64) = (5_000_000, 18_000_000);
/// How long it is down then, in microseconds.
const DOWN_US: u64 = 200_000;
/// Snapshots that wait for a quorum's headers; the oldest is forgotten.
const WAITING_MAX: usize = 4;
/// How many commits those headers are waited for.
const ATTESTED_WITHIN_COMMITS: u64 = 30;
/// Chance that a liar answers what a host has with an offer, in thousandths.
const FALSE_OFFER_PERMILLE: u64 = 300;

/// All that came of a transfer.
pub(crate) struct Fetched {
    offer: SnapshotOffer,
    frontier: Frontier,
    judge: Judge,
}

/// What a host has under way; gone with its life.
#[derive(Default)]
pub(crate) struct Transfers {
    /// Commits that changed something since this life began.
    changes: u64,
    /// Not attested by a quorum, as far as it is known here.
    waiting: VecDeque<(SnapshotHead, Judge)>,
    offers: BTreeMap<usize, SnapshotOffer>,
    failures: BTreeMap<usize, u32>,
    /// Whether a transfer is under way.
    asks: bool,
}

/// How often this happened in a run.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SnapshotCounts {
    /// Bodies of events went.
    pub(crate) pruned: u64,
    /// A host began from another one's snapshot.
    pub(crate) adopted: u64,
}

/// Why a transfer came to nothing.
#[derive(Debug)]
enum Failure {
    NotAhead,
    NotAgreed,
    /// The peer is to blame from here on.
    NoFrontier,
    NotAttested,
    FalseSnapshot,
}

impl World {
    /// A commit was judged that led from `before`: perhaps a snapshot is kept, and those that wait
    /// are shown to be attested.
    pub(super) fn consider_snapshot(&mut self, host: usize, before: &CommitEnd) {
        let Some(every) = self.settings.snapshot_every_changes else {
            return;
        };
        let state = &mut self.hosts[host];
        let (transfers, end) = (&mut state.transfers, state.judge.end);
        if (before.position, before.state_root) != (end.position, end.state_root) {
            transfers.changes += 1;
            let newest = state.disk.durable.snapshots.keys().next_back();
            if transfers.changes.is_multiple_of(every) && newest.is_none_or(|at| *at < end.index) {
                let made_after = end.index;
                let head = SnapshotHead { end, chunks: 0, bytes: 0, made_after };
                transfers.waiting.push_back((head, state.judge.clone()));
                let surplus = transfers.waiting.len().saturating_sub(WAITING_MAX);
                transfers.waiting.drain(..surplus);
            }
        }
        let waiting = std::mem::take(&mut state.transfers.waiting);
        for (head, judge) in waiting {
            let founders = state.configuration.committee;
            let evidence = state.disk.records().headers_naming(&head, founders);
            let evidence = evidence.expect("the store gives back what was written");
            match evidence {
                Some(evidence) => {
                    state.disk.keep_snapshot(&head, &evidence, judge, SNAPSHOTS_KEPT);
                }
                None if end.index.0 > head.end.index.0 + ATTESTED_WITHIN_COMMITS => {}
                None => state.transfers.waiting.push_back((head, judge)),
            }
        }
        if self.settings.prunes[host] {
            let disk = &mut self.hosts[host].disk;
            if disk.mark_pruned() {
                self.snapshots.pruned += 1;
                if !self.transfer.happens(PRUNING_CUT_PERMILLE) {
                    disk.remove_pruned();
                }
            }
        }
    }

    /// Draws when hosts lose their disks in the calm: most is ordered then, and much pruned.
    pub(super) fn plan_losses(&mut self) {
        for _ in 0..self.settings.losses {
            let at_us = self.transfer.within(LOSSES_US);
            self.schedule.after_us(at_us, Happening::Lose);
        }
    }

    /// A host loses its disk when others may have pruned already what it needs.
    pub(super) fn lose(&mut self) {
        if !self.bears_faults() {
            return;
        }
        let host = self.transfer.choose(&self.honest_hosts());
        let fate = self.transfer.choose(&[WitnessFate::Stays, WitnessFate::Follows]);
        self.wipe(host, fate, DOWN_US);
    }

    /// A part as the store of `host` gives it.
    fn part_of(&self, host: usize, part: Part) -> Bytes {
        let bytes = server::part(&self.hosts[host].disk.records(), part);
        bytes.expect("the store gives back what was written")
    }

    /// What is larger than a part, piece by piece.
    fn pieces_of(&self, host: usize, part: impl Fn(u64) -> Part) -> Option<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let offset = u64::try_from(whole.len()).expect("a length fits into 64 bits");
            let piece: Piece = codec::decode(&self.part_of(host, part(offset))).ok()?;
            whole.extend_from_slice(&piece.bytes);
            if u64::try_from(whole.len()).expect("a length fits into 64 bits") >= piece.total {
                return Some(whole);
            }
        }
    }

    /// Offers what there is to whoever asks for it or for what is pruned.
    pub(super) fn offer_snapshot(&mut self, host: usize, to: usize) -> Step {
        let bytes = self.part_of(host, Part::Offer);
        self.send(host, to, &Arc::new(PeerMessage::Part { part: Part::Offer, bytes }))
    }

    /// A liar offers what an honest host could, with another state or its own word on the rest.
    pub(super) fn offer_falsely(&mut self, liar: usize) -> Option<PeerMessage> {
        let has_false_frontier = self.settings.false_frontiers;
        if !has_false_frontier && (!self.injecting || !self.transfer.happens(FALSE_OFFER_PERMILLE))
        {
            return None;
        }
        let honest = self.honest_hosts();
        let of = self.transfer.choose(&honest);
        let bytes = self.part_of(of, Part::Offer);
        let mut offer: SnapshotOffer = codec::decode(&bytes).ok()?;
        if !has_false_frontier && self.transfer.happens(500) {
            offer.head.end.state_root = StateRoot([7; 32]);
        }
        self.liars.get_mut(&liar)?.told(LieKind::FalseOffer);
        Some(PeerMessage::Part { part: Part::Offer, bytes: codec::encode(&offer).into() })
    }

    pub(super) fn ask_for_offers(&mut self, host: usize) -> Step {
        let ask = Arc::new(PeerMessage::AskPart { part: Part::Offer });
        for to in (0..self.hosts.len()).filter(|to| *to != host) {
            self.send(host, to, &ask)?;
        }
        Ok(())
    }

    /// Hears an offer; the first one begins a transfer.
    pub(super) fn hear_offer(&mut self, host: usize, from: usize, bytes: &Bytes) -> Step {
        let Some(offer) = codec::decode::<SnapshotOffer>(bytes).ok() else {
            return Ok(());
        };
        if offer.head.end.index <= self.handed_on[host] {
            return Ok(());
        }
        let life = self.hosts[host].incarnation;
        let transfers = &mut self.hosts[host].transfers;
        transfers.offers.insert(from, offer);
        if std::mem::replace(&mut transfers.asks, true) {
            return Ok(());
        }
        let wait_us = self.transfer.within(OFFERS_WAIT_US);
        let fetch = Happening::Host(host, HostHappening::Fetch(life));
        self.schedule.after_us(wait_us, fetch);
        self.ask_for_offers(host)
    }

    /// Takes one of the offers.
    pub(super) fn fetch(&mut self, host: usize) {
        let transfers = &mut self.hosts[host].transfers;
        let offers = std::mem::take(&mut transfers.offers);
        let failed = |peer: &usize| transfers.failures.get(peer).copied().unwrap_or_default();
        let best = offers.into_iter().min_by_key(|(peer, _)| (failed(peer), *peer));
        let Some((peer, offer)) = best else {
            transfers.asks = false;
            return;
        };
        let life = self.hosts[host].incarnation;
        let failure = match self.checked(host, peer, offer) {
            Ok(fetched) => {
                let chunks_us = self.transfer.within(CHUNKS_US);
                let settle = HostHappening::Fetched(life, Box::new(fetched));
                self.schedule.after_us(chunks_us, Happening::Host(host, settle));
                return;
            }
            Err(failure) => failure,
        };
        self.log.explain(self.now(), host, || format!("  offer of {peer}: {failure:?}"));
        let transfers = &mut self.hosts[host].transfers;
        transfers.asks = false;
        if !matches!(failure, Failure::NotAhead) {
            *transfers.failures.entry(peer).or_default() += 1;
        }
        if !matches!(failure, Failure::NotAhead) {
            let again = Happening::Host(host, HostHappening::AskForOffers(life));
            self.schedule.after_us(REST_US, again);
        }
    }

    fn checked(
        &mut self,
        host: usize,
        peer: usize,
        offer: SnapshotOffer,
    ) -> Result<Fetched, Failure> {
        let head = &offer.head;
        if head.end.index <= self.handed_on[host] {
            return Err(Failure::NotAhead);
        }
        let frontier = self.agreed_frontier(host, peer, head)?;
        let committee = frontier.committee(self.hosts[host].configuration.committee);
        let cluster = self.hosts[host].configuration.cluster;
        if !offer.is_attested_by(&cluster, committee, |signed| self.keys.read(signed)) {
            return Err(Failure::NotAttested);
        }
        // A liar's chunks do not lead to the state that a quorum attests.
        let judge = match self.liars.contains_key(&peer) {
            true => None,
            false => self.hosts[peer].disk.durable.snapshots.get(&head.made_after).cloned(),
        };
        let judge = judge.filter(|judge| judge.end == head.end).ok_or(Failure::FalseSnapshot)?;
        Ok(Fetched { offer, frontier, judge })
    }

    /// The frontier as more members than may lie say it, the offering peer among them.
    fn agreed_frontier(
        &mut self,
        host: usize,
        peer: usize,
        head: &SnapshotHead,
    ) -> Result<Frontier, Failure> {
        let status = self.hosts[host].core.as_ref().map(Core::status).ok_or(Failure::NotAgreed)?;
        let frontier = self.frontier_of(host, peer, head).ok_or(Failure::NoFrontier)?;
        let agreed = frontier.agreed_bytes();
        let says_so = (0..self.hosts.len()).filter(|other| {
            let same = || {
                let theirs = self.frontier_of(host, *other, head);
                theirs.is_some_and(|theirs| theirs.agreed_bytes() == agreed)
            };
            let member = status.committee.contains(self.hosts[*other].me) && *other != host;
            member && (*other == peer || same())
        });
        let enough = says_so.count() > status.committee.faulty_max();
        if enough { Ok(frontier) } else { Err(Failure::NotAgreed) }
    }

    /// What `of` answers `host`: all liars the same falsehood.
    fn frontier_of(&self, host: usize, of: usize, head: &SnapshotHead) -> Option<Frontier> {
        let connection = self.hosts[host].connections[of];
        if connection.is_none() || self.network.connection(host, of) != connection {
            return None;
        }
        let part = |offset| Part::Frontier { commit: head.end.index, offset };
        let read = |of: usize| codec::decode::<Frontier>(&self.pieces_of(of, part)?).ok();
        let frontier = if self.liars.contains_key(&of) {
            let honest = self.honest_hosts();
            let mut frontier = honest.into_iter().find_map(read)?;
            let last = frontier.commits.last_mut()?;
            last.floor = last.floor.next();
            frontier
        } else {
            self.hosts[of].core.as_ref()?;
            read(of)?
        };
        let fits = frontier.last().is_some_and(|last| {
            (last.index, last.last_position, last.prefix_hash)
                == (head.end.index, head.end.position, head.end.prefix_hash)
        });
        fits.then_some(frontier)
    }

    /// Store and judge go on from there; then, perhaps, the core hears of it.
    pub(super) fn settle(&mut self, host: usize, fetched: Box<Fetched>) -> Step {
        let life = self.hosts[host].incarnation;
        if self.hosts[host].disk.last_pending().is_some() {
            let again = Happening::Host(host, HostHappening::Fetched(life, fetched));
            self.schedule.after_us(WRITES_WAIT_US, again);
            return Ok(());
        }
        let Fetched { offer, frontier, judge } = *fetched;
        let end = offer.head.end;
        if end.index <= self.handed_on[host] {
            // It has come as far by itself meanwhile.
            self.hosts[host].transfers.asks = false;
            return Ok(());
        }
        self.snapshots.adopted += 1;
        self.log.note(self.now(), host, "begins from a snapshot", end.index.0);
        let state = &mut self.hosts[host];
        state.disk.begin_from(&offer, &frontier, &judge);
        state.transfers.asks = false;
        state.judge = judge;
        state.judge_turn += 1;
        state.judging = true; // until the core has heard of it
        self.handed_on[host] = self.handed_on[host].max(end.index);
        let epoch_end = self.hosts[host].judge.judgement().epoch_end;
        self.observe(host, &Observed::Judged { end: &end, epoch_end })?;
        self.observe(host, &Observed::BeganFromSnapshot)?;
        if self.transfer.happens(CRASH_PERMILLE) {
            self.go_down(host, DOWN_US);
            return Ok(());
        }
        let hears_us = self.transfer.within(CORE_HEARS_US);
        let adopted = HostHappening::Adopted(life, Box::new(frontier), end);
        self.schedule.after_us(hears_us, Happening::Host(host, adopted));
        Ok(())
    }

    /// The core hears where store and judge are.
    pub(super) fn adopted(&mut self, host: usize, frontier: Box<Frontier>, end: CommitEnd) -> Step {
        let epoch_end = self.hosts[host].judge.judgement().epoch_end;
        self.feed(host, Input::Adopted { frontier, end, epoch_end })?;
        self.hosts[host].judging = false;
        self.tell_beginning(host)?;
        self.judge(host);
        Ok(())
    }

    /// A core hears with which state its judge began.
    pub(super) fn tell_beginning(&mut self, host: usize) -> Step {
        let judgement = self.hosts[host].judge.judgement();
        let (end, next_deadline) = (judgement.end, judgement.next_deadline);
        self.feed(host, Input::Judged { end, next_deadline, epoch_end: judgement.epoch_end })
    }
}
