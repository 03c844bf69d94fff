//! `daggerctl vm console`: sits down at a guest's serial console.
//!
//! Owns the terminal's raw mode and the detach key. Never interprets what the guest says. Called by
//! `commands::vm`.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;

use clap::Args;
use futures_util::{SinkExt, StreamExt};
use hyper::body::Bytes;
use nix::sys::termios::{self, SetArg, Termios};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::lookup::find;
use super::vm::VmName;
use crate::client::Console;
use crate::failure::Failure;
use crate::limits::TYPED_WAITING_MAX;
use crate::progress::say;
use crate::session::Session;

pub(crate) const EXAMPLES: &str = "\
Examples:
  daggerctl vm console web-1
  daggerctl vm console web-1 --history 64KiB
  daggerctl vm console web-1 --log | less -R

Ctrl-] ends it; the guest does not notice. Several people may sit at one
console: all see the same, and all may type. Ask an agent of the VM's host
(--api); it needs no ledger.";

/// Ctrl-], as in telnet and virsh.
const DETACH: u8 = 0x1d;

/// Arguments of `vm console`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConsoleArguments {
    /// Which VM.
    #[command(flatten)]
    name: VmName,
    /// How much of what the guest said before is shown first, for example 64KiB
    #[arg(long, value_name = "SIZE", value_parser = crate::units::bytes)]
    history: Option<u64>,
    /// Only show what the guest said, also of one that is switched off
    #[arg(long)]
    log: bool,
}

/// Runs the command.
pub(crate) async fn run(arguments: &ConsoleArguments, session: &Session) -> Result<(), Failure> {
    let view = find(session, &arguments.name.vm).await?;
    let mut path = format!("/v1/vms/{}/console", view.vm.id);
    if let Some(bytes) = arguments.history {
        path.push_str(&format!("?history_bytes={bytes}"));
    }
    if arguments.log {
        let said = session.client.console_log(&path).await?;
        return write_out(&said);
    }
    let console = session.client.console(&path).await?;
    let host = view.host_name.map_or_else(String::new, |host| format!(" on {host}"));
    say(&format!("console of {}{host}; Ctrl-] ends it", view.vm.name));
    let ended = sit(console).await;
    say("");
    match ended? {
        Ended::Detached => {
            say("detached; the VM runs on");
            Ok(())
        }
        Ended::ByHost(reason) => {
            say(&reason);
            Ok(())
        }
    }
}

/// How sitting at a console ended.
enum Ended {
    /// The user left.
    Detached,
    /// The other side closed, and said this.
    ByHost(String),
}

fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(bytes).and_then(|()| out.flush());
    written.map_err(|error| Failure::broken(format!("cannot write to standard output: {error}")))
}

/// The terminal hands over every key as it is; put back as it was when dropped.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Nothing, when standard input is no terminal.
    fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(stdin.as_fd()).ok()?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

/// What is typed, until its end; a thread of its own, because a terminal can only be waited for.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(TYPED_WAITING_MAX);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut bytes = [0; 1024];
        while let Ok(count @ 1..) = stdin.read(&mut bytes) {
            if sender.blocking_send(bytes[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn sit(console: Console) -> Result<Ended, Failure> {
    let (mut to_guest, mut from_guest) = console.split();
    let _raw = RawTerminal::enter();
    let mut typed = typed();
    let mut typing = true;
    let lost = |error: &dyn std::fmt::Display| {
        Failure::unavailable(
            "console_lost",
            format!("the connection to the console broke: {error}"),
            "The VM is not touched by this. Try again.",
        )
    };
    loop {
        tokio::select! {
            message = from_guest.next() => match message {
                Some(Ok(Message::Binary(said))) => write_out(&said)?,
                Some(Ok(Message::Close(frame))) => return Ok(Ended::ByHost(reason(frame))),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(&error)),
                None => return Err(lost(&"it ended without a word")),
            },
            keys = typed.recv(), if typing => match keys {
                Some(keys) => {
                    let (keys, detach) = until_detach(&keys);
                    if !keys.is_empty() {
                        let keys = Message::Binary(Bytes::copy_from_slice(keys));
                        to_guest.send(keys).await.map_err(|error| lost(&error))?;
                    }
                    if detach == Detach::Now {
                        // Whether the other side still hears it does not matter any more.
                        let _ = to_guest.close().await;
                        return Ok(Ended::Detached);
                    }
                }
                // Nobody types any more; what the guest says is still shown.
                None => typing = false,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detach {
    No,
    Now,
}

/// The keys before the detach key, and whether it was there.
fn until_detach(keys: &[u8]) -> (&[u8], Detach) {
    match keys.iter().position(|key| *key == DETACH) {
        Some(at) => (&keys[..at], Detach::Now),
        None => (keys, Detach::No),
    }
}

fn reason(frame: Option<CloseFrame>) -> String {
    let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
    if reason.is_empty() { "the agent closed the console".to_owned() } else { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_before_the_detach_key_still_reach_the_guest() {
        assert_eq!(until_detach(b"ls\r"), (&b"ls\r"[..], Detach::No));
        assert_eq!(until_detach(b"ls\x1dmore"), (&b"ls"[..], Detach::Now));
        assert_eq!(until_detach(b"\x1d"), (&b""[..], Detach::Now));
    }
}
