//! The hand-over of the seal key from processor (server) to agent (client), over a socket that the
//! ledger cannot open.
//!
//! The processor sends one [`SealKey`] as soon as the agent connects, and keeps the connection
//! open: its end tells the agent that the processor is gone and that the key with it counts no
//! more.

use dagger_payload::id::ClusterId;
use dagger_payload::key::PublicKey;
use minicbor::{Decode, Encode};

/// The key that seals releases during this processor's life.
#[derive(Debug, Clone, Encode, Decode)]
pub struct SealKey {
    /// The processor's cluster.
    #[n(0)]
    pub cluster: ClusterId,
    /// The public half.
    #[n(1)]
    pub key: PublicKey,
}
