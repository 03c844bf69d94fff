//! VMs that boot a kernel directly: all their files are made sure of, kept while they are in use,
//! and named in the machine's definition.

use std::collections::BTreeSet;

use dagger_agent::controller::{Action, Fetched, Input, Outcome, Output, Step, Stored};
use dagger_agent::handover::AttestedVm;
use dagger_agent::hypervisor::announcer::Announcer;
use dagger_agent::hypervisor::libvirt::Libvirt;
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::hypervisor::{DirectBoot, Hypervisor, MachineSpecification, Tags};
use dagger_agent::machines::Accelerator;
use dagger_payload::id::{Generation, ImageDigest, PayloadDigest};
use dagger_payload::kind::{ImageFormat, VmBoot, VmImage};
use serde::Deserialize;
use tokio::sync::mpsc;
use virt::connect::Connect;

use super::collector::{at, images, keeping};
use super::desk::{Desk, steps};
use super::fetches::{fetched, surroundings};
use super::support::{HERE, IMAGE, VM, accepted, after};

const KERNEL: ImageDigest = ImageDigest([0x21; 32]);
const INITRD: ImageDigest = ImageDigest([0x22; 32]);
const URI: &str = "test:///default";

/// The accepted VM, booting a kernel with an initial RAM disk.
fn booting() -> AttestedVm {
    let file = |digest, format| VmImage { digest, format, virtual_size_bytes: 1 << 20 };
    after(&accepted(), |vm| {
        vm.boot = Some(VmBoot {
            kernel: file(KERNEL, ImageFormat::Kernel),
            initrd: Some(file(INITRD, ImageFormat::Initrd)),
            command_line: Some("console=ttyS0".parse().unwrap()),
        });
    })
}

fn missing(image: ImageDigest) -> Outcome {
    Outcome::ImageMissing(image, "image_missing: it is not here".to_owned())
}

#[test]
fn one_step_makes_sure_of_disk_image_kernel_and_initrd_and_each_is_fetched_in_turn() {
    let mut desk = Desk::new();
    for order in surroundings() {
        desk.order(order);
    }
    let outputs = desk.go_live(&[booting()], None);
    let [Output::Act(job)] = &outputs[..] else { panic!("not one step: {outputs:?}") };
    let Action::Image(needed) = &job.action else { panic!("another step: {job:?}") };
    let digests: Vec<_> = needed.iter().map(|needed| needed.image.digest).collect();
    assert_eq!(digests, [IMAGE, KERNEL, INITRD]);
    // Only the first one is registered with sources.
    let sources: Vec<_> = needed.iter().map(|needed| needed.sources.len()).collect();
    assert_eq!(sources, [2, 0, 0]);
    for image in [KERNEL, INITRD] {
        let jobs = fetched(&desk.finish(Step::Image, missing(image), None));
        assert_eq!(jobs.iter().map(|job| job.image).collect::<Vec<_>>(), [image]);
        let outputs = desk.take(Input::Fetched(image, Fetched::Here));
        assert_eq!(steps(&outputs), [Step::Image], "what has come is looked at");
    }
    assert_eq!(steps(&desk.done(Step::Image, None)), [Step::Disk]);
}

#[test]
fn a_definition_that_fails_looks_for_the_kernel_again_since_nothing_lies_over_it() {
    for (version, again) in [(booting(), Step::Image), (accepted(), Step::Disk)] {
        let (mut desk, _) = Desk::live(&[version], None);
        for step in [Step::Image, Step::Disk, Step::Seed, Step::Network] {
            desk.done(step, None);
        }
        let gone = Outcome::Retryable("image_missing: it is not here".to_owned());
        assert_eq!(steps(&desk.finish(Step::Define, gone, None)), []);
        assert_eq!(steps(&desk.wait(1)), [again]);
    }
}

#[test]
fn a_kernel_in_use_is_not_collected_and_one_that_nothing_boots_is() {
    let unused = ImageDigest([9; 32]);
    let stored = || {
        let images = BTreeSet::from([IMAGE, KERNEL, INITRD, unused]);
        Input::Stored(Stored { images, ..Stored::default() })
    };
    let mut desk = keeping(None, Some(24));
    desk.vm(&booting());
    desk.take(at(1));
    desk.caught_up();
    assert_eq!(images(&desk.take(stored())), []);
    desk.take(at(25));
    assert_eq!(images(&desk.take(stored())), [unused]);
    assert_eq!(images(&desk.take(Input::Collected)), []);
}

#[test]
fn a_kernel_that_is_needed_by_the_time_its_turn_comes_stays() {
    let first = ImageDigest([0; 32]);
    let stored = || Input::Stored(Stored { images: [first, KERNEL].into(), ..Stored::default() });
    let mut desk = keeping(None, Some(24));
    desk.take(at(1));
    desk.caught_up();
    desk.take(stored());
    desk.take(at(25));
    assert_eq!(images(&desk.take(stored())), [first]);
    desk.vm(&booting());
    let outputs = desk.take(Input::Collected);
    let collects = outputs.iter().any(|output| matches!(output, Output::Collect(_)));
    assert!(!collects, "{outputs:?}");
}

fn machine(directory: &std::path::Path, boot: Option<DirectBoot>) -> MachineSpecification {
    let path = |name: &str| directory.join(name);
    MachineSpecification {
        tags: Tags {
            host: HERE,
            vm: VM,
            generation: Generation(1),
            payload: PayloadDigest([7; 32]),
        },
        title: "web-1".to_owned(),
        cpus: 1,
        memory_mib: 64,
        disk: path("disk"),
        image: path("image"),
        image_format: ImageFormat::Raw,
        seed: path("seed"),
        volumes: Vec::new(),
        console: path("console"),
        cards: 0,
        boot,
    }
}

/// What libvirt shows of a definition, as far as it is asked here.
#[derive(Deserialize)]
struct Shown {
    os: ShownSystem,
}

#[derive(Deserialize)]
struct ShownSystem {
    #[serde(rename = "cmdline")]
    command_line: Option<String>,
}

#[test]
fn libvirt_is_told_kernel_initrd_and_command_line_as_they_are_and_the_disk_boots_without() {
    let directory = tempfile::tempdir().unwrap();
    let connection = Connect::open(Some(URI)).unwrap();
    let (announced, _changes) = mpsc::channel(16);
    let announcer = Announcer::new(HERE, announced);
    let libvirt = Libvirt::new(URI.to_owned(), Accelerator::Auto, announcer);
    libvirt.connect().unwrap();
    let xml = || {
        let domain = connection.lookup_domain_by_name(&HostNames::of(HERE).domain(VM)).unwrap();
        domain.xml_desc(0).unwrap()
    };
    let line = r#"root=LABEL="a,b" <x> & 'y'"#;
    let boot = DirectBoot {
        kernel: directory.path().join("kernel"),
        initrd: Some(directory.path().join("initrd")),
        command_line: Some(line.parse().unwrap()),
    };
    libvirt.define(&machine(directory.path(), Some(boot))).unwrap();
    let shown = xml();
    let at = |name: &str| directory.path().join(name).display().to_string();
    assert!(shown.contains(&format!("<kernel>{}</kernel>", at("kernel"))), "{shown}");
    assert!(shown.contains(&format!("<initrd>{}</initrd>", at("initrd"))), "{shown}");
    let read: Shown = quick_xml::de::from_str(&shown).unwrap();
    assert_eq!(read.os.command_line.as_deref(), Some(line));
    libvirt.define(&machine(directory.path(), None)).unwrap();
    let shown = xml();
    assert!(!shown.contains("<kernel>") && !shown.contains("<cmdline>"), "{shown}");
    assert!(shown.contains("<boot dev='hd'/>"), "{shown}");
}
