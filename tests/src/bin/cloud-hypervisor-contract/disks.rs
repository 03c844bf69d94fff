//! Disks: what the process may open, what it holds, and how they come, go and grow.
//!
//! Owns them from the call to the guest's eject. Called by the monitor.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::machine::{Answer, Machine, Monitor};
use crate::take_lock;

/// Where a qcow2 of version 3 says in its last bit whether it was closed.
const UNCLOSED_OFFSET: u64 = 79;
/// Where a qcow2 of version 3 says how long its header is: what else it says follows.
const HEADER_LENGTH_OFFSET: u64 = 100;
/// Where a qcow2 says how large a cluster is, by its bits.
const CLUSTER_BITS_OFFSET: u64 = 20;
/// Where a qcow2 says how large the guest sees it.
const SIZE_OFFSET: u64 = 24;
/// Where a qcow2 says how many entries its first table has. (That of a test's disk is the rest of a
/// cluster of zeros.)
const TABLE_ENTRIES_OFFSET: u64 = 36;

/// What the process has bound itself to.
#[derive(Default)]
pub(crate) struct Confined(Option<Vec<PathBuf>>);

impl Confined {
    /// By a machine's own rules; and it may open the disks that it is created with, by file:
    /// whatever their paths are later.
    pub(crate) fn of(config: &Value) -> Self {
        if config["landlock_enable"] != true {
            return Self(None);
        }
        let list = |name: &str| config[name].as_array().cloned().unwrap_or_default();
        let rules = list("landlock_rules").into_iter().filter(|rule| rule["access"] == "rw");
        let paths =
            rules.chain(list("disks")).filter_map(|one| one["path"].as_str().map(PathBuf::from));
        Self(Some(paths.collect()))
    }

    fn may_open(&self, path: &Path) -> bool {
        self.0.as_ref().is_none_or(|rules| rules.iter().any(|rule| path.starts_with(rule)))
    }
}

/// A disk that a machine holds. A qcow2 says so of itself until it is closed, and for ever after a
/// kill; the next who opens it mends it, and forgets in which format the file below it is.
pub(crate) struct HeldDisk {
    id: String,
    file: File,
    is_qcow2: bool,
    /// Whether the guest was asked to let go of it.
    is_leaving: bool,
}

impl HeldDisk {
    pub(crate) fn open(disk: &Value, confined: &Confined) -> Result<Self, String> {
        let path = PathBuf::from(disk["path"].as_str().unwrap_or_default());
        let is_qcow2 = disk["image_type"] == "Qcow2";
        let is_written = disk["readonly"] != true;
        if is_qcow2 && disk["backing_files"] != true && is_overlay(&path) {
            return Err("Maximum disk nesting depth exceeded".to_owned());
        }
        if !confined.may_open(&path) {
            return Err("Failed to open disk: Permission denied (os error 13)".to_owned());
        }
        let file = OpenOptions::new().read(true).write(is_written).open(path);
        let file = file.map_err(|error| format!("Failed to open disk: {error}"))?;
        if is_written && !take_lock(&file) {
            let why = "Failed to get Write lock for disk image: The file is already locked";
            return Err(why.to_owned());
        }
        let id = disk["id"].as_str().unwrap_or("_disk").to_owned();
        let held = Self { id, file, is_qcow2: is_qcow2 && is_written, is_leaving: false };
        held.mend();
        held.mark(1);
        Ok(held)
    }

    /// What says more of itself, and can be marked.
    fn is_version_3(&self) -> bool {
        let mut version = [0; 4];
        let is_read = self.file.read_exact_at(&mut version, 4).is_ok();
        self.is_qcow2 && is_read && u32::from_be_bytes(version) == 3
    }

    fn mend(&self) {
        let (mut unclosed, mut length) = ([0; 1], [0; 4]);
        let read = self.file.read_exact_at(&mut unclosed, UNCLOSED_OFFSET);
        let read = read.and_then(|()| self.file.read_exact_at(&mut length, HEADER_LENGTH_OFFSET));
        if self.is_version_3() && read.is_ok() && unclosed != [0] {
            // Nothing follows its header any more.
            let _ = self.file.write_all_at(&[0; 8], u32::from_be_bytes(length).into());
        }
    }

    fn mark(&self, unclosed: u8) {
        if self.is_version_3() {
            let _ = self.file.write_all_at(&[unclosed], UNCLOSED_OFFSET);
        }
    }

    /// Cuts a raw file off without a word; a qcow2 only grows.
    fn resize(&self, size: u64) -> Result<(), String> {
        let failed = |error: std::io::Error| error.to_string();
        if !self.is_qcow2 {
            return self.file.set_len(size).map_err(failed);
        }
        let (mut now, mut bits) = ([0; 8], [0; 4]);
        self.file.read_exact_at(&mut now, SIZE_OFFSET).map_err(failed)?;
        self.file.read_exact_at(&mut bits, CLUSTER_BITS_OFFSET).map_err(failed)?;
        if size < u64::from_be_bytes(now) {
            return Err("shrinking QCOW2 images is not supported".to_owned());
        }
        // One table of the second level is one cluster of eight bytes for each cluster.
        let bits = u32::from_be_bytes(bits);
        let covered = 1_u64 << (2 * bits - 3);
        // The first table, the last thing in the file, gets the rest of its cluster.
        let length = self.file.metadata().map_err(failed)?.len();
        self.file.set_len(length.next_multiple_of(1 << bits)).map_err(failed)?;
        let entries = u32::try_from(size.div_ceil(covered)).map_err(|error| error.to_string())?;
        self.file.write_all_at(&entries.to_be_bytes(), TABLE_ENTRIES_OFFSET).map_err(failed)?;
        self.file.write_all_at(&size.to_be_bytes(), SIZE_OFFSET).map_err(failed)
    }
}

impl Drop for HeldDisk {
    fn drop(&mut self) {
        self.mark(0);
    }
}

impl Machine {
    /// What the guest has, and what it has not let go of.
    pub(crate) fn device_tree(&self) -> Value {
        let ids = self.disks.iter().map(|disk| (disk.id.clone(), json!({ "id": disk.id })));
        Value::Object(ids.collect())
    }
}

/// The answer to what did not work.
fn refused(what: &str, why: &str) -> Answer {
    Answer::error(500, &["Error from API", what, why])
}

impl Monitor {
    /// To a machine that is only created it is written down, without a look at it.
    pub(crate) fn add_disk(&mut self, body: &[u8]) -> Answer {
        const WHAT: &str = "The disk could not be added to the VM";
        let Ok(disk) = serde_json::from_slice::<Value>(body) else {
            return Answer::error(400, &["Error from API", "Failed to deserialize JSON"]);
        };
        let Some(config) = &mut self.config else { return refused(WHAT, "VM is not created") };
        let id = disk["id"].as_str().unwrap_or("_disk").to_owned();
        let known = config["disks"].as_array().into_iter().flatten();
        if known.into_iter().any(|disk| disk["id"] == *id) {
            return refused(WHAT, &format!("Identifier {id} is not unique"));
        }
        if let Some(machine) = &mut self.machine {
            if machine.disks.iter().any(|held| held.id == id) {
                return refused(WHAT, &format!("Identifier {id} is not unique"));
            }
            match HeldDisk::open(&disk, &self.confined) {
                Ok(held) => machine.disks.push(held),
                Err(why) => return refused(WHAT, &why),
            }
        }
        match &mut config["disks"] {
            Value::Array(disks) => disks.push(disk),
            disks => *disks = json!([disk]),
        }
        match self.machine {
            Some(_) => Answer::told(json!({ "id": id, "bdf": "0000:00:08.0" })),
            None => Answer::done(),
        }
    }

    /// Only asks the guest: its disk stays held until it ejects it. The configuration lacks it at
    /// once, and asking again is an error.
    pub(crate) fn remove_device(&mut self, body: &[u8]) -> Answer {
        let device = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let id = device["id"].as_str().unwrap_or_default();
        let unknown = refused("The device could not be removed from the VM", "Unknown device id");
        let Some(config) = &mut self.config else { return unknown };
        let Some(disks) = config["disks"].as_array_mut() else { return unknown };
        let before = disks.len();
        disks.retain(|disk| disk["id"] != id);
        if disks.len() == before {
            return unknown;
        }
        let held = self.machine.iter_mut().flat_map(|machine| &mut machine.disks);
        held.filter(|held| held.id == id).for_each(|held| held.is_leaving = true);
        Answer::done()
    }

    /// The guest lets go of what it was asked for.
    pub(crate) fn eject(&mut self) {
        let Some(machine) = &mut self.machine else { return };
        let gone: Vec<String> = machine
            .disks
            .extract_if(.., |disk| disk.is_leaving)
            .map(|disk| disk.id.clone())
            .collect();
        for id in gone {
            self.tell_of("vm", "device-removed", &json!({ "id": id, "bdf": "0000:00:08.0" }));
        }
    }

    pub(crate) fn resize_disk(&mut self, body: &[u8]) -> Answer {
        const WHAT: &str = "The disk could not be resized";
        let asked = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let held = self.machine.iter().flat_map(|machine| &machine.disks);
        let mut held = held.filter(|held| held.id == asked["id"] && !held.is_leaving);
        match (held.next(), asked["desired_size"].as_u64()) {
            (_, None) => Answer::error(400, &["Error from API", "Failed to deserialize JSON"]),
            (None, _) => refused(WHAT, "Unknown device id"),
            (Some(disk), Some(size)) => match disk.resize(size) {
                Ok(()) => Answer::done(),
                Err(why) => refused(WHAT, &why),
            },
        }
    }
}

/// Whether a qcow2 names a file below it.
fn is_overlay(path: &Path) -> bool {
    let mut name = [0; 8];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut name, 8));
    read.is_ok() && name != [0; 8]
}
