//! The comms bus: local streams over Unix sockets between the three daemons of one host. The one
//! place where their conversations are typed.
//!
//! ```text
//! agent  ── requests ──> ledger ── admissions, judgement ──> processor
//! agent  <── releases ── ledger                                  │
//! agent  <───────────────────── seal key ────────────────────────┘
//! ```
//!
//! Owns framing, the first message of each conversation, windows and the messages. Holds nothing
//! that must survive and never decides. Each socket connects exactly one pair of daemons and is
//! guarded by the file system (a group that only this pair shares). Called by the three daemons.
#![forbid(unsafe_code)]

pub mod connection;
pub mod handed;
pub mod judging;
pub mod ledger;
pub mod limits;
pub mod listener;
pub mod seal;
pub mod setup;

pub use connection::{BusError, Connection, Receiver};
