//! `dagger-console`: one request, one answer, the end.
//!
//! Owns the command line, and nothing else. Started by `dagger-console.socket` for each connection
//! of the agent's. It takes no more than one option, so no library reads them.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::process::ExitCode;

use dagger_console::{conversation, open};

/// Where libvirt's daemon is told to write what guests say.
const DIRECTORY: &str = "/var/lib/dagger-storage/consoles";
const USAGE: &str = "\
Usage: dagger-console [--directory DIR]
Opens the file of one guest's console for dagger-agent, which may not: libvirt's
daemon writes it as root. Standard input is a Unix socket: a line of JSON comes
in, which names the VM; a line goes out, with the open file beside it. Started
by dagger-console.socket; needs CAP_DAC_READ_SEARCH.

DIR is where the files are: /var/lib/dagger-storage/consoles unless named.

Options: --help, --version.
Exit codes: 0 answered, also with a refusal; 1 it could not answer; 2 wrong
usage, or no request.";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let directory = match &words[..] {
        [] => Path::new(DIRECTORY),
        [option, directory] if option == "--directory" => Path::new(directory),
        [option] if option == "--help" || option == "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [option] if option == "--version" || option == "-V" => {
            println!("dagger-console {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        _ => return wrong_usage("unknown options"),
    };
    match serve(directory) {
        Ok(Served::Answered) => ExitCode::SUCCESS,
        Ok(Served::NoRequest) => wrong_usage("no request on standard input; the agent sends them"),
        Err(error) => {
            eprintln!("dagger-console: {error}");
            ExitCode::FAILURE
        }
    }
}

fn wrong_usage(what: &str) -> ExitCode {
    eprintln!("dagger-console: {what}\n{USAGE}");
    ExitCode::from(2)
}

/// What became of it.
enum Served {
    Answered,
    NoRequest,
}

fn serve(directory: &Path) -> io::Result<Served> {
    let Some(stream) = conversation::standard_input()? else { return Ok(Served::NoRequest) };
    let Some(request) = conversation::take_request(&stream)? else { return Ok(Served::NoRequest) };
    let (answer, file) = match request {
        Ok(request) => open::open(directory, &request),
        Err(answer) => (answer, None),
    };
    conversation::give(&stream, &answer, file.as_ref())?;
    Ok(Served::Answered)
}
