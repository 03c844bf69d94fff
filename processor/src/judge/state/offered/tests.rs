//! How many searches are made, however many names there are. Called by the test runner.

use dagger_payload::id::{Generation, PayloadDigest, Position};
use dagger_payload::key::SecretKey;
use dagger_payload::object::Cause;

use super::*;

const NAMES: u64 = 1024;
const DIGEST: ImageDigest = ImageDigest([5; 32]);

fn key(number: u8) -> PublicKey {
    SecretKey::from_seed(&[number; 32].into()).public_key()
}

/// A file of one digest under some name.
fn image(publisher: u8, number: u64, (format, virtual_size_bytes): (ImageFormat, u64)) -> Image {
    Image {
        name: format!("op{publisher}/image{number}").parse().expect("a name"),
        publisher: key(publisher),
        digest: DIGEST,
        format,
        size_bytes: 1 << 20,
        virtual_size_bytes,
        sources: Vec::new(),
        generation: Generation(1),
        cause: Cause { digest: PayloadDigest([0; 32]), position: Position(1) },
        status: ImageStatus::Offered,
    }
}

fn named(format: ImageFormat, virtual_size_bytes: u64) -> VmImage {
    VmImage { digest: DIGEST, format, virtual_size_bytes }
}

fn searches(of: impl FnOnce()) -> usize {
    SEARCHED.set(0);
    of();
    SEARCHED.get()
}

#[test]
fn a_thousand_names_and_sizes_of_one_file_take_one_search_and_one_for_each_format() {
    let mut offered = Offered::default();
    for number in 0..NAMES {
        for format in [ImageFormat::Raw, ImageFormat::Kernel] {
            offered.add(&image(1, number, (format, number + 1)));
        }
        offered.add(&image(2, number, (ImageFormat::Qcow2, 7)));
    }
    assert_eq!(offered.names.len() as u64, 2 * NAMES + 1, "equal offers are kept once");
    let asked = searches(|| {
        assert!(offered.has(&named(ImageFormat::Kernel, NAMES), &key(1)));
        assert!(!offered.has(&named(ImageFormat::Raw, NAMES + 1), &key(1)));
        assert!(!offered.has(&named(ImageFormat::Qcow2, 7), &key(1)));
        assert!(offered.has(&named(ImageFormat::Qcow2, 7), &key(2)));
    });
    assert_eq!(asked, 4);
    let asked = searches(|| {
        let formats: Vec<_> = offered.formats(&DIGEST, &key(1)).collect();
        assert_eq!(formats, [ImageFormat::Raw, ImageFormat::Kernel]);
    });
    assert_eq!(asked, 3);
    assert_eq!(offered.formats(&DIGEST, &key(3)).count(), 0);
}

#[test]
fn a_file_is_offered_as_long_as_one_of_its_names_is() {
    let mut offered = Offered::default();
    let all: Vec<Image> = (0..3).map(|at| image(1, at, (ImageFormat::Raw, 7))).collect();
    all.iter().for_each(|image| offered.add(image));
    for image in &all {
        assert!(offered.has(&named(ImageFormat::Raw, 7), &key(1)));
        // As it is retired, and taken in again as such.
        offered.remove(image);
        let retired = Image { status: ImageStatus::Retired, ..image.clone() };
        offered.add(&retired);
    }
    assert!(!offered.has(&named(ImageFormat::Raw, 7), &key(1)));
    assert!(offered.names.is_empty());
    // What offered nothing takes nothing away.
    offered.add(&all[0]);
    offered.remove(&Image { status: ImageStatus::Retired, ..all[1].clone() });
    assert!(offered.has(&named(ImageFormat::Raw, 7), &key(1)));
}
