//! Everything of a host that writes to its disks, with what has to be there before.

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dagger_agent::actuator::disks::{Disks, SeedContents};
use dagger_agent::actuator::store::StoredDisks;
use dagger_agent::controller::DiskRule;
use dagger_agent::controller::proof::RestoreProof;
use dagger_images::{ImportDirectories, Incoming};
use dagger_payload::id::{Generation, ImageDigest, LedgerTime, SnapshotId, VmId, VolumeId};
use dagger_payload::kind::{ImageFormat, VmImage};
use dagger_payload::volume::{Origin, Snapshot, VolumeDisk, VolumeWanted};
use tempfile::TempDir;

use super::small_disk::SmallDisk;
use super::versions::HERE;
use super::volumes::{CAUSE, new_volume};

pub(crate) const VM: VmId = VmId([7; 16]);
pub(crate) const VOLUME: VolumeId = VolumeId([8; 16]);
const COPY: VolumeId = VolumeId([9; 16]);
pub(crate) const SNAPSHOT: SnapshotId = SnapshotId([10; 16]);
/// Of the image.
const IMAGE_BYTES: usize = 256 << 10;
/// What is written to the volume, in KiB.
const WRITTEN_KIB: usize = 128;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    ImportImage,
    TakeInDownload,
    MakeDisk,
    MakeSeed,
    MakeVolume,
    GrowVolume,
    KeepSnapshot,
    CloneVolume,
    RestoreVolume,
}

/// The stores of a host on a small disk; the image's source lies elsewhere.
pub(crate) struct Host<'a> {
    disk: &'a SmallDisk,
    pub(crate) disks: StoredDisks,
    source: TempDir,
    pub(crate) image: VmImage,
    /// What was fetched; whoever has it holds its lock.
    incoming: OnceCell<Incoming>,
}

impl<'a> Host<'a> {
    pub(crate) fn new(disk: &'a SmallDisk) -> Self {
        let source = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..IMAGE_BYTES).map(|at| (at / 512 + at) as u8).collect();
        fs::write(source.path().join("image.raw"), &bytes).unwrap();
        let image = VmImage {
            digest: ImageDigest(*blake3::hash(&bytes).as_bytes()),
            format: ImageFormat::Raw,
            virtual_size_bytes: IMAGE_BYTES as u64,
        };
        let imports = ImportDirectories::new(vec![source.path().to_owned()]);
        let disks = StoredDisks::open(&disk.path().join("storage"), HERE, imports).unwrap();
        Self { disk, disks, source, image, incoming: OnceCell::new() }
    }

    fn import(&self) -> Result<(), String> {
        let source = self.source.path().join("image.raw");
        let source = source.to_str().unwrap().parse().unwrap();
        self.disks.ensure_image(&self.image, &[source]).map_err(|error| error.to_string())
    }

    fn make_volume(&self) -> Result<(), String> {
        let made = self.disks.ensure_volume(VOLUME, 1, DiskRule::MayMake);
        made.map_err(|error| error.to_string())
    }

    /// Writes to the volume as its guest would.
    pub(crate) fn write(&self, byte: u8) {
        let words = format!("write -q -P {byte} 0 {WRITTEN_KIB}k");
        qemu("qemu-io", &["-f", "qcow2", "-c", &words], &self.disks.volume_path(VOLUME));
    }

    pub(crate) fn reads(&self, volume: VolumeId, byte: u8) {
        let words = format!("read -q -P {byte} 0 {WRITTEN_KIB}k");
        qemu("qemu-io", &["-f", "qcow2", "-c", &words], &self.disks.volume_path(volume));
    }

    pub(crate) fn keep(&self) -> Result<(), String> {
        let kept = self.disks.ensure_snapshot(VOLUME, SNAPSHOT, DiskRule::MayMake);
        kept.map_err(|error| error.to_string())
    }

    /// All disks here are whole.
    pub(crate) fn check(&self) {
        for path in self.disk.files().into_keys() {
            let extension = path.extension().and_then(|extension| extension.to_str());
            if matches!(extension, Some("qcow2" | "volume" | "snapshot")) {
                qemu("qemu-img", &["check", "-q", "-f", "qcow2"], &path);
            }
        }
    }
}

/// Runs a tool, which has to succeed.
fn qemu(program: &str, words: &[&str], path: &Path) {
    let output = Command::new(program).args(words).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {words:?} {}: {output:?}", path.display());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("Pattern verification failed"), "{}: {said}", path.display());
}

/// The proof that the volume is to be put back, for this generation of it.
pub(crate) fn restore_proof(generation: u64) -> RestoreProof {
    let mut version = new_volume(VOLUME);
    version.volume.generation = Generation(generation);
    version.volume.restoring = Some(SNAPSHOT);
    version.volume.snapshots = vec![Snapshot {
        id: SNAPSHOT,
        name: "monday".parse().unwrap(),
        size_gib: 1,
        created: CAUSE,
        created_at: LedgerTime(0),
        wanted: VolumeWanted::Kept,
        disk: VolumeDisk::Made,
        reported: None,
    }];
    RestoreProof::of(&version, HERE).unwrap()
}

impl Operation {
    /// What was there before.
    pub(crate) fn prepare(self, host: &Host<'_>) {
        match self {
            Self::ImportImage | Self::MakeSeed | Self::MakeVolume => {}
            Self::TakeInDownload => {
                let incoming =
                    host.disks.image_store().incoming(host.image.digest, IMAGE_BYTES as u64);
                let incoming = host.incoming.get_or_init(|| incoming.unwrap().unwrap());
                let fetched = fs::read(host.source.path().join("image.raw")).unwrap();
                fs::write(incoming.path(), fetched).unwrap();
            }
            Self::MakeDisk => host.import().unwrap(),
            Self::GrowVolume => {
                host.make_volume().unwrap();
                host.write(1);
            }
            Self::KeepSnapshot | Self::CloneVolume | Self::RestoreVolume => {
                host.make_volume().unwrap();
                host.write(1);
                if self != Self::KeepSnapshot {
                    host.keep().unwrap();
                    host.write(2);
                }
            }
        }
    }

    /// Does it; says why not in the words that become a report.
    pub(crate) fn perform(self, host: &Host<'_>) -> Result<(), String> {
        let disks = &host.disks;
        let done = match self {
            Self::ImportImage => return host.import(),
            Self::TakeInDownload => {
                let incoming = host.incoming.get().unwrap();
                let taken = disks.image_store().take_in(incoming, host.image.digest);
                return taken.map_err(|error| format!("{}: {error}", error.code()));
            }
            Self::MakeDisk => disks.ensure_disk(VM, &host.image, 1, DiskRule::MayMake),
            Self::MakeSeed => disks.ensure_seed(&SeedContents {
                vm: VM,
                name: "web-1".parse().unwrap(),
                ssh_keys: Vec::new(),
                public_user_data: Some("#cloud-config\n".to_owned()),
                cards: Vec::new(),
                nameservers: Vec::new(),
            }),
            Self::MakeVolume => return host.make_volume(),
            // So much that its table of tables has to move.
            Self::GrowVolume => disks.ensure_volume(VOLUME, 8 << 10, DiskRule::MustExist),
            Self::KeepSnapshot => return host.keep(),
            Self::CloneVolume => {
                disks.ensure_clone(COPY, &Origin { volume: VOLUME, snapshot: SNAPSHOT })
            }
            Self::RestoreVolume => disks.restore_volume(&restore_proof(2)),
        };
        done.map_err(|error| error.to_string())
    }

    /// What it is to have come to.
    pub(crate) fn check(self, host: &Host<'_>) {
        match self {
            Self::ImportImage | Self::TakeInDownload | Self::MakeDisk | Self::MakeSeed => {}
            Self::MakeVolume => host.write(3),
            Self::GrowVolume | Self::KeepSnapshot | Self::RestoreVolume => host.reads(VOLUME, 1),
            Self::CloneVolume => host.reads(COPY, 1),
        }
        host.check();
    }

    /// What it may change in place: there is no copy of a whole volume for it to become larger.
    pub(crate) fn changes(self, host: &Host<'_>) -> Option<PathBuf> {
        (self == Self::GrowVolume).then(|| host.disks.volume_path(VOLUME))
    }

    /// Whether it makes any file.
    pub(crate) fn makes_files(self) -> bool {
        self != Self::GrowVolume
    }
}
