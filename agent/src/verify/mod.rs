//! Whether what the ledger says may be acted on: seals, the agent's own chain of commit ends, and
//! quorum evidence.
//!
//! Owns these checks and their memory. Pure but for [`mark`], which keeps the highest attested
//! commit in a file. Never opens a connection and never looks into an object. Called by
//! [`crate::link::releases`].

pub mod chain;
mod epoch;
pub mod mark;
pub mod quorum;
pub mod reader;
