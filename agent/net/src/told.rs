//! What both helpers answer on their command lines beside their work: `--help`, `--version`, and
//! usage that is wrong.
//!
//! Owns where that goes and how the program ends then. Neither takes more than one option, so no
//! library reads them. Called by the two `main`s.

use std::ffi::OsString;
use std::process::ExitCode;

/// The end of the program, if `words` ask what it is.
pub fn what_it_is(words: &[OsString], program: &str, usage: &str) -> Option<ExitCode> {
    match words {
        [option] if option == "--help" || option == "-h" => println!("{usage}"),
        [option] if option == "--version" || option == "-V" => {
            println!("{program} {}", env!("CARGO_PKG_VERSION"));
        }
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// The end of a program that was called wrongly.
pub fn wrong_usage(program: &str, what: &str, usage: &str) -> ExitCode {
    eprintln!("{program}: {what}\n{usage}");
    ExitCode::from(2)
}
