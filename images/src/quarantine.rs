//! What was put aside, and its removal, one file at a time.
//!
//! Owns the reading of names in a quarantine: whose remains a file is, as far as its name says. The
//! only place in this package that deletes something that was once in use; never decides that: the
//! caller comes with a proof. Called by the agent's collector.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dagger_payload::id::{AccountId, Generation, HostId, ImageDigest, SnapshotId, VmId, VolumeId};

use crate::consoles;
use crate::disks::{FileName, ReplacedName, SnapshotName, VolumeName};
use crate::error::ImageError;
use crate::files::{self, QUARANTINE};

/// What file systems count in.
const BLOCK_BYTES: u64 = 512;

/// One of the directories that have a quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    directory: PathBuf,
    host: HostId,
}

/// A file in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// Its name there.
    pub name: String,
    /// Whose it was.
    pub of: RemainsOf,
    /// How large it is, in bytes.
    pub bytes: u64,
    /// When it came there, by this host's clock: for people only.
    pub since: SystemTime,
}

/// Whose a file in quarantine was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RemainsOf {
    /// A VM's disk, seed or console.
    Vm(VmId),
    /// A volume.
    Volume(VolumeId),
    /// A volume's snapshot.
    Snapshot(VolumeId, SnapshotId),
    /// What a volume held before this generation of it put it back to a snapshot.
    Replaced(VolumeId, Generation),
    /// An image that was found damaged.
    Image(ImageDigest),
    /// Its name says nothing.
    Unknown,
}

/// What the name of a quarantined file says; `None` for one of another host that shares the
/// directory.
fn read_name(name: &str, host: HostId) -> Option<RemainsOf> {
    let Some((was, _)) = files::name_before(name) else { return Some(RemainsOf::Unknown) };
    if let Ok(replaced) = name.parse::<ReplacedName>() {
        let of = RemainsOf::Replaced(replaced.volume, replaced.generation);
        return (replaced.host == host).then_some(of);
    }
    if let Ok(file) = was.parse::<SnapshotName>() {
        let of = RemainsOf::Snapshot(file.volume, file.snapshot);
        return (file.host == host).then_some(of);
    }
    if let Ok(file) = was.parse::<FileName>() {
        return (file.host == host).then_some(RemainsOf::Vm(file.vm));
    }
    if let Ok(volume) = was.parse::<VolumeName>() {
        return (volume.host == host).then_some(RemainsOf::Volume(volume.volume));
    }
    if let Some(vm) = consoles::vm_of(was) {
        return Some(RemainsOf::Vm(vm));
    }
    Some(was.parse().map_or(RemainsOf::Unknown, RemainsOf::Image))
}

/// The account to which a quarantined file counts, if its name says one.
fn account_of(name: &str) -> Option<AccountId> {
    match name.parse::<ReplacedName>() {
        Ok(replaced) => replaced.account,
        Err(_) => files::name_before(name)?.1,
    }
}

impl Quarantine {
    /// The quarantine below `directory`, as `host` reads it.
    pub fn of(directory: &Path, host: HostId) -> Self {
        Self { directory: directory.join(QUARANTINE), host }
    }

    /// Everything of this host in it, sorted by name: all of it or an error.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn list(&self) -> Result<Vec<Remains>, ImageError> {
        let mut remains = Vec::new();
        for name in files::names(&self.directory)? {
            let Some(of) = read_name(&name, self.host) else { continue };
            let path = self.directory.join(&name);
            let metadata = match fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(ImageError::file("cannot see", &path)(error)),
            };
            let of = if metadata.is_file() { of } else { RemainsOf::Unknown };
            // A rename changes this time. The end of another link to the file would do so later,
            // too: then it is kept the longer.
            let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
            let since = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            remains.push(Remains { name, of, bytes: metadata.len(), since });
        }
        Ok(remains)
    }

    /// What counts to this account takes here, in bytes. Files without a known account, which older
    /// agents have put here, count to nobody.
    ///
    /// # Errors
    /// [`ImageError::File`].
    pub fn taken_by(&self, account: AccountId) -> Result<u64, ImageError> {
        let mut bytes = 0_u64;
        for name in files::names(&self.directory)? {
            if account_of(&name) != Some(account) || read_name(&name, self.host).is_none() {
                continue;
            }
            let path = self.directory.join(&name);
            match fs::symlink_metadata(&path) {
                Ok(file) => bytes = bytes.saturating_add(file.blocks().saturating_mul(BLOCK_BYTES)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ImageError::file("cannot see", &path)(error)),
            }
        }
        Ok(bytes)
    }

    /// Removes exactly this file for ever; that it is not there is no error.
    ///
    /// # Errors
    /// [`ImageError::File`], also if it is none of a known owner any more.
    pub fn remove(&self, remains: &Remains) -> Result<(), ImageError> {
        let path = self.directory.join(&remains.name);
        let failed = |error| ImageError::file("cannot remove", &path)(error);
        let is_its = read_name(&remains.name, self.host) == Some(remains.of);
        if !is_its || remains.of == RemainsOf::Unknown || remains.name.contains('/') {
            return Err(failed(io::Error::other("its name does not say whose it was")));
        }
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: HostId = HostId([1; 16]);

    #[test]
    fn names_say_whose_a_file_was_and_those_of_other_hosts_are_none_of_ours() {
        let (vm, volume, image) = (VmId([2; 16]), VolumeId([3; 16]), ImageDigest([4; 32]));
        let read = |name: String| read_name(&name, HERE);
        for name in ["qcow2.0", "seed.12"] {
            assert_eq!(read(format!("{HERE}-{vm}.{name}")), Some(RemainsOf::Vm(vm)), "{name}");
        }
        for name in ["log.0", "log.3.1", "log.old.0"] {
            assert_eq!(read(format!("{vm}.{name}")), Some(RemainsOf::Vm(vm)), "{name}");
        }
        assert_eq!(read(format!("{HERE}-{volume}.volume.0")), Some(RemainsOf::Volume(volume)));
        let snapshot = SnapshotId([5; 16]);
        let kept = format!("{HERE}-{volume}-{snapshot}.snapshot");
        assert_eq!(read(format!("{kept}.0")), Some(RemainsOf::Snapshot(volume, snapshot)));
        assert_eq!(read(kept), Some(RemainsOf::Unknown), "no number");
        let replaced = RemainsOf::Replaced(volume, Generation(7));
        assert_eq!(read(format!("{HERE}-{volume}.replaced.7")), Some(replaced));
        assert_eq!(read(format!("{image}.0")), Some(RemainsOf::Image(image)));
        let account = AccountId([6; 16]);
        for (name, of) in [
            (format!("{HERE}-{vm}.qcow2.{account}.0"), RemainsOf::Vm(vm)),
            (format!("{vm}.log.3.{account}.1"), RemainsOf::Vm(vm)),
            (format!("{vm}.log.old.{account}.1"), RemainsOf::Vm(vm)),
            (format!("{HERE}-{volume}.volume.{account}.0"), RemainsOf::Volume(volume)),
            (format!("{HERE}-{volume}.replaced.{account}.7"), replaced),
        ] {
            assert_eq!((account_of(&name), read(name)), (Some(account), Some(of)));
        }
        assert_eq!(account_of(&format!("{HERE}-{volume}.replaced.7")), None);
        assert_eq!(account_of(&format!("{vm}.log.3.1")), None);
        assert_eq!(read(format!("{}-{vm}.qcow2.0", HostId([9; 16]))), None);
        for name in ["saved", "saved.0", "x.qcow2.0", ""] {
            assert_eq!(read(name.to_owned()), Some(RemainsOf::Unknown), "{name}");
        }
        assert_eq!(read(format!("{HERE}-{vm}.qcow2")), Some(RemainsOf::Unknown), "no number");
    }

    #[test]
    fn exactly_one_file_is_removed_and_nothing_whose_owner_is_unknown() {
        let directory = tempfile::tempdir().unwrap();
        files::open_directory(directory.path()).unwrap();
        let vm = VmId([2; 16]);
        for name in [format!("{HERE}-{vm}.qcow2.0"), format!("{HERE}-{vm}.qcow2.1")] {
            fs::write(directory.path().join(QUARANTINE).join(name), "gone").unwrap();
        }
        fs::write(directory.path().join(QUARANTINE).join("saved"), "kept").unwrap();
        let quarantine = Quarantine::of(directory.path(), HERE);
        let all = quarantine.list().unwrap();
        let bytes: Vec<_> = all.iter().map(|remains| (remains.of, remains.bytes)).collect();
        let (mine, unknown) = (RemainsOf::Vm(vm), RemainsOf::Unknown);
        assert_eq!(bytes, [(mine, 4), (mine, 4), (unknown, 4)]);
        assert!(all[0].since > SystemTime::UNIX_EPOCH);
        quarantine.remove(&all[0]).unwrap();
        quarantine.remove(&all[0]).unwrap();
        quarantine.remove(&all[2]).unwrap_err();
        // A file cannot pass for another's.
        let false_owner = Remains { of: RemainsOf::Vm(VmId([9; 16])), ..all[1].clone() };
        quarantine.remove(&false_owner).unwrap_err();
        assert_eq!(quarantine.list().unwrap(), all[1..]);
    }

    #[test]
    fn what_an_account_has_here_is_counted_by_what_it_takes_on_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        files::open_directory(directory.path()).unwrap();
        let (one, other, vm) = (AccountId([6; 16]), AccountId([7; 16]), VmId([2; 16]));
        let written = vec![1; 64 << 10];
        for (account, host) in [(one, HERE), (one, HERE), (other, HERE), (one, HostId([9; 16]))] {
            let disk = directory.path().join(format!("{host}-{vm}.qcow2"));
            fs::write(&disk, &written).unwrap();
            // A hole takes nothing.
            File::options().write(true).open(&disk).unwrap().set_len(1 << 30).unwrap();
            files::quarantine(&disk, Some(account)).unwrap().unwrap();
        }
        let quarantine = Quarantine::of(directory.path(), HERE);
        let taken = |account| quarantine.taken_by(account).unwrap();
        assert!((128 << 10..256 << 10).contains(&taken(one)), "{}", taken(one));
        assert!((64 << 10..128 << 10).contains(&taken(other)), "{}", taken(other));
        assert_eq!(taken(AccountId([8; 16])), 0);
    }
}
