//! What a seed draws before its run starts: how fast, how bad and how busy its world is.
//!
//! Owns the ranges. Never changes during a run. Called by the world. Each run draws its own mixture
//! ("swarm testing": Groce and others, 2012), for faults that are always all on hide each other.

use dagger_payload::limits::COMMIT_BYTES_DEFAULT;

use super::faults::FaultKind;
use super::random::Random;

/// How a connection treats messages; see `network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkStyle {
    /// As TCP: in order, all or nothing.
    Stream,
    /// Loses, doubles and reorders single messages.
    Lossy,
}

/// The links' behaviour; times in microseconds, chances in thousandths.
#[derive(Debug, Clone)]
pub(crate) struct LinkSettings {
    /// See [`LinkStyle`].
    pub(crate) style: LinkStyle,
    /// Usual delay of a message, from and to.
    pub(crate) delay_us: (u64, u64),
    /// Chance of a further delay.
    pub(crate) spike_permille: u64,
    /// That further delay, from and to.
    pub(crate) spike_us: (u64, u64),
    /// Chance to lose a message on a lossy link.
    pub(crate) drop_permille: u64,
    /// Chance to double a message on a lossy link.
    pub(crate) duplicate_permille: u64,
}

/// All that is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The genesis' collection depth.
    pub(crate) collection_depth_rounds: u64,
    pub(crate) commit_bytes_max: usize,
    /// The links.
    pub(crate) links: LinkSettings,
    /// Time of a durable write, from and to.
    pub(crate) write_us: (u64, u64),
    /// Time to judge a commit, from and to.
    pub(crate) judge_us: (u64, u64),
    /// Difference of each host's wall clock from simulated time, in milliseconds, added to a common
    /// base.
    pub(crate) clock_ahead_ms: Vec<u64>,
    /// How many payloads are submitted in all.
    pub(crate) payloads: u64,
    /// Gap between two submissions, from and to; a burst has none.
    pub(crate) submit_gap_us: (u64, u64),
    /// Chance that a submission is followed by others at once.
    pub(crate) burst_permille: u64,
    /// Chance that a payload starts a ledger-time deadline.
    pub(crate) deadline_permille: u64,
    /// For how long faults are injected.
    pub(crate) faults_us: u64,
    /// Gap between two faults, from and to.
    pub(crate) fault_gap_us: (u64, u64),
    /// Kinds of faults in this run, each once or more (more: more often).
    pub(crate) faults: Vec<FaultKind>,
    /// How often a host speaks to nobody while the others go on.
    pub(crate) late_events: u64,
    /// How often a clock leaps by more than an hour.
    pub(crate) clock_leaps: u64,
    /// Chance to lose power once payloads of an event that came too late wait again.
    pub(crate) crash_after_return_permille: u64,
    /// Whether every store is read through at the end.
    pub(crate) checks_store: bool,
    /// How many hosts lie.
    pub(crate) liars: usize,
    /// Whether a liar that is asked for a snapshot always offers a true one, with a false frontier.
    pub(crate) false_frontiers: bool,
    /// Changes of members while faults last.
    pub(crate) changes: Vec<Change>,
    /// After so many changes of the judged state a host makes a snapshot; none in most runs.
    pub(crate) snapshot_every_changes: Option<u64>,
    /// Which hosts prune what lies before their snapshots.
    pub(crate) prunes: Vec<bool>,
    /// How often a host loses its disk in the calm after the faults.
    pub(crate) losses: u64,
}

/// A change of members: each ends an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// All hosts vote, as after a change of a key or of the protocol.
    All,
    /// All but this one.
    AllBut(usize),
}

impl Settings {
    /// Draws the settings of `seed` for `hosts` hosts.
    pub(crate) fn draw(seed: u64, hosts: usize) -> Self {
        let random = &mut Random::new(seed, "settings");
        let liars_max = (hosts - 1) / 3;
        let liars =
            if liars_max > 0 && random.happens(500) { 1 + random.index(liars_max) } else { 0 };
        let faults = FaultKind::drawn(hosts).filter(|_| random.happens(600)).collect();
        // Many kinds need a second host: one alone meets the others more often.
        let longest_us = if hosts == 1 { 450_000 } else { 700_000 };
        let fault_gap_us =
            random.choose(&[(10_000, 200_000), (50_000, 500_000), (100_000, longest_us)]);
        // The other seeds replay as they did before hosts kept snapshots.
        let has_snapshots = matches!(seed % 5, 0 | 2);
        let retention = &mut Random::new(seed, "retention");
        let drawn = Self {
            collection_depth_rounds: random.choose(&[8, 12, 20, 60]),
            commit_bytes_max: Random::new(seed, "commits").choose(&[
                COMMIT_BYTES_DEFAULT,
                COMMIT_BYTES_DEFAULT,
                4_096,
                512,
            ]),
            links: Self::draw_links(random),
            write_us: random.choose(&[(50, 200), (500, 3_000), (2_000, 40_000)]),
            judge_us: random.choose(&[(10, 100), (500, 5_000), (5_000, 80_000)]),
            clock_ahead_ms: (0..hosts).map(|_| random.within((0, 4_000))).collect(),
            payloads: random.within((50, 200)),
            submit_gap_us: random.choose(&[(1_000, 20_000), (20_000, 150_000), (0, 250_000)]),
            burst_permille: random.choose(&[0, 500, 1000]),
            deadline_permille: random.choose(&[0, 0, 50]),
            faults_us: random.within((4_000_000, 15_000_000)),
            fault_gap_us,
            faults,
            late_events: Random::new(seed, "late events").choose(&[0, 0, 1, 3]),
            clock_leaps: Random::new(seed, "clock leaps").choose(&[0, 0, 1, 3]),
            crash_after_return_permille: Random::new(seed, "returns").choose(&[0, 300, 700]),
            checks_store: seed.is_multiple_of(10),
            liars,
            false_frontiers: Random::new(seed, "false frontiers").happens(500),
            changes: Self::draw_changes(&mut Random::new(seed, "members"), hosts, liars),
            snapshot_every_changes: has_snapshots.then(|| retention.choose(&[2, 5, 12])),
            prunes: (0..hosts).map(|_| retention.happens(800)).collect(),
            losses: if has_snapshots && hosts > 1 { retention.choose(&[1, 2, 4]) } else { 0 },
        };
        if has_snapshots { drawn.with_a_long_past(retention) } else { drawn }
    }

    /// Enough is ordered for the events of long ago to go.
    fn with_a_long_past(self, random: &mut Random) -> Self {
        Self {
            collection_depth_rounds: random.choose(&[8, 12]),
            payloads: random.within((150, 300)),
            faults_us: random.within((10_000_000, 20_000_000)),
            ..self
        }
    }

    /// Nobody leaves whom the others need to bear the liars.
    fn draw_changes(random: &mut Random, hosts: usize, liars: usize) -> Vec<Change> {
        let faulty_max_without_one = hosts.saturating_sub(2) / 3;
        let may_leave = hosts > 2 && faulty_max_without_one >= liars && random.happens(500);
        let count = random.choose(&[0, 0, 1, 3]);
        let draw = |_| match may_leave && random.happens(700) {
            true => Change::AllBut(random.index(hosts)),
            false => Change::All,
        };
        (0..count).map(draw).collect()
    }

    /// f, in the smallest committee of the run.
    pub(crate) fn faulty_max(&self, hosts: usize) -> usize {
        let leaves = self.changes.iter().any(|change| matches!(change, Change::AllBut(_)));
        (hosts - 1 - usize::from(leaves)) / 3
    }

    fn draw_links(random: &mut Random) -> LinkSettings {
        LinkSettings {
            style: random.choose(&[LinkStyle::Stream, LinkStyle::Lossy]),
            delay_us: random.choose(&[(100, 400), (500, 5_000), (1_000, 60_000)]),
            spike_permille: random.choose(&[0, 10, 50]),
            spike_us: (10_000, 400_000),
            drop_permille: random.choose(&[5, 30, 120]),
            duplicate_permille: random.choose(&[0, 20, 100]),
        }
    }
}
