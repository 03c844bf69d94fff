//! The disks that one machine may open: hard links in a directory of its own.
//!
//! Owns that directory. It lies in the directory of the disks, so that both are on one file system,
//! and each link has the name of its disk. A machine's process may open what is in here and no
//! other disk, from its start to its end: a disk is given to it by a link, and is out of its reach
//! once the link is gone and the disk is closed. Only the agent changes what is in here. Never
//! decides what a machine has. Called by the implementation and by [`super::volumes`].

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use dagger_images::files::ATTACHED;
use dagger_payload::id::VmId;

/// One machine's directory of links.
#[derive(Debug, Clone)]
pub(super) struct Attached {
    disks: PathBuf,
    directory: PathBuf,
}

impl Attached {
    /// The machine's, below the directory of all disks.
    pub(super) fn of(disks: &Path, vm: VmId) -> Self {
        let directory = disks.join(ATTACHED).join(vm.to_string());
        Self { disks: disks.to_owned(), directory }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path by which the machine opens this disk.
    pub(super) fn link_of(&self, disk: &Path) -> PathBuf {
        self.directory.join(disk.file_name().unwrap_or_default())
    }

    /// Makes the directory with this mode, and takes every link out of it: the machine is off.
    pub(super) fn make(&self, mode: u32) -> io::Result<()> {
        if let Some(all) = self.directory.parent() {
            DirBuilder::new().recursive(true).mode(0o711).create(all)?;
        }
        match DirBuilder::new().mode(mode).create(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => self.clear(),
        }
    }

    /// Makes sure that this link, as [`Attached::link_of`] gave it, is its disk as it is now: the
    /// file may have been replaced since the link was made.
    pub(super) fn link(&self, link: &Path) -> io::Result<()> {
        let Some(disk) = link.file_name().filter(|_| link.parent() == Some(&self.directory)) else {
            return Ok(()); // of a machine that an earlier agent defined
        };
        let disk = self.disks.join(disk);
        let inode =
            |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
        let of_disk = inode(&disk)?;
        if inode(link).is_ok_and(|of_link| of_link == of_disk) {
            return Ok(());
        }
        remove(link)?;
        fs::hard_link(&disk, link)
    }

    /// Removes every link but these.
    pub(super) fn keep_only(&self, links: &BTreeSet<OsString>) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if !links.contains(&entry.file_name()) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes every link: nobody has a disk open.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.keep_only(&BTreeSet::new())
    }

    /// Removes the links and their directory.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.clear()?;
        match fs::remove_dir(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The VMs that have links.
pub(super) fn vms(disks: &Path) -> io::Result<Vec<VmId>> {
    let entries = match fs::read_dir(disks.join(ATTACHED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut vms = Vec::new();
    for entry in entries {
        let Some(vm) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match fs::read_dir(Attached::of(disks, vm).directory()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(mut links) => vms.extend(links.next().map(|_| vm)),
        }
    }
    Ok(vms)
}

fn remove(link: &Path) -> io::Result<()> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_made_once_follows_its_disk_and_goes_with_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let (disks, disk) = (directory.path(), directory.path().join("a.volume"));
        let attached = Attached::of(disks, VmId([7; 16]));
        let link = attached.link_of(&disk);
        attached.make(0o700).unwrap();
        assert!(attached.link(&link).is_err(), "there is no disk");
        fs::write(&disk, "old").unwrap();
        for _ in 0..2 {
            attached.link(&link).unwrap();
        }
        fs::write(disks.join("new"), "new").unwrap();
        fs::rename(disks.join("new"), &disk).unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"old");
        attached.link(&link).unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"new");
        assert_eq!(vms(disks).unwrap(), [VmId([7; 16])]);
        for _ in 0..2 {
            attached.remove().unwrap();
        }
        assert_eq!((fs::read(&disk).unwrap(), vms(disks).unwrap()), (b"new".to_vec(), vec![]));
    }
}
