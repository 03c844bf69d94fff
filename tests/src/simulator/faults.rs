//! The kinds of faults, and what each does to the world.
//!
//! Owns their drawing and their length. Never breaks a rule of the model (what is durable stays
//! so). Called by the world on its schedule, while the run's fault time lasts.

use super::random::Random;
use super::world::World;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultKind {
    /// A host loses power and comes back.
    Crash,
    /// A host loses power just before or just after a write becomes durable, before anybody learns
    /// of it.
    CrashAtWrite,
    /// A host stands still for a while but stays connected.
    Pause,
    /// The hosts fall into two groups.
    Partition,
    /// One group does not hear the other, but is heard.
    OneWayPartition,
    /// One host is alone.
    Isolate,
    /// One link goes and comes several times.
    FlappingLink,
    /// A connection breaks with all that is under way on it.
    Reset,
    /// Writes take long.
    SlowDisk,
    /// The judge stands still.
    SlowJudge,
}

impl FaultKind {
    /// All kinds.
    pub(crate) const ALL: [Self; 10] = [
        Self::Crash,
        Self::CrashAtWrite,
        Self::Pause,
        Self::Partition,
        Self::OneWayPartition,
        Self::Isolate,
        Self::FlappingLink,
        Self::Reset,
        Self::SlowDisk,
        Self::SlowJudge,
    ];
}

/// When a crash comes, relative to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// The write never became durable (or became so unnoticed: a drawn prefix survives).
    BeforeDurable,
    /// The write is durable, but nothing that waited for it was sent.
    AfterDurable,
}

/// How long most faults last, in microseconds.
const SHORT_US: (u64, u64) = (20_000, 1_500_000);
/// How long a pause or partition may last, in microseconds.
const LONG_US: (u64, u64) = (50_000, 4_000_000);

/// Lets a fault of `kind` begin now.
pub(super) fn inject(world: &mut World, kind: FaultKind) {
    let hosts = world.hosts_count();
    let honest = world.honest_hosts();
    let mut random = world.fork_random();
    let host = honest[random.index(honest.len())];
    let long_us = random.within(LONG_US);
    let short_us = random.within(SHORT_US);
    match kind {
        FaultKind::Crash => world.crash(host, long_us),
        FaultKind::CrashAtWrite => {
            let points = [CrashPoint::BeforeDurable, CrashPoint::AfterDurable];
            world.crash_at_write(host, random.choose(&points));
        }
        FaultKind::Pause => world.pause(host, long_us),
        FaultKind::Partition | FaultKind::OneWayPartition | FaultKind::Isolate => {
            let sides = draw_sides(kind, hosts, host, &mut random);
            partition(world, kind, &sides, long_us);
        }
        FaultKind::FlappingLink => {
            let other = (host + 1 + random.index(hosts.max(2) - 1)) % hosts;
            let times = 2 + random.below(4);
            for turn in 0..times {
                let begins_us = turn * 2 * short_us / times;
                world.close_later(begins_us, (host, other), short_us / times);
                world.close_later(begins_us, (other, host), short_us / times);
            }
        }
        FaultKind::Reset => {
            let other = (host + 1 + random.index(hosts.max(2) - 1)) % hosts;
            world.reset(host, other);
        }
        FaultKind::SlowDisk => world.slow_disk(host, long_us),
        FaultKind::SlowJudge => world.slow_judge(host, long_us),
    }
}

fn draw_sides(kind: FaultKind, hosts: usize, alone: usize, random: &mut Random) -> Vec<bool> {
    (0..hosts)
        .map(|host| match kind {
            FaultKind::Isolate => host == alone,
            _ => random.happens(500),
        })
        .collect()
}

fn partition(world: &mut World, kind: FaultKind, sides: &[bool], length_us: u64) {
    for from in 0..sides.len() {
        for to in 0..sides.len() {
            let crosses = sides[from] != sides[to];
            let closes = crosses && (kind != FaultKind::OneWayPartition || sides[from]);
            if closes {
                world.close_later(0, (from, to), length_us);
            }
        }
    }
}
