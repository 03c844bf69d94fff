//! What the actuator's stores take in on the ledger's word, and what they leave behind: real files.

use std::fs;
use std::path::Path;

use dagger_agent::actuator::disks::{DiskError, Disks};
use dagger_agent::actuator::store::StoredDisks;
use dagger_agent::controller::proof::DeleteProof;
use dagger_images::ImportDirectories;
use dagger_payload::id::ImageDigest;
use dagger_payload::kind::{ImageFormat, VmImage};
use dagger_payload::object::Wanted;

use super::support::{HERE, VM, accepted, wants};

const BYTES: usize = 1 << 20;

fn stores(directory: &Path) -> StoredDisks {
    let imports = ImportDirectories::new(vec![directory.join("import")]);
    StoredDisks::open(&directory.join("storage"), HERE, imports).unwrap()
}

/// Writes a file and gives the digest of its bytes.
fn file(path: &Path, byte: u8) -> ImageDigest {
    let bytes = vec![byte; BYTES];
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, &bytes).unwrap();
    ImageDigest(*blake3::hash(&bytes).as_bytes())
}

fn raw(digest: ImageDigest) -> VmImage {
    VmImage { digest, format: ImageFormat::Raw, virtual_size_bytes: BYTES as u64 }
}

fn ensure(stores: &StoredDisks, digest: ImageDigest, source: &Path) -> Result<(), DiskError> {
    stores.ensure_image(&raw(digest), &[source.to_str().unwrap().parse().unwrap()])
}

#[test]
fn a_source_is_imported_from_where_the_operator_said_and_from_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let stores = stores(directory.path());
    let (inside, outside) =
        (directory.path().join("import/image.raw"), directory.path().join("key"));
    let (image, key) = (file(&inside, 0x5a), file(&outside, 0x5b));
    std::os::unix::fs::symlink(&outside, directory.path().join("import/link")).unwrap();
    // Whoever knows what is in a file of this host still cannot boot it.
    for source in [
        outside.clone(),
        directory.path().join("import/../key"),
        directory.path().join("import/link"),
    ] {
        let refused = ensure(&stores, key, &source);
        assert!(matches!(refused, Err(DiskError::ImageMissing(_))), "{refused:?}");
    }
    assert_eq!(ensure(&stores, image, &inside), Ok(()));
}

#[test]
fn what_is_told_about_a_source_says_nothing_of_another_files_contents() {
    let directory = tempfile::tempdir().unwrap();
    let stores = stores(directory.path());
    let path = directory.path().join("import/image.raw");
    let found = file(&path, 0x5a);
    let error = ensure(&stores, ImageDigest([1; 32]), &path).unwrap_err();
    assert!(matches!(error, DiskError::ImageMissing(_)), "{error:?}");
    assert!(!error.to_string().contains(&found.to_string()), "{error}");

    // Nor about a damaged file of the store itself.
    assert_eq!(ensure(&stores, found, &path), Ok(()));
    let stored = stores.image_path(&raw(found));
    fs::remove_file(&stored).unwrap();
    let damaged = file(&stored, 0x5c);
    let error = stores.ensure_image(&raw(found), &[]).unwrap_err();
    assert!(matches!(error, DiskError::ImageDamaged(_)), "{error:?}");
    assert!(!error.to_string().contains(&damaged.to_string()), "{error}");
}

#[test]
fn an_image_of_another_virtual_size_than_registered_is_refused_when_it_comes_and_once_it_is_here() {
    let directory = tempfile::tempdir().unwrap();
    let stores = stores(directory.path());
    let path = directory.path().join("import/image.raw");
    let image = raw(file(&path, 0x5a));
    for virtual_size_bytes in [image.virtual_size_bytes / 2, image.virtual_size_bytes * 2] {
        let registered = VmImage { virtual_size_bytes, ..image.clone() };
        let sources = [path.to_str().unwrap().parse().unwrap()];
        let refused = |sources: &[_]| match stores.ensure_image(&registered, sources) {
            Err(DiskError::ImageRefused(why)) => why,
            other => panic!("{other:?}"),
        };
        let why = refused(&sources);
        assert!(why.contains(&format!("{virtual_size_bytes} were registered")), "{why}");
        // The file lies in the store now.
        assert_eq!(refused(&[]), why);
        fs::remove_file(stores.image_path(&image)).unwrap();
    }
    assert_eq!(ensure(&stores, image.digest, &path), Ok(()));
}

#[test]
fn a_deleted_vms_console_goes_into_quarantine_with_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let stores = stores(directory.path());
    let consoles = directory.path().join("storage/consoles");
    for name in [format!("{VM}.log"), format!("{VM}.log.0"), "another.log".to_owned()] {
        fs::write(consoles.join(name), "login: ").unwrap();
    }
    fs::write(stores.disk_path(VM), "precious").unwrap();
    let proof = DeleteProof::of(&wants(&accepted(), Wanted::Deleted), HERE).unwrap();
    stores.quarantine(&proof).unwrap();
    let left = |path: &Path| {
        let files = fs::read_dir(path).unwrap().flatten().filter(|entry| entry.path().is_file());
        files.count()
    };
    assert_eq!(left(&consoles), 1, "only what is not the VM's");
    assert_eq!(left(&consoles.join("quarantine")), 2);
    assert_eq!(left(&directory.path().join("storage/disks/quarantine")), 1);
}
