//! `dagger-dhcp`: answers guests that ask for their address.
//!
//! Owns where the socket comes from and what ends the process. Started by `dagger-dhcp.socket` with
//! the first question, or by the agent, as its child, where systemd does not run the host.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use dagger_net::dhcp::{End, GuestSocket, PORT, serve};
use dagger_net::told::{what_it_is, wrong_usage};
use listenfd::ListenFd;

const PROGRAM: &str = "dagger-dhcp";
const USAGE: &str = "\
Usage: dagger-dhcp [--bind]
Answers guests that ask for their address by DHCP on taps that dagger-net made,
each with the address that the ledger gave it. Keeps nothing, answers nobody
else; needs no capability but for the port.

Without --bind it answers by the socket that systemd hands over, and ends when
nobody has asked for a while. With --bind it binds UDP port 67 itself, beside
servers that share it, and ends with its standard input.

Options: --help, --version.
Exit codes: 0 nobody needs it any more; 1 it could not answer; 2 wrong usage.";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let done = match &words[..] {
        [] => by_systemd(),
        [option] if option == "--bind" => bound(),
        _ => match what_it_is(&words, PROGRAM, USAGE) {
            Some(end) => return end,
            None => return wrong_usage(PROGRAM, "unknown options", USAGE),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dagger-dhcp: {error}");
            ExitCode::FAILURE
        }
    }
}

fn by_systemd() -> io::Result<()> {
    let missing = || io::Error::other("systemd has handed over no UDP socket; see --help");
    let socket = ListenFd::from_env().take_udp_socket(0)?.ok_or_else(missing)?;
    serve(&GuestSocket::handed(socket)?, End::WhenIdle)
}

fn bound() -> io::Result<()> {
    let named = |error| io::Error::other(format!("UDP port {PORT}: {error}"));
    let socket = GuestSocket::bind().map_err(named)?;
    println!("ready");
    serve(&socket, End::With(io::stdin().as_fd()))
}
