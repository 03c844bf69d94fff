//! Answers guests that ask for their address (DHCP, RFC 2131).
//!
//! Owns no address and no lease: a question that comes by a guest's tap is answered with what that
//! tap says of its guest ([`crate::offer`]), again and again the same. What comes by anything else
//! is not answered. Needs no capability, opens no file but the tap's alias. Called by the program
//! `dagger-dhcp`.

pub mod answer;
mod limits;
pub mod message;
mod serve;
mod socket;
mod taps;
#[cfg(test)]
mod tests;

pub use serve::{End, serve};
pub use socket::{GuestSocket, PORT};
