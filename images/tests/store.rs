//! The image store and the disks, with real files and the real `qemu-img`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use dagger_images::disks::{FileKind, FileName, Survey};
use dagger_images::files::Partial;
use dagger_images::header::{inspect, read_overlay};
use dagger_images::tool::Tool;
use dagger_images::{DiskStore, ImageStore, Kind, Network, Outcome, Seed, StoredImage};
use dagger_payload::id::{AccountId, HostId, ImageDigest, VmId, VolumeId};
use dagger_payload::kind::ImageFormat;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const HOST: HostId = HostId([0xa1; 16]);
const OTHER_HOST: HostId = HostId([0xb2; 16]);
const ACCOUNT: AccountId = AccountId([0xd4; 16]);
const VM: VmId = VmId([0xc3; 16]);

struct Place {
    directory: TempDir,
    images: ImageStore,
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let images = ImageStore::open(&directory.path().join("images")).unwrap();
        Self { directory, images }
    }

    fn raw_file(&self, content: u8) -> PathBuf {
        let path = self.directory.path().join(format!("source-{content}"));
        fs::write(&path, vec![content; MIB as usize]).unwrap();
        path
    }

    fn image(&self) -> StoredImage {
        self.images.import(&self.raw_file(7), ImageFormat::Raw, None).unwrap()
    }

    fn disks(&self, host: HostId) -> DiskStore {
        DiskStore::open(&self.directory.path().join("disks"), host).unwrap()
    }

    fn damage(&self, image: &StoredImage) {
        fs::set_permissions(&image.path, fs::Permissions::from_mode(0o644)).unwrap();
        let file = OpenOptions::new().write(true).open(&image.path).unwrap();
        file.write_all_at(b"x", 4711).unwrap();
    }
}

fn files_in(directory: &Path) -> usize {
    fs::read_dir(directory)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().is_file())
        .count()
}

#[test]
fn an_imported_image_carries_the_plain_blake3_digest_of_its_bytes() {
    let place = Place::new();
    let expected = ImageDigest(*blake3::hash(&vec![7; MIB as usize]).as_bytes());
    let image = place.images.import(&place.raw_file(7), ImageFormat::Raw, Some(expected)).unwrap();
    assert_eq!((image.digest, image.virtual_size_bytes), (expected, MIB));
    assert_eq!(image.path, place.images.path(expected));
    let listed = place.images.list().unwrap();
    assert_eq!(listed.iter().map(|entry| entry.digest).collect::<Vec<_>>(), [expected]);
}

#[test]
fn importing_other_bytes_than_expected_stores_nothing() {
    let place = Place::new();
    let wrong = ImageDigest([1; 32]);
    let error = place.images.import(&place.raw_file(7), ImageFormat::Raw, Some(wrong)).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("image_digest_differs", Kind::Refused));
    assert_eq!(files_in(&place.directory.path().join("images")), 0);
}

#[test]
fn importing_an_image_that_names_another_file_stores_nothing() {
    let place = Place::new();
    let path = place.directory.path().join("evil");
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd"])
        .arg(&path)
        .arg("1M")
        .status();
    assert!(status.unwrap().success());
    let error = place.images.import(&path, ImageFormat::Qcow2, None).unwrap_err();
    assert_eq!(error.code(), "image_has_backing_file");
    assert_eq!(files_in(&place.directory.path().join("images")), 0);
}

#[test]
fn only_regular_files_are_imported() {
    let place = Place::new();
    let directory = place.directory.path();
    nix::unistd::mkfifo(&directory.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [directory.to_owned(), directory.join("pipe"), "/dev/zero".into()] {
        let error = place.images.import(&path, ImageFormat::Raw, None).unwrap_err();
        assert_eq!(error.code(), "image_no_file", "{}", path.display());
    }
}

#[test]
fn a_damaged_image_is_refused_and_put_into_quarantine() {
    let place = Place::new();
    let image = place.image();
    place.damage(&image);
    let error = place.images.verify(image.digest, ImageFormat::Raw).unwrap_err();
    assert_eq!((error.code(), error.kind()), ("image_damaged", Kind::Refused));
    assert!(!image.path.exists());
    assert_eq!(files_in(&place.directory.path().join("images/quarantine")), 1);
    let error = place.images.verify(image.digest, ImageFormat::Raw).unwrap_err();
    assert_eq!(error.code(), "image_missing");
}

#[test]
fn a_fresh_process_hashes_again_even_if_times_and_size_were_put_back() {
    let place = Place::new();
    let image = place.image();
    let modified = fs::metadata(&image.path).unwrap().modified().unwrap();
    place.damage(&image);
    OpenOptions::new().write(true).open(&image.path).unwrap().set_modified(modified).unwrap();
    let fresh = ImageStore::open(&place.directory.path().join("images")).unwrap();
    let error = fresh.verify(image.digest, ImageFormat::Raw).unwrap_err();
    assert_eq!(error.code(), "image_damaged");
}

#[test]
fn importing_over_a_damaged_copy_heals_the_store() {
    let place = Place::new();
    let image = place.image();
    place.damage(&image);
    let again = place.image();
    assert_eq!(again, image);
    assert!(place.images.verify(image.digest, ImageFormat::Raw).is_ok());
    assert_eq!(files_in(&place.directory.path().join("images/quarantine")), 1);
}

#[test]
fn a_stored_raw_image_is_not_handed_out_as_qcow2() {
    let place = Place::new();
    let image = place.image();
    let error = place.images.verify(image.digest, ImageFormat::Qcow2).unwrap_err();
    assert_eq!(error.code(), "image_not_qcow2");
}

#[test]
fn a_disk_is_an_overlay_of_the_asked_size_that_names_image_and_format() {
    let place = Place::new();
    let image = place.image();
    let disk = place.disks(HOST).ensure_disk(VM, &image, 64 * MIB).unwrap();
    assert_eq!(disk.outcome, Outcome::Created);
    let overlay = read_overlay(&File::open(&disk.path).unwrap()).unwrap();
    assert_eq!(overlay.backing_path, image.path.to_str().unwrap());
    assert_eq!(overlay.backing_format.as_deref(), Some("raw"));
    assert_eq!(overlay.virtual_size_bytes, 64 * MIB);
    assert!(disk.path.to_str().unwrap().contains(&format!("{HOST}-{VM}")));
}

#[test]
fn only_its_owner_may_read_a_disk_and_nobody_may_write_an_image() {
    let place = Place::new();
    let image = place.image();
    let disk = place.disks(HOST).ensure_disk(VM, &image, 64 * MIB).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&disk.path), mode(&image.path)), (0o600, 0o444));
}

#[test]
fn a_disk_that_is_there_is_kept_with_what_is_on_it() {
    let place = Place::new();
    let image = place.image();
    let disks = place.disks(HOST);
    let disk = disks.ensure_disk(VM, &image, 64 * MIB).unwrap();
    let write = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 0x5a 0 64k"])
        .arg(&disk.path)
        .output();
    assert!(write.unwrap().status.success());
    let before = fs::read(&disk.path).unwrap();
    let again = disks.ensure_disk(VM, &image, 128 * MIB).unwrap();
    assert_eq!((again.outcome, again.path.as_path()), (Outcome::Kept, disk.path.as_path()));
    assert_eq!(fs::read(&disk.path).unwrap(), before);
}

#[test]
fn a_copy_of_a_disk_has_all_that_a_guest_sees_depends_on_nothing_and_has_no_name() {
    let place = Place::new();
    let image = place.image();
    let disks = place.disks(HOST);
    let disk = disks.ensure_disk(VM, &image, 64 * MIB).unwrap();
    let write = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 0x5a 32M 64k"])
        .arg(&disk.path)
        .output();
    assert!(write.unwrap().status.success());
    let before = (fs::read(&disk.path).unwrap(), files_in(disks.directory()));
    let mut copy = disks.flatten(VM, &image).unwrap();
    assert_eq!((fs::read(&disk.path).unwrap(), files_in(disks.directory())), before);
    assert_eq!(copy.virtual_size_bytes, 64 * MIB);

    let kept = place.directory.path().join("copy.qcow2");
    let length = std::io::copy(&mut copy.file, &mut File::create(&kept).unwrap()).unwrap();
    assert_eq!(length, copy.file_bytes);
    let compared = Command::new("qemu-img")
        .args(["compare", "-f", "qcow2", "-F", "qcow2"])
        .args([&disk.path, &kept])
        .output()
        .unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    // An image may not lie over another file: it depends on nothing.
    place.images.import(&kept, ImageFormat::Qcow2, None).unwrap();
}

#[test]
fn a_disk_over_another_image_is_reported_and_left_alone() {
    let place = Place::new();
    let disks = place.disks(HOST);
    disks.ensure_disk(VM, &place.image(), 64 * MIB).unwrap();
    let other = place.images.import(&place.raw_file(8), ImageFormat::Raw, None).unwrap();
    let error = disks.ensure_disk(VM, &other, 64 * MIB).unwrap_err();
    assert_eq!(error.code(), "disk_differs");
    assert!(disks.has_disk(VM).unwrap());
}

#[test]
fn a_disk_whose_hypervisor_forgot_the_format_of_its_image_is_kept_and_can_be_copied() {
    let place = Place::new();
    let image = place.image();
    let disks = place.disks(HOST);
    let disk = disks.ensure_disk(VM, &image, 64 * MIB).unwrap().path;
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    let mut length = [0; 4];
    file.read_exact_at(&mut length, 100).unwrap();
    // The list of what a header says besides ends where it begins.
    file.write_all_at(&[0; 8], u32::from_be_bytes(length).into()).unwrap();
    assert_eq!(read_overlay(&file).unwrap().backing_format, None);
    assert_eq!(disks.ensure_disk(VM, &image, 64 * MIB).unwrap().outcome, Outcome::Kept);
    assert_eq!(disks.flatten(VM, &image).unwrap().virtual_size_bytes, 64 * MIB);
}

#[test]
fn a_disk_smaller_than_its_image_or_of_an_odd_size_is_refused() {
    let place = Place::new();
    let disks = place.disks(HOST);
    let image = place.image();
    let codes = [MIB - 512, MIB + 1, u64::MAX - 511]
        .map(|size| disks.ensure_disk(VM, &image, size).unwrap_err().code());
    assert_eq!(codes, ["disk_too_small", "disk_size_invalid", "disk_size_invalid"]);
    assert_eq!(disks.list().unwrap(), []);
}

#[test]
fn a_tool_that_fails_or_hangs_leaves_no_disk() {
    let place = Place::new();
    let directory = place.directory.path().join("disks");
    let hangs = place.directory.path().join("hangs");
    fs::write(&hangs, "#!/bin/sh\nexec /bin/sleep 600\n").unwrap();
    fs::set_permissions(&hangs, fs::Permissions::from_mode(0o700)).unwrap();
    for (program, code) in
        [(Path::new("/bin/false"), "disk_tool_failed"), (&hangs, "disk_tool_too_slow")]
    {
        let tool = Tool::new(program, Duration::from_millis(100));
        let disks = DiskStore::open_with(&directory, HOST, tool).unwrap();
        let error = disks.ensure_disk(VM, &place.image(), 64 * MIB).unwrap_err();
        assert_eq!((error.code(), error.kind()), (code, Kind::Unavailable));
        assert_eq!(files_in(&directory), 0);
    }
}

fn seed(hostname: &str) -> Seed {
    Seed {
        instance_id: VM.to_string(),
        hostname: hostname.parse().unwrap(),
        ssh_keys: Vec::new(),
        network: Network::Dhcp,
        user_data: None,
    }
}

#[test]
fn hosts_that_share_a_directory_see_only_their_own_files_and_quarantine_only_those() {
    let place = Place::new();
    let image = place.image();
    let (mine, other) = (place.disks(HOST), place.disks(OTHER_HOST));
    for disks in [&mine, &other] {
        disks.ensure_disk(VM, &image, 64 * MIB).unwrap();
        disks.ensure_seed(VM, &seed("web-1")).unwrap();
    }
    assert_eq!(mine.quarantine(VM, ACCOUNT).unwrap().len(), 2);
    assert_eq!(mine.quarantine(VM, ACCOUNT).unwrap().len(), 0);
    assert_eq!(mine.list().unwrap().len(), 0);
    assert_eq!(other.list().unwrap().len(), 2);
    assert!(other.has_disk(VM).unwrap());
    assert_eq!(files_in(&place.directory.path().join("disks/quarantine")), 2);
}

#[test]
fn a_survey_names_all_that_is_there_but_other_hosts_files_and_those_being_made() {
    let place = Place::new();
    let disks = place.disks(HOST);
    let directory = place.directory.path().join("disks");
    disks.ensure_seed(VM, &seed("web-1")).unwrap();
    disks.quarantine(VM, ACCOUNT).unwrap();
    assert_eq!(disks.survey().unwrap(), Survey::default());

    disks.ensure_disk(VM, &place.image(), 64 * MIB).unwrap();
    disks.ensure_seed(VM, &seed("web-1")).unwrap();
    place.disks(OTHER_HOST).ensure_seed(VM, &seed("web-1")).unwrap();
    let being_made = Partial::create(&directory).unwrap();
    fs::write(directory.join(format!("{HOST}-{VM}.qcow2.bak")), "").unwrap();
    fs::create_dir(directory.join("copies")).unwrap();
    let survey = disks.survey().unwrap();
    let name = |kind| FileName { host: HOST, vm: VM, kind };
    assert_eq!(survey.ours, [FileKind::Disk, FileKind::Seed].map(name));
    assert_eq!(survey.foreign, [format!("{HOST}-{VM}.qcow2.bak"), "copies".to_owned()]);
    drop(being_made);

    fs::remove_dir_all(&directory).unwrap();
    assert!(disks.survey().is_err(), "a directory that cannot be read is no empty one");
}

#[test]
fn a_volume_is_made_once_empty_and_alone_grows_and_goes_into_quarantine_whole() {
    let place = Place::new();
    let disks = place.disks(HOST);
    let volume = VolumeId([8; 16]);
    assert_eq!(disks.quarantine_volume(volume, ACCOUNT).unwrap(), None);
    let made = disks.ensure_volume(volume, 64 * MIB).unwrap();
    assert_eq!(made.outcome, Outcome::Created);
    let geometry = inspect(&fs::File::open(&made.path).unwrap(), ImageFormat::Qcow2).unwrap();
    assert_eq!(geometry.virtual_size_bytes, 64 * MIB);
    let bytes = fs::read(&made.path).unwrap();
    // A file that is there is never made anew, whatever is asked for.
    assert_eq!(disks.ensure_volume(volume, 128 * MIB).unwrap().outcome, Outcome::Kept);
    assert_eq!(fs::read(&made.path).unwrap(), bytes);
    assert!(!place.disks(OTHER_HOST).has_volume(volume).unwrap());
    let survey = disks.survey().unwrap();
    assert_eq!((survey.volumes, survey.foreign), (vec![volume], Vec::new()));

    disks.grow_volume(volume, 96 * MIB).unwrap();
    disks.grow_volume(volume, 64 * MIB).unwrap();
    let geometry = inspect(&fs::File::open(&made.path).unwrap(), ImageFormat::Qcow2).unwrap();
    assert_eq!(geometry.virtual_size_bytes, 96 * MIB, "it grows and never shrinks");
    let bytes = fs::read(&made.path).unwrap();

    let moved = disks.quarantine_volume(volume, ACCOUNT).unwrap().unwrap();
    assert_eq!(fs::read(moved).unwrap(), bytes);
    assert!(!disks.has_volume(volume).unwrap());
    assert!(disks.ensure_volume(volume, 1000).is_err(), "no sectors");
    fs::create_dir(disks.volume_path(volume)).unwrap();
    assert!(disks.has_volume(volume).is_err(), "what is no file is not absent");
}

#[test]
fn a_seed_is_written_once_and_again_only_when_its_contents_change() {
    let place = Place::new();
    let disks = place.disks(HOST);
    let outcomes = ["web-1", "web-1", "web-2"]
        .map(|hostname| disks.ensure_seed(VM, &seed(hostname)).unwrap().outcome);
    assert_eq!(outcomes, [Outcome::Created, Outcome::Kept, Outcome::Created]);
}
