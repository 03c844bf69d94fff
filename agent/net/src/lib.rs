//! The helper that connects guests: the one program with CAP_NET_ADMIN. It takes one typed request,
//! carries it out, answers, and ends. Beside it, in a program without any capability, what answers
//! guests that ask for their address ([`dhcp`]).
//!
//! Owns the words of requests and answers, the names of what it makes, and the making. Never
//! touches an interface or a table whose name it did not make from ids, and believes no request:
//! everything is checked again. Started by the agent, which has neither network nor capability.
#![forbid(unsafe_code)]

pub mod apply;
pub mod bridge_rules;
pub mod claim;
pub mod command;
pub mod dhcp;
pub mod flows;
mod limits;
pub mod list;
pub mod names;
pub mod offer;
pub mod outward;
pub mod request;
pub mod rules;
pub mod told;
