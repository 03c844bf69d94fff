//! The one-shot helper `dagger-console`: opens one console's file for the agent.
//!
//! libvirt's daemon writes what guests say into files of root's. Who answers an API must not have
//! the capability to read any file of the host, so the opening is done here:
//!
//! * [`open`]: which file is handed out, and which is refused.
//! * [`conversation`]: the request and the answer, with the open file at its side.
//!
//! Never reads what a guest said, and never writes. Called by `main`.
#![forbid(unsafe_code)]

pub mod conversation;
pub mod limits;
pub mod open;
