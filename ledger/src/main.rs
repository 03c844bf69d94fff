//! The daemon's `main`. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    dagger_ledger::program::main(std::env::args_os())
}
