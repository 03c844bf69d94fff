//! The kinds of faults, and what each does to the world.
//!
//! Owns their drawing and their length. Never breaks a rule of the model (what is durable stays
//! so, unless the fault is the loss of a disk). Called by the world on its schedule, while the
//! run's fault time lasts. A fault is counted when it takes effect, not when it is drawn.

use dagger_ledger_core::interface::WriteNumber;

use super::disk::{PersistPoint, WitnessFate};
use super::random::Random;
use super::world::World;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FaultKind {
    /// A host loses power and comes back.
    Crash,
    /// A host loses power when its next write has come to this point.
    CrashAt(PersistPoint),
    /// A host loses power before the next submitted payload is durable.
    CrashBeforeReceipt,
    /// A host loses power when the next submitted payload is durable, and its user is not told.
    CrashAfterReceipt,
    /// A host's events reach nobody while the others have work: they come too late.
    LateEvents,
    /// A sync fails: nobody knows what is on disk, and the host stops for a while.
    FailedSync,
    /// A store has no room for a while.
    DiskFull,
    /// A host loses its store, and perhaps its witness.
    WipedStore,
    /// A host's store is replaced by an old copy; its witness is not.
    BackupWithoutWitness,
    /// A host's store and witness are replaced by old copies.
    BackupWithWitness,
    /// A host stands still for a while but stays connected.
    Pause,
    /// A host runs in short steps with long pauses between them.
    SlowHost,
    /// A host's wall clock jumps.
    ClockJump,
    /// A host's wall clock jumps by more than an hour, until its operator sets it right.
    ClockLeap,
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
    /// A host's links take long.
    Delay,
    /// Writes take long.
    SlowDisk,
    /// The judge stands still.
    SlowJudge,
}

/// Kinds that a host without peers can suffer, too.
const EVERYWHERE: [FaultKind; 16] = [
    FaultKind::Crash,
    FaultKind::CrashAt(PersistPoint::Data),
    FaultKind::CrashAt(PersistPoint::DataSynced),
    FaultKind::CrashAt(PersistPoint::Meta),
    FaultKind::CrashAt(PersistPoint::MetaSynced),
    FaultKind::CrashAt(PersistPoint::Witness),
    FaultKind::CrashAt(PersistPoint::WitnessSynced),
    FaultKind::CrashBeforeReceipt,
    FaultKind::CrashAfterReceipt,
    FaultKind::FailedSync,
    FaultKind::DiskFull,
    FaultKind::Pause,
    FaultKind::SlowHost,
    FaultKind::ClockJump,
    FaultKind::SlowDisk,
    FaultKind::SlowJudge,
];

/// Kinds that need peers, but for those that a host without them survives by stopping: a store that
/// does not fit its witness.
const AMONG_PEERS: [FaultKind; 9] = [
    FaultKind::WipedStore,
    FaultKind::BackupWithoutWitness,
    FaultKind::BackupWithWitness,
    FaultKind::Partition,
    FaultKind::OneWayPartition,
    FaultKind::Isolate,
    FaultKind::FlappingLink,
    FaultKind::Reset,
    FaultKind::Delay,
];

impl FaultKind {
    /// The kinds that a cluster of so many hosts can suffer. Where all must sign, no event comes
    /// too late.
    pub(crate) fn possible(hosts: usize) -> impl Iterator<Item = Self> {
        let late = [Self::LateEvents].into_iter().filter(move |_| hosts > 3);
        Self::drawn(hosts).chain(late).chain([Self::ClockLeap])
    }

    /// Those of them that begin at a drawn time.
    pub(crate) fn drawn(hosts: usize) -> impl Iterator<Item = Self> {
        let alone = [Self::WipedStore, Self::BackupWithoutWitness];
        let among_peers =
            AMONG_PEERS.into_iter().filter(move |kind| hosts > 1 || alone.contains(kind));
        EVERYWHERE.into_iter().chain(among_peers)
    }
}

/// How a host ends that has a write or a submission under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlannedCrash {
    /// At this point of the next write.
    Write(PersistPoint),
    /// The next write's sync fails.
    Sync,
    /// Before the next submission is durable.
    BeforeReceipt,
    /// After it.
    AfterReceipt,
    /// Once this write is durable, which says that payloads wait again.
    AfterReturn(WriteNumber),
}

impl PlannedCrash {
    /// The kind that is counted.
    pub(crate) fn kind(self) -> FaultKind {
        match self {
            Self::Write(point) => FaultKind::CrashAt(point),
            Self::Sync => FaultKind::FailedSync,
            Self::BeforeReceipt => FaultKind::CrashBeforeReceipt,
            Self::AfterReceipt => FaultKind::CrashAfterReceipt,
            Self::AfterReturn(_) => FaultKind::CrashAt(PersistPoint::WitnessSynced),
        }
    }
}

/// How long most faults last, in microseconds.
const SHORT_US: (u64, u64) = (20_000, 1_500_000);
/// How long a pause or partition may last, in microseconds.
const LONG_US: (u64, u64) = (50_000, 4_000_000);
/// How far ahead of simulated time a clock may jump, in milliseconds.
const CLOCK_AHEAD_MS: (u64, u64) = (0, 20_000);
/// Chance that a witness is lost with its store, in thousandths.
const WITNESS_LOST_PERMILLE: u64 = 500;

/// Lets a fault of `kind` begin now.
pub(super) fn inject(world: &mut World, kind: FaultKind) {
    let honest = world.honest_hosts();
    let mut random = world.fork_random();
    let host = honest[random.index(honest.len())];
    let long_us = random.within(LONG_US);
    let short_us = random.within(SHORT_US);
    match kind {
        FaultKind::Crash => world.crash_somewhere(host, long_us),
        FaultKind::CrashAt(point) => world.plan_crash(host, PlannedCrash::Write(point)),
        FaultKind::FailedSync => world.plan_crash(host, PlannedCrash::Sync),
        FaultKind::CrashBeforeReceipt => world.plan_crash(host, PlannedCrash::BeforeReceipt),
        FaultKind::CrashAfterReceipt => world.plan_crash(host, PlannedCrash::AfterReceipt),
        // These come by the run's settings, not by drawing.
        FaultKind::LateEvents | FaultKind::ClockLeap => {}
        FaultKind::DiskFull => world.fill_disk(host, long_us),
        FaultKind::WipedStore => {
            let lost = random.happens(WITNESS_LOST_PERMILLE);
            let fate = if lost { WitnessFate::Follows } else { WitnessFate::Stays };
            world.wipe(host, fate, short_us);
        }
        FaultKind::BackupWithoutWitness => world.back_up(host, WitnessFate::Stays, long_us),
        FaultKind::BackupWithWitness => world.back_up(host, WitnessFate::Follows, long_us),
        FaultKind::Pause => world.pause(host, long_us),
        FaultKind::SlowHost => {
            world.hit(kind);
            for turn in 0..8 {
                world.pause_later(host, turn * short_us / 8, short_us / 10);
            }
        }
        FaultKind::ClockJump => world.set_clock(host, random.within(CLOCK_AHEAD_MS)),
        FaultKind::SlowDisk => world.slow_disk(host, long_us),
        FaultKind::SlowJudge => world.slow_judge(host, long_us),
        FaultKind::Partition
        | FaultKind::OneWayPartition
        | FaultKind::Isolate
        | FaultKind::FlappingLink
        | FaultKind::Reset
        | FaultKind::Delay => inject_in_links(world, kind, host, (short_us, long_us), &mut random),
    }
}

fn inject_in_links(
    world: &mut World,
    kind: FaultKind,
    host: usize,
    (short_us, long_us): (u64, u64),
    random: &mut Random,
) {
    world.hit(kind);
    let hosts = world.hosts_count();
    let other = (host + 1 + random.index(hosts - 1)) % hosts;
    match kind {
        FaultKind::FlappingLink => {
            let times = 2 + random.below(4);
            for turn in 0..times {
                let begins_us = turn * 2 * short_us / times;
                world.close_later(begins_us, (host, other), short_us / times);
                world.close_later(begins_us, (other, host), short_us / times);
            }
        }
        FaultKind::Reset => world.reset(host, other),
        FaultKind::Delay => world.delay_links(host, long_us, short_us / 4),
        _ => {
            let sides = draw_sides(kind, hosts, host, random);
            partition(world, kind, &sides, long_us);
        }
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
