//! Where the files of one machine are, and its definition.
//!
//! Owns two kinds of files. In the machine's directory are its sockets and its events: its process
//! may write there, so nothing in it is believed, followed or waited for. Beside the directory,
//! where the agent alone writes, is its definition (what libvirt would keep for its domains), and
//! what its process says where the agent started it. Both lie where a reboot of the host clears
//! them, like the processes themselves; disks are never here. Called by the implementation and its
//! parts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dagger_payload::id::{Generation, HostId, PayloadDigest, VmId};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::{Deserialize, Serialize};

use super::limits::{DEFINITION_BYTES_MAX, LOG_BYTES_MAX};
use super::open_to;
use crate::hypervisor::Tags;

/// The guest's serial line, for one client at a time.
pub(super) const SERIAL: &str = "serial.sock";
/// What the process says happened to its machine.
pub(super) const EVENTS: &str = "events";
const API: &str = "api.sock";
/// The endings of what lies beside the machine's directory.
const DEFINITION: &str = "json";
const DEFINITION_NEW: &str = "json.new";
const EVENTS_NEW: &str = "events.new";
const OUTPUT: &str = "output";
/// The version of the definition's shape.
const VERSION: u32 = 2;

/// A machine as it was defined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Definition {
    version: u32,
    host: HostId,
    vm: VmId,
    generation: Generation,
    payload: PayloadDigest,
    /// What the process is told, as it will be told.
    pub(super) config: serde_json::Value,
}

impl Definition {
    /// A definition with these tags.
    pub(super) fn new(tags: &Tags, config: serde_json::Value) -> Self {
        let Tags { host, vm, generation, payload } = *tags;
        Self { version: VERSION, host, vm, generation, payload, config }
    }

    /// Its tags.
    pub(super) fn tags(&self) -> Tags {
        let Self { host, vm, generation, payload, .. } = *self;
        Tags { host, vm, generation, payload }
    }

    /// The same machine with other tags.
    pub(super) fn tagged(self, tags: &Tags) -> Self {
        Self::new(tags, self.config)
    }
}

/// One machine's files.
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

    /// What the process says, where the agent started it; systemd takes it elsewhere.
    pub(super) fn output(&self) -> PathBuf {
        self.directory.with_extension(OUTPUT)
    }

    fn definition(&self) -> PathBuf {
        self.directory.with_extension(DEFINITION)
    }

    /// The VM of a directory or a definition of this name.
    pub(super) fn vm_of(name: &str) -> Option<VmId> {
        let definition = name.strip_suffix(DEFINITION).and_then(|name| name.strip_suffix('.'));
        definition.unwrap_or(name).parse().ok()
    }

    /// Whether there is a definition, in whatever form.
    pub(super) fn is_defined(&self) -> bool {
        self.definition().exists()
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
        let file = match File::open(self.definition()) {
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
        let new = self.directory.with_extension(DEFINITION_NEW);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(definition)?)?;
        file.sync_all()?;
        fs::rename(&new, self.definition())?;
        self.directory.parent().map_or(Ok(()), |all| File::open(all)?.sync_all())
    }

    /// Removes the sockets of a process that has ended, or what stands in their place: a killed one
    /// leaves them.
    pub(super) fn unplug(&self) -> io::Result<()> {
        [self.api(), self.serial()].iter().try_for_each(|path| remove_file(path))
    }

    /// Removes what the last process left behind, since the next cannot bind its sockets, and lays
    /// out an event file for it that the agent may cut: its own would be closed to other users.
    pub(super) fn clear(&self, group: Option<u32>) -> io::Result<()> {
        self.unplug()?;
        let new = self.directory.with_extension(EVENTS_NEW);
        remove_file(&new)?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        group.map_or(Ok(()), |group| open_to(group, &new, 0o660))?;
        // Moved, since a closing in its place would be the end of a process.
        fs::rename(new, self.events())
    }

    /// Removes everything, the definition last: until then the machine is defined.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for ending in [OUTPUT, EVENTS_NEW, DEFINITION_NEW] {
            remove_file(&self.directory.with_extension(ending))?;
        }
        remove_file(&self.definition())
    }

    /// The end of what the process said, for people.
    pub(super) fn last_words(&self) -> String {
        let words = read_end(&self.output(), LOG_BYTES_MAX).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        let lines: Vec<_> = words.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }

    /// Cuts what the process has written off at its beginning once it is more than `bytes_max`: how
    /// much it writes is up to its guest, and here is the host's memory. Says whether the events
    /// were cut.
    pub(super) fn cut(&self, bytes_max: u64) -> io::Result<bool> {
        cut(&self.output(), bytes_max)?;
        cut(&self.events(), bytes_max)
    }
}

/// Opens a file that a machine's process may have made: nothing else of this name is opened, and
/// nothing waited for.
fn open_written(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "what is there is no file"))
}

/// A process that does not append goes on where it was, with nothing before it: what counts is the
/// room that the file takes, not how long it is.
fn cut(path: &Path, bytes_max: u64) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.blocks() * 512 > bytes_max => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    open_written(path, OpenOptions::new().write(true))?.set_len(0)?;
    Ok(true)
}

/// The last bytes of a file.
pub(super) fn read_end(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = open_written(path, OpenOptions::new().read(true))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
