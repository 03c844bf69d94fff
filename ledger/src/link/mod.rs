//! links
pub mod frames;
pub mod tls;
