//! What the helper makes, in network namespaces of this machine. Needs root.

mod bridges;
mod client;
mod dhcp;
mod guests;
mod support;
