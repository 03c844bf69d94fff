//! The simulator of machines: hosts with their controllers, from the order to the machine and back,
//! in one thread, in which one seed decides everything.
//!
//! Real are the judge, the controller with its journal's records and rules, the choice of what
//! concerns a host, and every signature. Simulated are the hypervisors and disks, the journal's
//! files, the way from the ledger to a host, and time. It injects faults and shows every event to
//! the promises. Never touches a clock, socket, file or thread. Called by the `sim-machines`
//! program and by tests.

mod court;
mod faults;
mod host;
mod life;
mod log;
mod metal;
mod owners;
pub mod promise;
mod steps;
mod strikes;
mod tally;
mod work;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dagger_payload::object::VmState;
use dagger_payload::volume::VolumeState;

pub use tally::{Summary, Tally};

use self::log::Log;
use self::promise::{Broken, Observed, Promises, Scene};
use self::world::World;
use crate::seeds::Simulator;
use crate::simulator::Verbosity;

/// Numbers of hosts that a run may have.
pub const HOSTS: [usize; 4] = [1, 2, 3, 4];

/// Time in which faults strike.
const FAULTS_MS: u64 = 150_000;
/// Time after the last fault in which everything must settle: longer than the longest wait of the
/// controller (ten minutes before an image is fetched again) and all that follows from it.
const SETTLE_MS: u64 = 1_500_000;
/// Time of quiet that is then watched, in which even the rarest wait comes to its end.
const QUIET_MS: u64 = 700_000;

/// A run that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "seed {seed} with {hosts} hosts at {at_ms} ms: {broken}\n\
     replay it with: cargo run -p dagger-tests --bin sim-machines -- --hosts {hosts} --first-seed {seed} --seeds 1 --log"
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
        Err(broken) => Err(Failure { seed, hosts, at_ms: world.now_ms, broken }),
    }
}

/// This simulator, as a program sees it.
pub struct Machines;

impl Simulator for Machines {
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
impl crate::hunt::Hunting for Machines {
    type Bug = dagger_controller::planted::Bug;

    const BUGS: &'static [Self::Bug] = &dagger_controller::planted::ALL;
    /// Enough for an offer to move on.
    const BUG_HOSTS: usize = 2;

    fn plant(bug: Option<Self::Bug>) {
        dagger_controller::planted::plant(bug);
    }

    fn promise(failure: &Failure) -> &'static str {
        failure.broken.promise
    }
}

/// A panic stops a real agent; here it ends the run and names its seed.
fn panicked() -> Broken {
    let detail = "something panicked (its message stands above)".to_owned();
    Broken { promise: "no_panic", host: 0, detail }
}

fn live(world: &mut World) -> Result<(), Broken> {
    world.run_until(FAULTS_MS)?;
    world.calm();
    world.run_until(FAULTS_MS + SETTLE_MS)?;
    world.observe(0, &Observed::QuietBegins)?;
    world.run_until(FAULTS_MS + SETTLE_MS + QUIET_MS)?;
    let (court, hosts, now_ms) = (&world.court, &world.hosts[..], world.now_ms);
    Promises::check_end(&Scene { court, hosts, host: 0, now_ms })
}

fn summary(world: &World) -> Summary {
    let vms = || world.court.vms.values();
    let volumes = || world.court.volumes.values();
    let of = |state: VmState| vms().filter(|vm| vm.state() == state).count();
    let degraded = volumes().filter(|volume| volume.state() == VolumeState::Degraded).count();
    Summary {
        log_hash: world.log.hash(),
        notes: world.log.notes,
        steps: world.steps,
        commits: world.court.releases.len(),
        vms: vms().count(),
        vms_degraded: of(VmState::Degraded),
        vms_deleted: of(VmState::Deleted),
        volumes: volumes().count(),
        volumes_degraded: degraded,
        accepted: world.court.accepted.clone(),
        faults: world.faults.iter().map(|(kind, n)| (format!("{kind:?}"), *n)).collect(),
    }
}

/// The kinds of faults that so many hosts can suffer: with one host no offer moves on.
pub fn possible_kinds(hosts: usize) -> Vec<String> {
    let kinds = faults::all().filter(|kind| hosts > 1 || *kind != faults::FaultKind::OfferLapsed);
    kinds.map(|kind| format!("{kind:?}")).collect()
}
