//! Tests of the whole: a simulator of the ledger under faults, the promises that every run is held to, and
//! the house rules.
//!
//! Owns what no single package can test alone. Never ships. Called by `make test` and by the programs beside it.

pub mod promise;
pub mod simulator;
pub mod tidy;
