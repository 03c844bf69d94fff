//! `dagger-net`: one request, one answer, the end.
//!
//! Owns where both are: standard input and output, which are one socket of the agent's; and where
//! the list of bridges is. Started by the agent, as its child, or by `dagger-net.socket`.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use dagger_net::apply::apply;
use dagger_net::bridges::LIST;
use dagger_net::request::{Answer, REQUEST_BYTES_MAX, Request};
use dagger_net::told::{what_it_is, wrong_usage};

const PROGRAM: &str = "dagger-net";
const USAGE: &str = "\
Usage: dagger-net [--bridges FILE]    reads a request on standard input, writes the answer to standard output
Makes, changes and removes the network cards of one guest; started by dagger-agent, needs CAP_NET_ADMIN.
FILE says on which bridges guests may be: /etc/dagger-net.conf unless named; without it on none. A line each, root's alone to
write: NAME BRIDGE [NETWORK], such as `lan br0`. With NETWORK guests have static addresses of it, and none by DHCP.
Options: --help, --version. Exit codes: 0 the request was answered, or refused in the answer; 1 there was nobody to answer;
2 wrong usage, or no request.";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let list = match &words[..] {
        [] => Path::new(LIST),
        [option, file] if option == "--bridges" => Path::new(file),
        _ => match what_it_is(&words, PROGRAM, USAGE) {
            Some(end) => return end,
            None => return wrong_usage(PROGRAM, "unknown options", USAGE),
        },
    };
    match serve(list) {
        Ok(Served::Answered) => ExitCode::SUCCESS,
        Ok(Served::NoRequest) => {
            wrong_usage(PROGRAM, "no request on standard input; the agent sends them", USAGE)
        }
        Err(error) => {
            eprintln!("dagger-net: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What became of it.
enum Served {
    Answered,
    NoRequest,
}

fn serve(list: &Path) -> io::Result<Served> {
    let mut bytes = Vec::new();
    let input = io::stdin();
    if !input.is_terminal() {
        input.lock().take(REQUEST_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    if bytes.is_empty() {
        return Ok(Served::NoRequest);
    }
    let answer = match serde_json::from_slice::<Request>(&bytes) {
        Ok(request) => apply(&request, list),
        Err(error) => Answer::Refused(format!("request_malformed: {error}")),
    };
    io::stdout().lock().write_all(&serde_json::to_vec(&answer)?)?;
    Ok(Served::Answered)
}
