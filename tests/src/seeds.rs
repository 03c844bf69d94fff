//! Many seeds of a simulator, on all processors: what the programs of both simulators share.
//!
//! Owns which seeds are run, their order, and what is said of them. Never looks into a run. Called
//! by the programs `sim` and `sim-machines`, and by tests.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use crate::simulator::Verbosity;

/// A simulator, as a program sees it.
pub trait Simulator {
    /// What a run did.
    type Summary: Send;
    /// A run that broke a promise; says how to replay it.
    type Failure: Display + Send;
    /// Sums over many runs.
    type Tally: Default + Display;

    /// Numbers of hosts that a run may have.
    const HOSTS: &'static [usize];

    /// Runs one seed.
    ///
    /// # Errors
    /// The first broken promise.
    fn run(seed: u64, hosts: usize, verbosity: Verbosity) -> Result<Self::Summary, Self::Failure>;

    /// Hash over everything that happened.
    fn log_hash(summary: &Self::Summary) -> &str;

    /// Adds a run.
    fn add(tally: &mut Self::Tally, hosts: usize, summary: &Self::Summary);

    /// What was hit too rarely to say anything about it.
    fn too_rare(tally: &Self::Tally) -> Vec<String>;
}

/// Which seeds are run, and how.
#[derive(Debug, clap::Args)]
pub struct Seeds {
    /// How many seeds to run.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    pub first_seed: u64,
    /// How many to run at a time; without it, as many as there are processors.
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Print a line for each step, on standard error, one seed at a time.
    #[arg(long)]
    log: bool,
    /// Go on after a failure, and count.
    #[arg(long)]
    keep_going: bool,
    /// Print each run's log hash.
    #[arg(long)]
    hashes: bool,
}

impl Seeds {
    /// How many run at a time.
    pub fn jobs(&self) -> NonZeroUsize {
        match self.jobs {
            _ if self.log => NonZeroUsize::MIN,
            Some(jobs) => jobs,
            None => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }

    /// Runs them, in clusters of `hosts`, or of each size in turn, and says what came of it.
    pub fn run<S: Simulator>(&self, hosts: Option<usize>) -> ExitCode {
        let begin = Instant::now();
        let verbosity = if self.log { Verbosity::Lines } else { Verbosity::Quiet };
        let sizes = hosts.map_or(S::HOSTS.to_vec(), |hosts| vec![hosts]);
        let (mut tally, mut failed) = (S::Tally::default(), 0_u64);
        let seeds = self.first_seed..self.first_seed.saturating_add(self.seeds);
        let run = |seed| sizes.iter().map(|hosts| S::run(seed, *hosts, verbosity)).collect();
        in_order(seeds, self.jobs(), run, |seed, results: Vec<_>| {
            for (hosts, result) in sizes.iter().zip(results) {
                match result {
                    Ok(summary) => {
                        if self.hashes {
                            println!("{seed} {hosts} {}", S::log_hash(&summary));
                        }
                        S::add(&mut tally, *hosts, &summary);
                    }
                    Err(failure) => {
                        println!("{failure}");
                        failed += 1;
                        if !self.keep_going {
                            return ControlFlow::Break(());
                        }
                    }
                }
            }
            ControlFlow::Continue(())
        });
        if failed > 0 && !self.keep_going {
            return ExitCode::FAILURE;
        }
        print!("{tally}");
        println!("{failed} failed, {:.1} s", begin.elapsed().as_secs_f64());
        let rare = S::too_rare(&tally);
        for rare in &rare {
            println!("too rare: {rare}");
        }
        ExitCode::from(u8::from(failed > 0 || !rare.is_empty()))
    }
}

/// The number of hosts that a program was asked for.
///
/// # Errors
/// Which there are.
pub fn parse_hosts<S: Simulator>(text: &str) -> Result<usize, String> {
    let hosts = text.parse().map_err(|_| "not a number".to_owned())?;
    if S::HOSTS.contains(&hosts) { Ok(hosts) } else { Err(format!("choose one of {:?}", S::HOSTS)) }
}

/// Does `work` for each of `numbers`, so many at a time, and shows the results in order until
/// enough were seen.
pub fn in_order<T: Send>(
    numbers: Range<u64>,
    jobs: NonZeroUsize,
    work: impl Fn(u64) -> T + Sync,
    mut see: impl FnMut(u64, T) -> ControlFlow<()>,
) {
    let (next, enough) = (AtomicU64::new(numbers.start), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            let sender = sender.clone();
            scope.spawn(|| {
                let sender = sender;
                while !enough.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end || sender.send((number, work(number))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut due, mut early) = (numbers.start, BTreeMap::new());
        for (number, result) in receiver {
            early.insert(number, result);
            while let Some(result) = early.remove(&due) {
                if see(due, result).is_break() {
                    enough.store(true, Ordering::Relaxed);
                    return;
                }
                due += 1;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_end_where_enough_was_seen() {
        for jobs in [1, 3] {
            let jobs = NonZeroUsize::new(jobs).expect("above 0");
            let mut seen = Vec::new();
            in_order(
                5..10_000,
                jobs,
                |number| number * 2,
                |number, double| {
                    seen.push((number, double));
                    if number == 40 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                },
            );
            assert_eq!(seen, (5..=40).map(|number| (number, 2 * number)).collect::<Vec<_>>());
        }
    }
}
