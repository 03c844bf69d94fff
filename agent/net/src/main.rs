//! `dagger-net`: one request, one answer, the end.
//!
//! Owns where both are: standard input and output, which are one socket of the agent's. Started by
//! the agent, as its child, or by `dagger-net.socket`.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::process::ExitCode;

use dagger_net::apply::apply;
use dagger_net::request::{Answer, REQUEST_BYTES_MAX, Request};

const USAGE: &str = "\
Usage: dagger-net    reads a request on standard input, writes the answer to standard output
Makes, changes and removes the network card of one guest; started by dagger-agent, needs CAP_NET_ADMIN.";

fn main() -> ExitCode {
    if std::env::args().len() > 1 {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    }
    let done = answer(io::stdin().lock()).and_then(|answer| io::stdout().lock().write_all(&answer));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dagger-net: {error}");
            ExitCode::FAILURE
        }
    }
}

fn answer(request: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    request.take(REQUEST_BYTES_MAX).read_to_end(&mut bytes)?;
    let answer = match serde_json::from_slice::<Request>(&bytes) {
        Ok(request) => apply(&request),
        Err(error) => Answer::Refused(format!("request_malformed: {error}")),
    };
    Ok(serde_json::to_vec(&answer)?)
}
