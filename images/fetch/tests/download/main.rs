//! The helper as the agent starts it: a process with a socket for its standard input.
//!
//! Setting: the built program, servers on loopback that misbehave by script. Pinned: what is
//! fetched, what is kept, what is refused, and that nothing else is asked.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

mod https;
mod plain;
mod support;
