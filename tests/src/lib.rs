//! Tests of the whole: simulators of the ledger and of machines under faults, the promises that
//! every run is held to, hostile bytes for every decoder, a load generator, endurance runs of real
//! processes, the house rules, and machines with systemd to install into.
//!
//! Owns what no single package can test alone. Never ships. Called by `make test` and by the
//! programs beside it.

pub mod built;
pub mod cluster;
pub mod endure;
pub mod fuzz;
pub mod hammer;
#[cfg(feature = "planted-bugs")]
pub mod hunt;
pub mod ledgers;
pub mod libvirtd;
pub mod machines_simulator;
pub mod nspawn;
pub mod promise;
pub mod seeds;
pub mod simulator;
pub mod tidy;
