//! Whose tap an interface is, as the kernel says.
//!
//! Owns the reading of interfaces' aliases. Nothing is remembered: a guest's card may go, and
//! another's come, between two questions. Called by [`super::serve`].

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use crate::names;
use crate::offer::{ALIAS_BYTES_MAX, Offer};

/// Where the kernel shows its interfaces.
const INTERFACES: &str = "/sys/class/net";

/// What the guest behind an interface is told; nothing if that is no tap of a card by NAT. Any
/// socket of the same network can be asked for the interface's name.
pub(super) fn offer_of(interface: u32, socket: impl AsFd) -> Option<Offer> {
    let name = rustix::net::netdevice::index_to_name(socket, interface).ok()?;
    if !name.starts_with(names::BEGINNING) {
        return None;
    }
    let mut alias = String::new();
    let file = File::open(Path::new(INTERFACES).join(&name).join("ifalias")).ok()?;
    file.take(ALIAS_BYTES_MAX as u64 + 1).read_to_string(&mut alias).ok()?;
    Offer::of_tap(&name, &alias)
}
