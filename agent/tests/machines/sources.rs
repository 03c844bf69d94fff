//! Where an image's file may be had, when several names stand for one file.

use dagger_agent::controller::{Action, Output};
use dagger_agent::handover::Order;
use dagger_payload::id::{Generation, ImageDigest};
use dagger_payload::name::ImageSource;
use dagger_payload::object::{Image, ImageStatus};

use super::desk::Desk;
use super::support::{accepted, cause, host, offered};

pub(crate) fn image(name: &str, sources: &[&str]) -> Image {
    let image = offered().vm.image;
    Image {
        name: name.parse().unwrap(),
        publisher: host().agent_key,
        digest: image.digest,
        format: image.format,
        size_bytes: 1 << 20,
        virtual_size_bytes: image.virtual_size_bytes,
        sources: sources.iter().map(|source| source.parse().unwrap()).collect(),
        generation: Generation(1),
        status: ImageStatus::Offered,
        cause: cause(1),
    }
}

/// The places that are tried after these registrations.
fn tried(registrations: &[Image]) -> Vec<String> {
    let mut desk = Desk::new();
    for image in registrations {
        desk.order(Order::Image(Box::new(image.clone())));
    }
    let outputs = desk.go_live(&[accepted()], None);
    match &outputs[..] {
        [Output::Act(job)] => match &job.action {
            Action::Image(needed) => {
                let sources = needed.iter().flat_map(|needed| &needed.sources);
                sources.map(ImageSource::to_string).collect()
            }
            other => panic!("not an image step: {other:?}"),
        },
        other => panic!("not one step: {other:?}"),
    }
}

#[test]
fn another_name_for_the_same_file_takes_no_source_away() {
    let (first, second) = (image("op1/small", &["/a", "/b"]), image("dev/mine", &["/b", "/c"]));
    assert_eq!(tried(&[first.clone(), second.clone()]), ["/a", "/b", "/c"]);
    // A name that is registered again keeps its turn.
    let again = Image { sources: vec!["/d".parse().unwrap()], ..first };
    assert_eq!(tried(&[image("op1/small", &["/a"]), second, again]), ["/d", "/b", "/c"]);
}

#[test]
fn a_name_that_is_retired_or_stands_for_another_file_takes_its_own_sources_with_it() {
    let (first, second) = (image("op1/small", &["/a"]), image("dev/mine", &["/b"]));
    let retired = Image { status: ImageStatus::Retired, ..first.clone() };
    assert_eq!(tried(&[first.clone(), second.clone(), retired.clone()]), ["/b"]);
    assert_eq!(tried(&[first.clone(), second.clone(), retired, first.clone()]), ["/b", "/a"]);
    let other = Image { digest: ImageDigest([7; 32]), ..first.clone() };
    assert_eq!(tried(&[first, second, other]), ["/b"]);
}

#[test]
fn of_very_many_sources_the_first_registered_are_tried() {
    let first = image("op1/small", &["/first"]);
    let more = (0..40).map(|number| image(&format!("dev/n{number}"), &[&format!("/{number}")]));
    let tried = tried(&std::iter::once(first).chain(more).collect::<Vec<_>>());
    assert_eq!((tried.len(), tried[0].as_str(), tried[31].as_str()), (32, "/first", "/30"));
}
