//! The simulator: a whole cluster in one thread, in which one seed decides everything.
//!
//! It runs the real consensus core of every host against simulated clocks, links, disks, judges and
//! users, injects faults, and shows every step to the promises. Never touches a clock, socket, file
//! or thread. Called by the `sim` program and by tests. Method: FoundationDB's simulation and
//! TigerBeetle's VOPR.

mod clocks;
mod device;
pub mod disk;
mod faults;
mod host;
mod judge;
mod keys;
mod liar;
mod life;
mod log;
mod members;
mod network;
pub(crate) mod random;
mod schedule;
mod settings;
mod snapshots;
mod storage;
mod tally;
mod traffic;
mod transaction;
mod users;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dagger_payload::id::AuthorIndex;

pub use log::Verbosity;
pub use tally::{Summary, Tally};

use self::faults::FaultKind;
use self::liar::LieKind;
use self::log::Log;
use self::schedule::SimulatedTime;
use self::world::World;
use crate::promise::Broken;
use crate::seeds::Simulator;

/// Numbers of hosts that a run may have.
pub const HOSTS: [usize; 6] = [1, 2, 3, 4, 7, 10];

/// Time after the last fault in which everything must settle, in microseconds.
const SETTLE_US: u64 = 60_000_000;
/// An epoch began after the first one.
const NEW_EPOCH: &str = "NewEpoch";
/// One began in which a host votes no more.
const MEMBER_LEFT: &str = "MemberLeft";

/// Bodies of events went.
const PRUNED: &str = "Pruned";
/// A host began from another one's snapshot.
const ADOPTED: &str = "BegunFromSnapshot";

/// Time of silence that is then watched, in microseconds: three times the pause between exchanges
/// and more.
const SILENCE_US: u64 = 100_000_000;

/// A run that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "seed {seed} with {hosts} hosts at {at_ms} ms: {broken}\n\
     replay it with: cargo run -p dagger-tests --bin sim -- --hosts {hosts} --first-seed {seed} --seeds 1 --log"
)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// How many hosts.
    pub hosts: usize,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// What.
    pub broken: Broken,
}

/// Runs one seed.
///
/// # Errors
/// The first broken promise.
pub fn run(seed: u64, hosts: usize, verbosity: Verbosity) -> Result<Summary, Failure> {
    let mut world = World::new(seed, hosts, Log::new(verbosity));
    let result = catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    match result.unwrap_or_else(|_| Err(panicked())) {
        Ok(()) => Ok(summary(&world)),
        Err(broken) => Err(Failure { seed, hosts, at_ms: world.now().milliseconds(), broken }),
    }
}

/// This simulator, as a program sees it.
pub struct Consensus;

impl Simulator for Consensus {
    type Summary = Summary;
    type Failure = Failure;
    type Tally = Tally;

    const HOSTS: &'static [usize] = &HOSTS;

    fn run(seed: u64, hosts: usize, verbosity: Verbosity) -> Result<Summary, Failure> {
        run(seed, hosts, verbosity)
    }

    fn log_hash(summary: &Summary) -> &str {
        &summary.log_hash
    }

    fn add(tally: &mut Tally, hosts: usize, summary: &Summary) {
        tally.add(hosts, summary);
    }

    fn too_rare(tally: &Tally) -> Vec<String> {
        tally.too_rare()
    }
}

#[cfg(feature = "planted-bugs")]
impl crate::hunt::Hunting for Consensus {
    type Bug = dagger_ledger_core::planted::Bug;

    const BUGS: &'static [Self::Bug] = &dagger_ledger_core::planted::ALL;
    /// The smallest that bears a liar.
    const BUG_HOSTS: usize = 4;

    fn plant(bug: Option<Self::Bug>) {
        dagger_ledger_core::planted::plant(bug);
    }

    fn promise(failure: &Failure) -> &'static str {
        failure.broken.promise
    }
}

/// A panic stops a real host; here it ends the run and names its seed.
fn panicked() -> Broken {
    let detail = "a host panicked (its message stands above)".to_owned();
    Broken { promise: "no_panic", host: AuthorIndex(0), detail }
}

fn live(world: &mut World) -> Result<(), Broken> {
    world.begin();
    let faults_end = SimulatedTime(world.settings().faults_us);
    world.run_until(faults_end)?;
    world.heal();
    let half = faults_end.plus_us(SETTLE_US / 2);
    world.run_until(half)?;
    world.confess();
    world.submit_again();
    let settled = half.plus_us(SETTLE_US / 2);
    world.run_until(settled)?;
    world.silence_begins()?;
    world.run_until(settled.plus_us(SILENCE_US))?;
    world.check_end()
}

fn summary(world: &World) -> Summary {
    let faults =
        world.fault_counts.iter().map(|(kind, count)| (format!("{kind:?}"), *count)).collect();
    let network = world.network_counts();
    let mut misdeeds = BTreeMap::from([
        ("LostSector".to_owned(), world.cuts.lost),
        ("TornSector".to_owned(), world.cuts.torn),
        ("ReorderedSector".to_owned(), world.cuts.reordered),
        ("Drop".to_owned(), network.dropped),
        ("Duplicate".to_owned(), network.duplicated),
        ("Reorder".to_owned(), network.reordered),
        (NEW_EPOCH.to_owned(), world.epochs_began()),
        (MEMBER_LEFT.to_owned(), world.members_left()),
        (PRUNED.to_owned(), world.snapshots.pruned),
        (ADOPTED.to_owned(), world.snapshots.adopted),
    ]);
    misdeeds.extend(world.lies().into_iter().map(|(kind, count)| (format!("{kind:?}"), count)));
    Summary {
        log_hash: world.log.hash(),
        steps: world.log.notes,
        received: world.received(),
        faults,
        misdeeds,
        liars: world.liars_count(),
        simulated_ms: world.now().milliseconds(),
    }
}

/// The kinds of faults and misdeeds that a cluster of so many hosts can suffer: with one host
/// nothing travels, with fewer than four nobody may lie. A split or a wedge takes a coincidence
/// that no hundred runs owe.
pub fn possible_kinds(hosts: usize) -> Vec<String> {
    let faults = FaultKind::possible(hosts).map(|kind| format!("{kind:?}"));
    let sectors = ["LostSector", "TornSector", "ReorderedSector"].map(str::to_owned);
    let network = ["Drop", "Duplicate", "Reorder"].map(str::to_owned);
    let network = network.into_iter().filter(|_| hosts > 1);
    let owed = |kind: &LieKind| !matches!(kind, LieKind::Split | LieKind::Wedge);
    let lies = LieKind::ALL.into_iter().filter(owed);
    let lies = lies.map(|kind| format!("{kind:?}"));
    let lies = lies.filter(|_| hosts > 3);
    let left = [MEMBER_LEFT].into_iter().filter(|_| hosts > 2);
    let adopted = [ADOPTED].into_iter().filter(|_| hosts > 1);
    let epochs = [NEW_EPOCH, PRUNED].into_iter().chain(left).chain(adopted).map(str::to_owned);
    faults.chain(sectors).chain(network).chain(lies).chain(epochs).collect()
}
