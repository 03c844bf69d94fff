//! `dagger-net`: one request, one answer, the end.
//!
//! Owns where both are: standard input and output, or, as a unit, two files that it opens under its
//! own user, so that nobody can make a mightier one write elsewhere. Started by the agent, directly
//! or as `dagger-net@`.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use dagger_net::apply::apply;
use dagger_net::request::{Answer, REQUEST_BYTES_MAX, Request};

const USAGE: &str = "\
Usage: dagger-net                 reads a request on standard input, writes the answer to standard output
       dagger-net --exchange PATH reads PATH.request, writes PATH.answer
Makes, changes and removes the network card of one guest; started by dagger-agent, needs CAP_NET_ADMIN.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match &arguments[..] {
        [] => on_standard_streams(),
        [word, path] if word == "--exchange" => on_files(path),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dagger-net: {error}");
            ExitCode::FAILURE
        }
    }
}

fn on_standard_streams() -> io::Result<()> {
    let answer = answer(io::stdin().lock())?;
    io::stdout().lock().write_all(&answer)
}

fn on_files(path: &str) -> io::Result<()> {
    let answer = answer(File::open(format!("{path}.request"))?)?;
    let (new, whole) = (format!("{path}.answer.new"), format!("{path}.answer"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // A new file of ours, never one that somebody put there.
    OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new)?.write_all(&answer)?;
    fs::rename(new, whole)
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
