//! Where the files of one machine are, and its definition.
//!
//! Owns the machine's directory: the definition (what libvirt would keep for its domains), sockets,
//! events and logs. It lies where a reboot of the host clears it, like the processes themselves;
//! disks are never here. Called by the implementation and its parts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dagger_payload::id::{Generation, HostId, PayloadDigest, VmId};
use serde::{Deserialize, Serialize};

use super::limits::{DEFINITION_BYTES_MAX, LOG_BYTES_MAX};
use crate::hypervisor::Tags;

/// The guest's serial line, for one client at a time.
pub(super) const SERIAL: &str = "serial.sock";
/// What the process says happened to its machine.
pub(super) const EVENTS: &str = "events";
const API: &str = "api.sock";
const DEFINITION: &str = "machine.json";
const DEFINITION_NEW: &str = "machine.json.new";
const LOG: &str = "log";
const OUTPUT: &str = "output";
/// The version of the definition's shape.
const VERSION: u32 = 1;

/// A machine as it was defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    version: u32,
    host: HostId,
    vm: VmId,
    generation: Generation,
    payload: PayloadDigest,
    /// Where its console goes.
    pub(super) console: PathBuf,
    /// What the process is told, as it will be told.
    pub(super) config: serde_json::Value,
}

impl Definition {
    /// A definition with these tags.
    pub(super) fn new(tags: &Tags, console: PathBuf, config: serde_json::Value) -> Self {
        let Tags { host, vm, generation, payload } = *tags;
        Self { version: VERSION, host, vm, generation, payload, console, config }
    }

    /// Its tags.
    pub(super) fn tags(&self) -> Tags {
        let Self { host, vm, generation, payload, .. } = *self;
        Tags { host, vm, generation, payload }
    }

    /// The same machine with other tags.
    pub(super) fn tagged(self, tags: &Tags) -> Self {
        Self::new(tags, self.console, self.config)
    }
}

/// One machine's directory.
#[derive(Debug, Clone)]
pub(super) struct Place {
    directory: PathBuf,
}

impl Place {
    /// The machine's place below the run directory.
    pub(super) fn of(run_directory: &Path, vm: VmId) -> Self {
        Self { directory: run_directory.join(vm.to_string()) }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn api(&self) -> PathBuf {
        self.directory.join(API)
    }

    pub(super) fn serial(&self) -> PathBuf {
        self.directory.join(SERIAL)
    }

    pub(super) fn events(&self) -> PathBuf {
        self.directory.join(EVENTS)
    }

    pub(super) fn log(&self) -> PathBuf {
        self.directory.join(LOG)
    }

    pub(super) fn output(&self) -> PathBuf {
        self.directory.join(OUTPUT)
    }

    /// Makes the directory with this mode, if it is not there.
    pub(super) fn make(&self, mode: u32) -> io::Result<()> {
        match DirBuilder::new().mode(mode).create(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made,
        }
    }

    /// The definition; `None` where none was ever finished.
    pub(super) fn read(&self) -> io::Result<Option<Definition>> {
        let file = match File::open(self.directory.join(DEFINITION)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(DEFINITION_BYTES_MAX).read_to_end(&mut bytes)?;
        let definition: Definition = serde_json::from_slice(&bytes)?;
        if definition.version == VERSION {
            return Ok(Some(definition));
        }
        let what = format!("a definition of version {}", definition.version);
        Err(io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// Writes the definition: the old one or the new one stands after a crash, whole.
    pub(super) fn write(&self, definition: &Definition) -> io::Result<()> {
        let new = self.directory.join(DEFINITION_NEW);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(definition)?)?;
        file.sync_all()?;
        fs::rename(&new, self.directory.join(DEFINITION))?;
        File::open(&self.directory)?.sync_all()
    }

    /// Removes what the last process left behind: a killed one leaves its sockets, and the next
    /// cannot bind them.
    pub(super) fn clear(&self) -> io::Result<()> {
        for path in [self.api(), self.serial(), self.events()] {
            remove_file(&path)?;
        }
        Ok(())
    }

    /// Removes everything, the definition last: until then the machine is defined.
    pub(super) fn remove(&self) -> io::Result<()> {
        let definition = self.directory.join(DEFINITION);
        match fs::read_dir(&self.directory) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry?.path();
                    if path != definition {
                        remove_file(&path)?;
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        remove_file(&definition)?;
        fs::remove_dir(&self.directory)
    }

    /// The end of what the process said, for people.
    pub(super) fn last_words(&self) -> String {
        let words = [self.output(), self.log()].map(|path| read_end(&path).unwrap_or_default());
        let lines: Vec<_> = words.iter().flat_map(|text| text.lines()).collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }
}

/// The last bytes of a file.
pub(super) fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
