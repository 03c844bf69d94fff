//! The agent's ledger-facing half against a **fake** ledger and a **fake** processor: they speak
//! the real conversations over real Unix sockets, with real signatures, but judge nothing and lie
//! where a test wants it.

mod agent;
mod archive;
mod bad_input;
mod changes;
mod clocks;
mod consoles;
mod document;
mod door;
mod epochs;
mod events;
mod exports;
mod fakes;
mod fsck;
mod http;
mod images;
mod lagging;
mod local_stops;
mod log;
mod lookups;
mod metrics;
mod proofs;
mod reader;
mod reports;
mod sessions;
mod support;
mod trust;
mod usage;
mod volumes;
