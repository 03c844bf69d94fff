//! The agent of one host: it follows the ledger, serves developers, and works on the host's
//! machines. The daemon's `main` only starts what stands here.

pub mod actuator;
pub mod api;
pub mod clock;
pub mod configuration;
pub mod daemon;
pub mod downloads;
pub mod exports;
pub mod handover;
pub mod hypervisor;
pub mod inspection;
pub mod journal;
pub mod limits;
pub mod link;
pub mod machines;
pub mod metrics;
pub mod model;
pub mod name_servers;
pub mod network;
pub mod observation;
pub mod one_shot;
mod room;
mod service_manager;
pub mod submit;
mod turns;
pub mod verify;

/// The rules for machines: a package of its own, so that nothing impure can come in.
pub use dagger_controller as controller;
