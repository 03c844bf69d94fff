//! Gives hostile bytes to every decoder, and repeats an input that one of them did not stand.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use dagger_tests::fuzz::counting::Counting;
use dagger_tests::fuzz::targets::{self, Target};
use dagger_tests::fuzz::{self, Plan};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Changes valid bytes of every kind and gives them to the decoders of all daemons.
///
/// Fails when one of them panics, hangs, allocates more than its input is worth, or takes bytes of
/// a digested form that it would write otherwise. The seed and the command that repeats the input
/// are printed then.
///
/// Try: fuzz --target event --seconds 60 --first-seed 1000000
#[derive(Debug, Parser)]
struct Options {
    /// Which decoder, or all of them, one after the other.
    #[arg(long, default_value = "all")]
    target: String,
    /// How long for each decoder.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The first seed: each input has its own.
    #[arg(long, default_value_t = 0)]
    first_seed: u64,
    /// At most so many inputs for each decoder.
    #[arg(long, default_value_t = u64::MAX)]
    inputs: u64,
    /// List the decoders.
    #[arg(long)]
    list: bool,
    /// Print the input of the first seed in hex, and give it to nobody.
    #[arg(long)]
    show: bool,
}

fn chosen(name: &str) -> Vec<&'static Target> {
    targets::all().filter(|target| name == "all" || target.name == name).collect()
}

fn show(target: &Target, seed: u64) {
    let samples = (target.samples)(fuzz::samples::world());
    let input = fuzz::input_of(target, &samples, seed);
    let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{hex}");
}

fn main() -> ExitCode {
    let options = Options::parse();
    let chosen = chosen(&options.target);
    if options.list || chosen.is_empty() {
        let names: Vec<_> = targets::all().map(|target| target.name).collect();
        println!("decoders: {}", names.join(", "));
        return ExitCode::from(u8::from(!options.list));
    }
    let plan = Plan {
        first_seed: options.first_seed,
        inputs_max: options.inputs,
        span: Duration::from_secs(options.seconds.max(1)),
    };
    fuzz::tell_panics_with_their_seeds();
    let mut failed = false;
    for target in chosen {
        if options.show {
            show(target, options.first_seed);
            continue;
        }
        match fuzz::run(target, plan) {
            Ok(tally) => println!("{:<20} {tally}", target.name),
            Err(failure) => {
                println!("{failure}");
                failed = true;
            }
        }
    }
    ExitCode::from(u8::from(failed))
}
