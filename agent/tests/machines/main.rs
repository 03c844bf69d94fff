//! The machines' half of the agent: the controller's rules, crashes at every step, and libvirt's test driver.

mod controller;
mod crash;
mod support;
