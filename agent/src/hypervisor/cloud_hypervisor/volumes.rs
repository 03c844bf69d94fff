//! Volumes of a machine that runs: given to it, taken away and grown while its guest goes on.
//!
//! Owns the order (what goes first, then what comes, then what grows) and the look afterwards. The
//! process only asks the guest to let go: until the device is out of its tree the volume is in use,
//! and a tree that is not told says nothing. Each step may be repeated: what an agent that died
//! left behind is a link that names no disk of the machine, and goes at the next look. Only the
//! running machine is changed: the lasting definition is written anew before each start. Called by
//! the implementation.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Instant;

use dagger_images::files;
use dagger_images::header::read_volume;

use super::api::{Api, ApiError};
use super::attached::Attached;
use super::limits::{ASK_WAIT_MAX, EJECT_LOOK_EVERY, EJECT_WAIT_MAX, HOT_WAIT_MAX};
use super::shapes::{DeviceId, DiskSize, State, VmInfo, volume_disk, volume_id};
use crate::hypervisor::{GivenVolume, HypervisorError};

/// One machine that runs.
pub(super) struct Running<'a> {
    pub(super) api: Api,
    pub(super) attached: &'a Attached,
    /// Opens a disk to whom the process runs as.
    pub(super) share: &'a dyn Fn(&Path) -> io::Result<()>,
}

/// What a machine has in its places for volumes.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// The names of the disks.
    has: BTreeMap<u8, OsString>,
    /// The places of which the guest was asked to let go, and has not.
    leaving: Vec<u8>,
    state: State,
}

impl Running<'_> {
    /// Gives the machine these volumes and no other, in their sizes.
    pub(super) fn give(&self, volumes: &[GivenVolume]) -> Result<(), HypervisorError> {
        let wanted: BTreeMap<u8, OsString> =
            volumes.iter().map(|given| (given.slot, name_of(&given.disk))).collect();
        let changed = self.change(volumes, &wanted);
        let seen = self.sweep()?;
        changed?;
        match seen.leaving.first() {
            Some(slot) => Err(HypervisorError::Failed(format!(
                "volume_busy: the guest has not let go of its volume {slot}; unmount it there, or \
                 reboot or stop the VM"
            ))),
            None if seen.has == wanted => Ok(()),
            None => Err(HypervisorError::Failed("volume_absent: the machine lacks one".to_owned())),
        }
    }

    fn change(
        &self,
        volumes: &[GivenVolume],
        wanted: &BTreeMap<u8, OsString>,
    ) -> Result<(), HypervisorError> {
        let seen = self.look()?;
        let others = seen.has.iter().filter(|(slot, disk)| wanted.get(slot) != Some(disk));
        let going: Vec<u8> = others.map(|(slot, _)| *slot).collect();
        // Of what it was asked for before it is asked again: releases differ in whether they take
        // that, and what counts is the look.
        for slot in going.iter().chain(&seen.leaving) {
            let device = DeviceId { id: volume_id(*slot) };
            let asked = self.api.put_json("vm.remove-device", &device, HOT_WAIT_MAX);
            if let Err(error) = asked {
                tracing::debug!(%error, slot, "the process does not ask for a volume");
            }
        }
        let seen = self.wait_gone()?;
        for given in volumes {
            if !seen.has.contains_key(&given.slot) && !seen.leaving.contains(&given.slot) {
                self.attach(given)?;
            }
        }
        let seen = self.look()?;
        let here = volumes.iter().filter(|given| seen.has.contains_key(&given.slot));
        here.into_iter().try_for_each(|given| self.grow(given))
    }

    /// The link first: a disk that the machine was told of is opened again by its path whenever its
    /// guest resets.
    fn attach(&self, given: &GivenVolume) -> Result<(), HypervisorError> {
        let link = self.attached.link_of(&given.disk);
        let linked = (self.share)(&given.disk).and_then(|()| self.attached.link(&link));
        linked.map_err(|error| HypervisorError::Failed(error.to_string()))?;
        self.tell("vm.add-disk", &volume_disk(given, self.attached))
    }

    /// Larger, and never smaller: of some disks the process would cut the end off without a word.
    fn grow(&self, given: &GivenVolume) -> Result<(), HypervisorError> {
        if size_bytes(&given.disk)? >= given.size_bytes {
            return Ok(());
        }
        let size = DiskSize { id: volume_id(given.slot), desired_size: given.size_bytes };
        self.tell("vm.resize-disk", &size)?;
        match size_bytes(&given.disk)? {
            now if now >= given.size_bytes => Ok(()),
            now => Err(HypervisorError::Failed(format!(
                "volume_small: a volume was to have {} bytes and has {now}",
                given.size_bytes
            ))),
        }
    }

    /// Removes the links that nothing has open, and says what the machine has.
    fn sweep(&self) -> Result<Seen, HypervisorError> {
        let info = self.ask()?;
        let seen = seen(&info)?;
        // Which disk a device that leaves has open is not told: while there is one, all stay.
        if seen.leaving.is_empty() {
            let names = info.disks().iter().map(|disk| name_of(disk)).collect();
            let swept = self.attached.keep_only(&names);
            swept.map_err(|error| HypervisorError::Failed(error.to_string()))?;
        }
        Ok(seen)
    }

    /// Gives the guest a moment to let go.
    fn wait_gone(&self) -> Result<Seen, HypervisorError> {
        let end = Instant::now() + EJECT_WAIT_MAX;
        loop {
            let seen = self.look()?;
            // A paused guest lets go of nothing.
            let is_over = Instant::now() >= end || seen.state == State::Paused;
            if seen.leaving.is_empty() || is_over {
                return Ok(seen);
            }
            std::thread::sleep(EJECT_LOOK_EVERY);
        }
    }

    fn look(&self) -> Result<Seen, HypervisorError> {
        seen(&self.ask()?)
    }

    fn ask(&self) -> Result<VmInfo, HypervisorError> {
        let unknown = |why: String| HypervisorError::Unavailable(why);
        let answer = self.api.get("vm.info", ASK_WAIT_MAX);
        let answer = answer.map_err(|error| unknown(error.to_string()))?;
        serde_json::from_slice(&answer).map_err(|error| unknown(error.to_string()))
    }

    fn tell(&self, what: &str, body: &impl serde::Serialize) -> Result<(), HypervisorError> {
        let failed = |error: ApiError| HypervisorError::Failed(error.to_string());
        self.api.put_json(what, body, HOT_WAIT_MAX).map_err(failed)
    }
}

fn seen(info: &VmInfo) -> Result<Seen, HypervisorError> {
    let has: BTreeMap<u8, OsString> =
        info.volumes().into_iter().map(|(slot, disk)| (slot, name_of(&disk))).collect();
    let devices = info.volume_devices().ok_or_else(|| {
        HypervisorError::Failed("devices_unknown: the process does not tell its devices".to_owned())
    })?;
    let leaving = devices.into_iter().filter(|slot| !has.contains_key(slot)).collect();
    Ok(Seen { has, leaving, state: info.state })
}

fn name_of(disk: &Path) -> OsString {
    disk.file_name().unwrap_or_default().to_owned()
}

fn size_bytes(disk: &Path) -> Result<u64, HypervisorError> {
    let unread = |why: String| HypervisorError::Failed(format!("volume_unread: {why}"));
    let file = files::open_regular(disk).map_err(|error| unread(error.to_string()))?;
    let volume = read_volume(&file).map_err(|error| unread(error.to_string()))?;
    Ok(volume.virtual_size_bytes)
}
