//! Hostile bytes for every decoder: valid samples of every kind, changed in ways that follow from
//! one number, the seed.
//!
//! Owns the table of decoders ([`targets`]), the samples, the changes and what every decoder is
//! held to: no panic, an answer in time, memory bounded by the input's length, and where canonical
//! bytes are demanded, bytes that come out as they went in. Never opens a socket. Called
//! by the program `fuzz` and by `tests/decoders.rs`.

pub mod counting;
pub mod mutate;
pub mod samples;
pub mod targets;
mod watch;

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::simulator::random::Random;
use targets::{Answer, Target};
use watch::Watch;

/// What a decoder may allocate at once: this much,
pub const MEMORY_BYTES_BASE: usize = 64 * 1024;
/// and so many bytes for each byte of its input. A label of three bytes becomes a node of a tree
/// and two texts of their own; nothing that is read grows more.
pub const MEMORY_BYTES_PER_BYTE: usize = 64;
/// What the library for OpenSSH's formats reserves for one field, by a length that it has only been
/// told; it takes none that is longer.
pub const SSH_FIELD_BYTES_MAX: usize = 1024 * 1024;
/// Decoders of those formats.
const SSH: [&str; 5] = ["signature", "public-key", "key-file", "genesis-signatures", "session"];
/// What a judge has before it knows anything: the parts of its maps, 24 KiB for each of nine.
const JUDGE_BYTES: usize = 256 * 1024;
/// Decoders whose input makes one.
const JUDGES: [&str; 1] = ["chunk"];
/// How long one input may take, on a machine that has other work too.
pub const INPUT_WAIT_MAX: Duration = Duration::from_secs(5);

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The first seed; each input has its own.
    pub first_seed: u64,
    /// At most so many inputs,
    pub inputs_max: u64,
    /// and none begun after this.
    pub span: Duration,
}

/// What was tried on one decoder.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Inputs.
    pub inputs: u64,
    /// Of these, how many were read.
    pub accepted: u64,
    /// The most that one of them allocated.
    pub most_bytes: usize,
    /// The longest that one of them took.
    pub longest: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { inputs, accepted, most_bytes, longest } = self;
        let kibibytes = most_bytes / 1024;
        write!(out, "{inputs:>9} inputs, {accepted:>8} read, ")?;
        write!(out, "at most {kibibytes:>6} KiB and {:>5} ms", longest.as_millis())
    }
}

/// An input that a decoder did not stand.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Which decoder.
    pub target: &'static str,
    /// The input's seed.
    pub seed: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, seed, what } = self;
        writeln!(out, "{target}, seed {seed}: {what}")?;
        write!(out, "again: {}", command(target, *seed))
    }
}

fn command(target: &str, seed: u64) -> String {
    format!(
        "cargo run -p dagger-tests --bin fuzz -- --target {target} --first-seed {seed} --inputs 1"
    )
}

thread_local! {
    static GIVING: Cell<bool> = const { Cell::new(false) };
}

/// Lets panics of decoders be told with their seeds, and nowhere else.
pub fn tell_panics_with_their_seeds() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !GIVING.get() {
            before(panic);
        }
    }));
}

/// The input of a seed for a target.
pub fn input_of(target: &Target, samples: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed, target.name);
    mutate::input(&mut random, target.form, samples)
}

/// Gives `bytes` to a decoder and holds it to everything.
///
/// # Errors
/// What it did not keep.
pub fn give(target: &Target, bytes: &[u8]) -> Result<(Answer, Tally), String> {
    let begin = Instant::now();
    GIVING.set(true);
    let (given, most_bytes) =
        counting::measure(|| catch_unwind(AssertUnwindSafe(|| (target.read)(bytes))));
    GIVING.set(false);
    let longest = begin.elapsed();
    let answer = given.map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("it panics: {}", text.unwrap_or_default())
    })??;
    let field = if SSH.contains(&target.name) { SSH_FIELD_BYTES_MAX } else { 0 };
    let judge = if JUDGES.contains(&target.name) { JUDGE_BYTES } else { 0 };
    let allowed = MEMORY_BYTES_BASE + field + judge + MEMORY_BYTES_PER_BYTE * bytes.len();
    if most_bytes > allowed {
        let length = bytes.len();
        return Err(format!("{most_bytes} bytes of memory for an input of {length} bytes"));
    }
    if longest > INPUT_WAIT_MAX {
        return Err(format!("it takes {longest:?} for {} bytes", bytes.len()));
    }
    let accepted = u64::from(answer == Answer::Accepted);
    Ok((answer, Tally { inputs: 1, accepted, most_bytes, longest }))
}

/// Tries a decoder with input after input.
///
/// # Errors
/// The first input that it does not stand.
///
/// # Panics
/// Memory is not counted, or a sample is refused: nothing would be shown then.
pub fn run(target: &'static Target, plan: Plan) -> Result<Tally, Failure> {
    assert!(counting::is_installed(), "this program does not count what it allocates");
    let samples = (target.samples)(samples::world());
    for (number, sample) in samples.iter().enumerate() {
        let answer = give(target, sample).map(|(answer, _)| answer);
        let name = target.name;
        assert_eq!(answer, Ok(Answer::Accepted), "{name}: sample {number} is refused");
    }
    let watch = Watch::start();
    let begin = Instant::now();
    let mut tally = Tally::default();
    for seed in plan.first_seed..plan.first_seed.saturating_add(plan.inputs_max) {
        if begin.elapsed() >= plan.span {
            break;
        }
        watch.begin(target.name, seed);
        let bytes = input_of(target, &samples, seed);
        let (_, one) =
            give(target, &bytes).map_err(|what| Failure { target: target.name, seed, what })?;
        tally.inputs += 1;
        tally.accepted += one.accepted;
        tally.most_bytes = tally.most_bytes.max(one.most_bytes);
        tally.longest = tally.longest.max(one.longest);
    }
    Ok(tally)
}
