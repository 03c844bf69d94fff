//! What every part of dagger agrees on, byte for byte: ids, keys, signatures, payloads, events,
//! peer messages, objects of the judged state, and quorum arithmetic.
//!
//! Owns the formats and their limits. Never does I/O, reads a clock, starts a thread or draws
//! randomness; all functions are total over hostile input. Called by all three daemons, by
//! `daggerctl` and by offline verifiers.
#![forbid(unsafe_code)]

pub mod attested;
pub mod bridge;
pub mod carried;
pub mod changed_vm;
pub mod codec;
pub mod committee;
pub mod event;
pub mod genesis;
pub mod handover;
pub mod hashing;
pub mod history;
pub mod id;
pub mod key;
pub mod kind;
pub mod limits;
pub mod membership;
pub mod merkle;
pub mod name;
pub mod network;
pub mod object;
pub mod payload;
pub mod peer;
pub mod prediction;
pub mod proof;
pub mod proven;
pub mod refusal;
pub mod release;
pub mod roster;
pub mod session;
pub mod signed_bytes;
pub mod snapshot;
pub mod sshsig;
pub mod state_tree;
pub mod strict_json;
pub mod usage;
pub mod vm_state;
pub mod volume;
pub mod votes;
