//! The processor: it verifies every payload before it is ordered and judges it after.
//!
//! The pure part (`verify`, `admit`, `predict`, `judge`) knows no clock, socket, file or thread;
//! the shell around it runs in a sandbox that has none of them either, but for the sockets that it
//! was handed. Called by the daemon's `main`, the simulator and offline verification.

pub mod admit;
pub mod configuration;
pub mod daemon;
pub mod judge;
mod limits;
pub mod predict;
pub mod sandbox;
pub mod verify;
