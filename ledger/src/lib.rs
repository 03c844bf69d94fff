//! The ledger: gossips signed events with the other operators' ledgers, agrees with them on one
//! order, keeps everything, and delivers what was ordered to the processor and then to the agent.
//!
//! ```text
//! peers <── link ──> driver ── inputs ──> core (dagger-ledger-core) ── outputs ──> driver
//!                      │                                                            │
//!                      └──────────────── store (LMDB), witness <────────────────────┤
//! agent <── delivery ──> processor                        ordered commits <─────────┘
//! ```
//!
//! Owns the shells around the consensus core: links, store, driver, delivery and the transfer of
//! snapshots. Never judges a
//! payload and never reads one. Called by `main` and by tests.
#![forbid(unsafe_code)]

pub mod configuration;
pub mod daemon;
pub mod delivery;
pub mod driver;
pub mod exit;
pub mod limits;
pub mod link;
pub mod mend;
pub mod program;
pub mod seats;
pub mod store;
pub mod transfer;
