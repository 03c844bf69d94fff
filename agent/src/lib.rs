//! The agent of one host: it follows the ledger, serves developers, and works on the host's machines. The daemon's
//! `main` only starts what stands here.

pub mod controller;
pub mod handover;
pub mod hypervisor;
pub mod journal;
pub mod machines;
