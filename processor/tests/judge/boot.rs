//! VMs that boot a kernel directly: what may stand where, and how much memory it takes.

use dagger_payload::kind::{ImageRetire, VmBoot, VmResize};
use serde_json::json;

use super::volumes::running;
use super::*;

const KERNEL: ImageDigest = ImageDigest([6; 32]);
const INITRD: ImageDigest = ImageDigest([7; 32]);
const MIB: u64 = 1 << 20;

fn register(name: &str, (digest, format): (ImageDigest, ImageFormat), size_bytes: u64) -> Body {
    Body::ImageRegister(ImageRegister {
        name: name.parse().expect("an image name"),
        digest,
        format,
        size_bytes,
        virtual_size_bytes: size_bytes,
        sources: Vec::new(),
    })
}

fn furnished() -> Court {
    let mut court = Court::furnished();
    let kernel = register("op0/kernel", (KERNEL, ImageFormat::Kernel), 8 * MIB);
    court.accept(&operator(0), kernel);
    court.accept(&operator(0), register("op0/initrd", (INITRD, ImageFormat::Initrd), 16 * MIB));
    court
}

fn kernel() -> VmImage {
    VmImage { digest: KERNEL, format: ImageFormat::Kernel, virtual_size_bytes: 8 * MIB }
}

fn initrd() -> VmImage {
    VmImage { digest: INITRD, format: ImageFormat::Initrd, virtual_size_bytes: 16 * MIB }
}

fn boot() -> VmBoot {
    let line = "console=ttyS0".parse().expect("a line");
    VmBoot { kernel: kernel(), initrd: Some(initrd()), command_line: Some(line) }
}

fn booting(boot: VmBoot) -> Body {
    Body::VmCreate(Box::new(VmCreate { boot: Some(boot), ..create_body("web", 1) }))
}

#[test]
fn a_vm_names_the_kernel_that_it_boots_and_keeps_it_through_every_change() {
    let mut court = furnished();
    let vm = court.vm(&developer(), booting(boot()));
    assert_eq!(vm.boot, Some(boot()));
    let images: Vec<_> = vm.images().map(|image| image.digest).collect();
    assert_eq!(images, [ImageDigest([5; 32]), KERNEL, INITRD]);
    let stopped = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    assert_eq!(stopped.boot, Some(boot()));
}

#[test]
fn a_kernel_is_no_disk_and_a_disk_is_no_kernel() {
    let mut court = furnished();
    let disk = create_body("web", 1).image;
    let wrong = Err(RefusalCode::ImageUseWrong);
    for image in [kernel(), initrd()] {
        let body = VmCreate { image, ..create_body("web", 1) };
        assert_eq!(court.submit(&developer(), Body::VmCreate(Box::new(body))), wrong);
    }
    for boot in [
        VmBoot { kernel: disk.clone(), ..boot() },
        VmBoot { kernel: initrd(), ..boot() },
        VmBoot { initrd: Some(kernel()), ..boot() },
        VmBoot { initrd: Some(disk.clone()), ..boot() },
        // Called a kernel by who asks, and a disk by who registered it.
        VmBoot { kernel: VmImage { format: ImageFormat::Kernel, ..disk }, ..boot() },
    ] {
        assert_eq!(court.submit(&developer(), booting(boot)), wrong);
    }
    let image = VmImage { format: ImageFormat::Raw, ..kernel() };
    let body = VmCreate { image, ..create_body("web", 1) };
    assert_eq!(court.submit(&developer(), Body::VmCreate(Box::new(body))), wrong);
}

#[test]
fn what_is_booted_is_registered_as_named_and_not_retired() {
    let mut court = furnished();
    let unknown = Err(RefusalCode::ImageUnknown);
    let other = VmImage { digest: ImageDigest([9; 32]), ..kernel() };
    assert_eq!(court.submit(&developer(), booting(VmBoot { kernel: other, ..boot() })), unknown);
    let larger = VmImage { virtual_size_bytes: 9 * MIB, ..kernel() };
    assert_eq!(court.submit(&developer(), booting(VmBoot { kernel: larger, ..boot() })), unknown);
    let name = "op0/initrd".parse().expect("an image name");
    let retire = Body::ImageRetire(ImageRetire { name, expected_generation: None });
    court.accept(&operator(0), retire);
    assert_eq!(court.submit(&developer(), booting(boot())), unknown);
    court.vm(&developer(), booting(VmBoot { initrd: None, ..boot() }));
}

#[test]
fn half_of_the_memory_is_left_to_the_guest_also_after_it_became_smaller() {
    let mut court = furnished();
    let mut body = VmCreate { boot: Some(boot()), ..create_body("web", 1) };
    body.memory_mib = 47;
    assert!(!boot().fits_memory(body.memory_mib) && boot().fits_memory(48));
    body.memory_mib = 64;
    assert!(Body::VmCreate(Box::new(body.clone())).check().is_ok());
    let large = register("op0/large", (ImageDigest([8; 32]), ImageFormat::Kernel), 40 * MIB);
    court.accept(&operator(0), large);
    let kernel = VmImage {
        digest: ImageDigest([8; 32]),
        format: ImageFormat::Kernel,
        virtual_size_bytes: 40 * MIB,
    };
    body.boot = Some(VmBoot { kernel, initrd: None, command_line: None });
    let refused = Body::VmCreate(Box::new(body.clone())).check().map_err(|refusal| refusal.code);
    assert_eq!(refused, Err(RefusalCode::LimitExceeded));
    body.memory_mib = 512;
    let vm = court.vm(&developer(), Body::VmCreate(Box::new(body)));
    let vm = court.vm(&developer(), Body::VmStop(change(&vm).into()));
    let resize = |memory_mib| {
        let memory_mib = Some(memory_mib);
        Body::VmResize(VmResize { vm: vm.id, cpus: None, memory_mib, expected_generation: None })
    };
    assert_eq!(court.submit(&developer(), resize(79)), Err(RefusalCode::StateWrong));
    court.vm(&developer(), resize(80));
    // A VM without a kernel of its own has no such bound.
    let plain = running(&mut court, "plain");
    let stopped = court.vm(&developer(), Body::VmStop(change(&plain).into()));
    let small =
        VmResize { vm: stopped.id, cpus: None, memory_mib: Some(64), expected_generation: None };
    court.vm(&developer(), Body::VmResize(small));
}

#[test]
fn a_document_names_only_a_command_line_and_sizes_that_a_kernel_can_have() {
    let create = |line: &str| {
        let body = VmCreate { boot: Some(boot()), ..create_body("web", 1) };
        let mut json = Body::VmCreate(Box::new(body)).to_json();
        json["boot"]["command_line"] = json!(line);
        Body::read("vm.create", &json.to_string()).map_err(|refusal| refusal.code)
    };
    assert!(create(&"x".repeat(2047)).is_ok());
    let controls =
        ["", "a\nb", "a\u{0}", "a\tb", "\u{7f}", "r\u{f6}t", &"x".repeat(2048)].map(create);
    assert_eq!(controls, [const { Err(RefusalCode::PayloadMalformed) }; 7]);

    let read = |format, size: u64, virtual_size: u64| {
        let mut json = register("op0/x", (KERNEL, format), size).to_json();
        json["virtual_size_bytes"] = json!(virtual_size);
        Body::read("image.register", &json.to_string()).map_err(|refusal| refusal.code)
    };
    let (kernel, initrd) = (ImageFormat::Kernel, ImageFormat::Initrd);
    let too_much = Err(RefusalCode::LimitExceeded);
    assert!(read(kernel, 256 * MIB, 256 * MIB).is_ok());
    assert_eq!(read(kernel, 256 * MIB + 1, 256 * MIB + 1), too_much);
    assert_eq!(read(kernel, MIB, 2 * MIB), too_much);
    assert!(read(initrd, 1024 * MIB, 1024 * MIB).is_ok());
    assert_eq!(read(initrd, 1024 * MIB + 1, 1024 * MIB + 1), too_much);
}
