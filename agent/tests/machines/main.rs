//! The machines' half of the agent: the controller's rules, crashes at every step, and libvirt's
//! test driver.

// A test that meets what it does not expect has failed.
#![allow(clippy::unwrap_used)]

mod boot;
mod cards;
mod collector;
mod consoles;
mod controller;
mod crash;
mod crossing;
mod desk;
mod disks;
mod fetches;
mod kept;
mod libvirt;
mod local_stop;
mod one_shot;
mod quarantine_room;
mod sources;
mod storage;
mod support;
mod volumes;
