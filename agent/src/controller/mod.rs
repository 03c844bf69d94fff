//! From what is wanted, seen and written down to the next step: the rules of this host for its machines.
//!
//! Owns every decision about a machine. Never touches one: it knows no clock, socket, file, thread or randomness. Called
//! by [`crate::machines`].

mod policy;

pub use policy::LocalPolicy;
