//! What guests have said on their serial consoles.
//!
//! Owns one directory. A hypervisor writes there, `VM.log` and, where it begins a new file when one
//! is full, older ones as `VM.log.0` and on, or one as `VM.log.old`; nothing here reads or writes
//! them. None is ever deleted: quarantine renames. Owns also what the agent and the one-shot helper
//! `dagger-console` say to each other about a file that the agent may not open. Called by the
//! agent's actuator, its readers of consoles, and the helper.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dagger_payload::id::{AccountId, VmId};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::files;

/// The console files of one host.
#[derive(Debug)]
pub struct ConsoleStore {
    directory: PathBuf,
}

/// What the helper is asked: to open a console's file. One line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleFileRequest {
    /// Whose console. The helper makes the path of it, and takes none.
    pub vm: VmId,
}

/// What the helper answers, in one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleFileAnswer {
    /// The file is open for reading, and comes beside this line.
    Opened,
    /// There is no such file.
    Missing,
    /// What has its name is no file that it hands out.
    Refused(String),
    /// It could not be opened.
    Failed(String),
}

/// The file of a VM's console in `directory`.
pub fn path_in(directory: &Path, vm: VmId) -> PathBuf {
    directory.join(format!("{vm}.log"))
}

/// The VM whose console file has this name.
pub(crate) fn vm_of(name: &str) -> Option<VmId> {
    let (vm, rest) = name.split_once('.')?;
    let number = rest.strip_prefix("log")?;
    let number = match number.strip_prefix('.') {
        Some(number) => number,
        None if number.is_empty() => return vm.parse().ok(),
        None => return None,
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number || number == "old").then(|| vm.parse().ok()).flatten()
}

impl ConsoleStore {
    /// Opens `directory`, which is made if missing.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        let directory =
            std::path::absolute(directory).map_err(ImageError::file("cannot find", directory))?;
        files::open_directory(&directory)?;
        Ok(Self { directory })
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The VMs of which something is here, sorted: all of them or an error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn list(&self) -> Result<Vec<VmId>, ImageError> {
        let names = files::names(&self.directory)?;
        let vms: BTreeSet<_> = names.iter().filter_map(|name| vm_of(name)).collect();
        Ok(vms.into_iter().collect())
    }

    /// Moves everything that the VM's guest has said into quarantine, where it counts to its
    /// account; tells where it is now. Nothing here is no error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn quarantine(&self, vm: VmId, of: AccountId) -> Result<Vec<PathBuf>, ImageError> {
        let mut moved = Vec::new();
        for name in files::names(&self.directory)? {
            if vm_of(&name) == Some(vm) {
                moved.extend(files::quarantine(&self.directory.join(name), Some(of))?);
            }
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_console_files_of_a_vm_go_into_quarantine_and_those_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        let store = ConsoleStore::open(directory.path()).unwrap();
        let (gone, stays) = (VmId([1; 16]), VmId([2; 16]));
        for name in [
            format!("{gone}.log"),
            format!("{gone}.log.0"),
            format!("{gone}.log.old"),
            format!("{stays}.log"),
        ] {
            std::fs::write(directory.path().join(name), "login:").unwrap();
        }
        assert_eq!(store.list().unwrap(), [gone, stays]);
        assert_eq!(store.quarantine(gone, AccountId([5; 16])).unwrap().len(), 3);
        assert_eq!(store.list().unwrap(), [stays]);
        assert!(store.quarantine(gone, AccountId([5; 16])).unwrap().is_empty());
    }

    #[test]
    fn a_name_is_a_console_files_only_if_it_is_one_to_its_end() {
        let vm = VmId([7; 16]);
        assert_eq!(vm_of(&format!("{vm}.log")), Some(vm));
        assert_eq!(vm_of(&format!("{vm}.log.12")), Some(vm));
        assert_eq!(vm_of(&format!("{vm}.log.old")), Some(vm));
        for name in [".log.older", ".log.1x", ".log.", ".logs", "", ".qcow2", ".log.1.2"] {
            assert_eq!(vm_of(&format!("{vm}{name}")), None, "{name}");
        }
    }
}
