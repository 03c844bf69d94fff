//! `dagger-net`: one request, one answer, the end.
//!
//! Owns where both are: standard input and output, which are one socket of the agent's; and where
//! the operator's list is. Started by the agent, as its child, or by `dagger-net.socket`.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use dagger_net::apply::apply;
use dagger_net::list::LIST;
use dagger_net::request::{Answer, REQUEST_BYTES_MAX, Request};
use dagger_net::told::{what_it_is, wrong_usage};

const PROGRAM: &str = "dagger-net";
const USAGE: &str = "\
Usage: dagger-net [--bridges FILE]
Reads a request on standard input and writes the answer to standard output:
makes, changes and removes the network cards of one guest. Started by
dagger-agent; needs CAP_NET_ADMIN.

FILE says where guests may be and get to: /etc/dagger-net.conf unless named. A
line each, root's alone to write:
  NAME BRIDGE [NETWORK]   guests may be on this bridge, such as `lan br0`; with
                          NETWORK at static addresses of it, none by DHCP
  RESERVED NAME NETWORK   there, guests choose none of these addresses; never
                          the host's own, nor a gateway of the host
  OPEN NETWORK            guests with cards by NAT get there although it is
                          private (10/8, 172.16/12, 192.168/16, 100.64/10)
  CLOSED NETWORK          they do not get there although it is public
Without it guests are on no bridge, and private networks are closed. Link-local
addresses and the providers' own are never open.

Options: --help, --version.
Exit codes: 0 answered, also with a refusal; 1 it could not answer; 2 wrong
usage, or no request.";

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
