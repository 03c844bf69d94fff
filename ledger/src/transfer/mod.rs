//! Snapshots from one ledger to another: how a host begins whose missing history nobody has any
//! more.
//!
//! A host that asks for events whose bodies are pruned is sent an offer instead. It then asks for
//! parts, one at a time: the frontier of the snapshot's commit (`dagger_ledger_core::Frontier`),
//! the handovers from the genesis to its epoch, the snapshot's chunks, and the releases before it.
//! Nothing of that is believed because a peer sends it: each handover is certified by the voters of
//! the epoch before and shows the next ones, a quorum of those attests the state, the processor
//! finds that the chunks lead to it and that the releases are its history, and more members than
//! may lie name the same frontier.
//!
//! Owns both ends: `server` answers from the store, `client` asks, checks and stores, with what
//! `inbox` lets in and for as long as `pace` says. Never reads a chunk. Called by the driver, which
//! passes parts on, and by the daemon; what has been fetched goes to delivery's `judging`.

pub mod client;
pub mod inbox;
pub mod pace;
pub mod server;

use bytes::Bytes;
use dagger_ledger_core::Frontier;
use dagger_payload::snapshot::SnapshotOffer;
use minicbor::{Decode, Encode};
use tokio::sync::mpsc;

/// A piece of a frontier, of a page of past releases, or of a handover.
#[derive(Debug, Encode, Decode)]
pub struct Piece {
    /// Bytes of the whole.
    #[n(0)]
    pub total: u64,
    /// Those from the offset that was asked for.
    #[n(1)]
    #[cbor(with = "dagger_payload::codec::shared_bytes")]
    pub bytes: Bytes,
}

/// All parts are stored; the judge may begin.
pub struct Fetched {
    /// The snapshot, attested by a quorum.
    pub offer: SnapshotOffer,
    /// The frontier of its commit.
    pub frontier: Frontier,
    /// Where to say what came of it.
    pub outcome: mpsc::Sender<Outcome>,
}

/// What came of a fetched snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Judge and core go on from there.
    Begun,
    /// The chunks do not lead to the attested state.
    FalseSnapshot,
    /// The releases are not the history of that state.
    FalsePast,
    /// This host has come as far by itself meanwhile.
    NotAhead,
}
