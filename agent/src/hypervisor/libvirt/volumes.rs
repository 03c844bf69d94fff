//! Volumes of a domain that runs: given to it and taken away while its guest goes on.
//!
//! Owns the order (what goes first, then what comes, then what grows) and the look afterwards: a
//! guest lets go of a disk when it likes, and until libvirt shows that it has, the disk is the
//! guest's. Only the running domain is changed: the lasting definition is written anew before each
//! start. Called by the libvirt implementation.

use std::collections::BTreeMap;
use std::path::PathBuf;

use virt::domain::Domain;
use virt::sys;

use super::{domain_xml, failed};
use crate::hypervisor::{GivenVolume, HypervisorError};

/// Gives the running `domain` these volumes and no other.
pub(super) fn give(domain: &Domain, volumes: &[GivenVolume]) -> Result<(), HypervisorError> {
    let wanted: BTreeMap<u8, PathBuf> =
        volumes.iter().map(|given| (given.slot, given.disk.clone())).collect();
    let mut seen = look(domain)?;
    for (slot, disk) in seen.iter().filter(|(slot, disk)| wanted.get(slot) != Some(disk)) {
        let device = domain_xml::volume_to_detach(*slot, disk).map_err(|error| refused(&error))?;
        // One that is being taken away already is an error too: what counts is the look below.
        let asked = domain.detach_device_flags(&device, sys::VIR_DOMAIN_AFFECT_LIVE);
        if let Err(error) = asked {
            tracing::debug!(%error, disk = %disk.display(), "libvirt does not detach");
        }
    }
    seen = look(domain)?;
    for given in volumes.iter().filter(|given| !seen.contains_key(&given.slot)) {
        let device = domain_xml::volume(given).map_err(|error| refused(&error))?;
        domain.attach_device_flags(&device, sys::VIR_DOMAIN_AFFECT_LIVE).map_err(failed)?;
    }
    for given in volumes {
        let device = domain_xml::volume_device(given.slot);
        let now = domain.block_info(&device, 0).map_err(failed)?;
        if now.capacity < given.size_bytes {
            let flags = sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES;
            domain.block_resize(&device, given.size_bytes, flags).map_err(failed)?;
        }
    }
    seen = look(domain)?;
    match seen.iter().find(|(slot, disk)| wanted.get(slot) != Some(disk)) {
        Some((_, disk)) => Err(HypervisorError::Failed(format!(
            "volume_busy: the guest has not let go of {}; unmount it there",
            disk.display()
        ))),
        None if seen == wanted => Ok(()),
        None => Err(HypervisorError::Failed("volume_absent: the machine lacks one".to_owned())),
    }
}

pub(super) fn look(domain: &Domain) -> Result<BTreeMap<u8, PathBuf>, HypervisorError> {
    let xml = domain.xml_desc(0).map_err(failed)?;
    domain_xml::read_volumes(&xml).map_err(|error| refused(&error))
}

fn refused(error: &dyn std::fmt::Display) -> HypervisorError {
    HypervisorError::Failed(error.to_string())
}
