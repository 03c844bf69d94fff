//! The links between hosts: what arrives, when, and what is lost.
//!
//! Owns one connection for each pair of hosts and the state of both its directions. Never looks
//! into a message. Called by the world. A connection is a stream (as over TCP: nothing overtakes,
//! what is sent into a closed direction waits and is lost only with the connection) or, in other
//! seeds, a worse thing that loses, doubles and reorders single messages, which covers a driver
//! that sheds a full queue. A message of an old connection never arrives after a new connection has
//! begun: links drain, or drop what is left, before a new one is heard.

use super::random::Random;
use super::schedule::SimulatedTime;
use super::settings::{LinkSettings, LinkStyle};

/// A connection of a pair, told from the ones before and after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Connection(pub u64);

/// Whether a direction carries anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// It does.
    Open,
    /// A partition holds back what is sent.
    Closed,
}

#[derive(Debug)]
struct Link<M> {
    direction: Direction,
    last_arrival: SimulatedTime,
    /// Until when messages take longer, and up to how much, in microseconds.
    delayed: (SimulatedTime, u64),
    held: Vec<M>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Pair {
    up: Option<Connection>,
    made: u64,
}

/// What becomes of a message: the times at which copies of it arrive.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Arrivals {
    /// When; none if it is lost or held.
    pub(crate) at: Vec<SimulatedTime>,
}

/// How one message is to be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// As the link's style has it.
    Usual,
    /// Never before what was sent earlier: an answer must follow everything that was queued on its
    /// link.
    AfterEarlier,
}

/// All links.
#[derive(Debug)]
pub(crate) struct Network<M> {
    hosts: usize,
    links: Vec<Link<M>>,
    pairs: Vec<Pair>,
    settings: LinkSettings,
    random: Random,
    /// Whether single messages may still be lost, doubled or reordered.
    pub(crate) faulty: bool,
    /// Messages lost, doubled, and reordered.
    pub(crate) counts: NetworkCounts,
}

/// How often the network misbehaved by itself.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct NetworkCounts {
    /// Messages that never arrived.
    pub(crate) dropped: u64,
    /// Messages that arrived twice.
    pub(crate) duplicated: u64,
    /// Messages that others may have overtaken.
    pub(crate) reordered: u64,
}

impl<M> Network<M> {
    /// Links among `hosts`, all directions open and no connection made.
    pub(crate) fn new(hosts: usize, settings: LinkSettings, random: Random) -> Self {
        let link = || Link {
            direction: Direction::Open,
            last_arrival: SimulatedTime::default(),
            delayed: (SimulatedTime::default(), 0),
            held: Vec::new(),
        };
        Self {
            hosts,
            links: (0..hosts * hosts).map(|_| link()).collect(),
            pairs: vec![Pair::default(); hosts * hosts],
            settings,
            random,
            faulty: true,
            counts: NetworkCounts::default(),
        }
    }

    fn pair(&mut self, a: usize, b: usize) -> &mut Pair {
        &mut self.pairs[a.min(b) * self.hosts + a.max(b)]
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link<M> {
        &mut self.links[from * self.hosts + to]
    }

    /// The connection between two hosts, if there is one.
    pub(crate) fn connection(&self, a: usize, b: usize) -> Option<Connection> {
        self.pairs[a.min(b) * self.hosts + a.max(b)].up
    }

    /// Makes a connection if there is none and both directions carry; true if one was made.
    pub(crate) fn connect(&mut self, a: usize, b: usize) -> bool {
        if self.connection(a, b).is_some() || !self.is_open(a, b) || !self.is_open(b, a) {
            return false;
        }
        let pair = self.pair(a, b);
        pair.made += 1;
        pair.up = Some(Connection(pair.made));
        true
    }

    /// Breaks the connection and loses what is held on it; true if there was one.
    pub(crate) fn disconnect(&mut self, a: usize, b: usize) -> bool {
        self.link(a, b).held.clear();
        self.link(b, a).held.clear();
        self.pair(a, b).up.take().is_some()
    }

    /// Whether what `from` sends reaches `to`.
    pub(crate) fn is_open(&self, from: usize, to: usize) -> bool {
        self.links[from * self.hosts + to].direction == Direction::Open
    }

    /// Closes a direction.
    pub(crate) fn close(&mut self, from: usize, to: usize) {
        self.link(from, to).direction = Direction::Closed;
    }

    /// Opens a direction; gives what waited, with the time at which each arrives.
    pub(crate) fn open(
        &mut self,
        now: SimulatedTime,
        from: usize,
        to: usize,
    ) -> Vec<(SimulatedTime, M)> {
        self.link(from, to).direction = Direction::Open;
        let held = std::mem::take(&mut self.link(from, to).held);
        held.into_iter()
            .map(|message| (self.arrival(now, from, to, Care::AfterEarlier), message))
            .collect()
    }

    /// Lets everything from and to `host` take up to `extra_us` longer until then.
    pub(crate) fn delay(&mut self, host: usize, until: SimulatedTime, extra_us: u64) {
        for other in 0..self.hosts {
            self.link(host, other).delayed = (until, extra_us);
            self.link(other, host).delayed = (until, extra_us);
        }
    }

    fn arrival(&mut self, now: SimulatedTime, from: usize, to: usize, care: Care) -> SimulatedTime {
        let mut delay_us = self.random.within(self.settings.delay_us);
        if self.faulty && self.random.happens(self.settings.spike_permille) {
            delay_us += self.random.within(self.settings.spike_us);
        }
        let (delayed_until, extra_us) = self.link(from, to).delayed;
        if self.faulty && now < delayed_until {
            delay_us += self.random.below(extra_us + 1);
        }
        let overtakes = self.settings.style == LinkStyle::Lossy && self.faulty;
        let link = self.link(from, to);
        let mut at = now.plus_us(delay_us);
        if !overtakes || care == Care::AfterEarlier {
            at = at.max(link.last_arrival.plus_us(1));
        }
        link.last_arrival = link.last_arrival.max(at);
        at
    }

    /// Sends `message` over the present connection: tells when copies arrive. A stream whose
    /// direction is closed keeps it until that opens.
    pub(crate) fn send(
        &mut self,
        now: SimulatedTime,
        (from, to): (usize, usize),
        care: Care,
        message: &M,
    ) -> Arrivals
    where
        M: Clone,
    {
        let lossy = self.settings.style == LinkStyle::Lossy;
        if !self.is_open(from, to) {
            if lossy {
                self.counts.dropped += 1;
            } else {
                self.link(from, to).held.push(message.clone());
            }
            return Arrivals::default();
        }
        let unreliable = lossy && self.faulty;
        if unreliable && self.random.happens(self.settings.drop_permille) {
            self.counts.dropped += 1;
            return Arrivals::default();
        }
        let mut at = vec![self.arrival(now, from, to, care)];
        if unreliable && self.random.happens(self.settings.duplicate_permille) {
            self.counts.duplicated += 1;
            at.push(self.arrival(now, from, to, care));
        }
        self.counts.reordered += u64::from(unreliable);
        Arrivals { at }
    }
}
