//! The commands that speak with agents, one file for each group.
//!
//! Owns the arguments, the requests and the words of each group. Never keeps anything. Called by
//! `main`.

pub(crate) mod account;
pub(crate) mod console;
mod dry_run;
pub(crate) mod events;
pub(crate) mod follow;
mod fsck;
pub(crate) mod genesis;
pub(crate) mod history;
pub(crate) mod host;
pub(crate) mod image;
mod keys;
pub(crate) mod ledger;
mod lookup;
pub(crate) mod operator;
mod past;
pub(crate) mod payload;
mod prefix;
pub(crate) mod ssh;
mod stop_vm;
mod usage;
pub(crate) mod vm;
mod vm_boot;
mod vm_cards;
mod vm_copy;
mod vm_network;
mod vm_view;
pub(crate) mod volume;
mod volume_follow;
pub(crate) mod volume_snapshots;
pub(crate) mod why;

use std::time::{Duration, Instant};

use clap::{Args, CommandFactory, ValueEnum};
use dagger_payload::id::Generation;

use crate::arguments::Arguments;
use crate::failure::Failure;
use crate::session::{Session, Until};

/// How far a command that changes something follows its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wait {
    /// Durable on the host that took it
    Received,
    /// In its place for ever, judged by all hosts
    Ordered,
    /// Carried out, where a host has to carry something out; else as ordered
    Applied,
}

/// Options of the commands that change something.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChangeOptions {
    /// How far to wait
    #[arg(long, value_enum, default_value = "ordered")]
    pub(crate) wait: Wait,
    /// How long to wait at most
    #[arg(long, value_name = "SPAN", default_value = "300s", value_parser = crate::units::span)]
    pub(crate) timeout: Duration,
}

/// Which version of a thing a change is meant for.
#[derive(Debug, Clone, Args)]
pub(crate) struct Expected {
    /// Refuse unless what changes is still at this generation (`--json` of `ls` or `show` says it)
    #[arg(long = "expected-generation", value_name = "N")]
    number: Option<u64>,
}

impl Expected {
    pub(crate) fn generation(&self) -> Option<Generation> {
        self.number.map(Generation)
    }
}

impl ChangeOptions {
    /// When the waiting ends.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// How far the payload itself is followed.
    pub(crate) fn until(&self) -> Until {
        match self.wait {
            Wait::Received => Until::Received,
            Wait::Ordered | Wait::Applied => Until::Judged,
        }
    }
}

/// Prints a completion script.
pub(crate) fn completions(shell: clap_complete::Shell, session: &Session) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "daggerctl", &mut script);
    session.output.bytes(&script)
}

/// The first digits of a long id, enough to tell a few apart.
pub(crate) fn short(id: &impl std::fmt::Display) -> String {
    id.to_string().chars().take(12).collect()
}

/// Percent-encodes what stands in a path or query of a request.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
