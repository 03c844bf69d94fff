//! What VMs are made of and boot, in the model.

use dagger_payload::id::ImageDigest;
use dagger_payload::kind::{ImageFormat, VmBoot, VmCreate, VmImage};
use dagger_payload::object::{Account, Image, ImageStatus};
use dagger_payload::refusal::RefusalCode;

use super::members::is_present;
use super::people::Scene;
use super::random::Random;
use super::state::Model;

/// Which formats may stand in each place.
const DISKS: &[ImageFormat] = &[ImageFormat::Raw, ImageFormat::Qcow2];
const KERNELS: &[ImageFormat] = &[ImageFormat::Kernel];
const INITRDS: &[ImageFormat] = &[ImageFormat::Initrd];

/// Mostly one that is offered and of a fitting format: else few VMs would ever be.
fn draw_of(scene: &Scene, fitting: &[ImageFormat], random: &mut Random) -> VmImage {
    let offered = scene.model.images.iter().filter(|image| image.status == ImageStatus::Offered);
    let fits = |image: &&Image| fitting.contains(&image.format);
    let (good, other): (Vec<_>, Vec<_>) = offered.partition(fits);
    let drawn = if random.happens(950) { good } else { other };
    if !drawn.is_empty() && random.happens(850) {
        let image = drawn[random.index(drawn.len())];
        let (digest, format) = (image.digest, image.format);
        return VmImage { digest, format, virtual_size_bytes: image.virtual_size_bytes };
    }
    VmImage {
        digest: ImageDigest([u8::try_from(random.below(3)).expect("few"); 32]),
        format: fitting[random.index(fitting.len())],
        virtual_size_bytes: random.of(&[1 << 26, 1 << 26, 1 << 26, 1 << 27]),
    }
}

pub(crate) fn draw_image(scene: &Scene, random: &mut Random) -> VmImage {
    draw_of(scene, DISKS, random)
}

/// None that a document with so much memory could not name.
pub(crate) fn draw_boot(scene: &Scene, memory_mib: u64, random: &mut Random) -> Option<VmBoot> {
    if random.happens(750) {
        return None;
    }
    let kernel = draw_of(scene, KERNELS, random);
    let initrd = random.happens(500).then(|| draw_of(scene, INITRDS, random));
    let line = random.of(&["console=ttyS0", "quiet"]).parse().expect("a line");
    let boot = VmBoot { kernel, initrd, command_line: random.happens(500).then_some(line) };
    Some(boot).filter(|boot| fits_in_half(Some(boot), memory_mib))
}

/// Whether what is loaded into memory leaves half of it.
pub(crate) fn fits_in_half(boot: Option<&VmBoot>, memory_mib: u64) -> bool {
    let Some(boot) = boot else { return true };
    let initrd = boot.initrd.as_ref().map_or(0, |initrd| initrd.virtual_size_bytes);
    boot.kernel.virtual_size_bytes + initrd <= memory_mib * 1024 * 1024 / 2
}

pub(crate) fn judge_images(
    model: &Model,
    account: &Account,
    body: &VmCreate,
) -> Result<(), RefusalCode> {
    judge_image(model, account, &body.image, DISKS)?;
    if let Some(boot) = &body.boot {
        judge_image(model, account, &boot.kernel, KERNELS)?;
        if let Some(initrd) = &boot.initrd {
            judge_image(model, account, initrd, INITRDS)?;
        }
    }
    Ok(())
}

fn judge_image(
    model: &Model,
    account: &Account,
    named: &VmImage,
    fitting: &[ImageFormat],
) -> Result<(), RefusalCode> {
    if !fitting.contains(&named.format) {
        return Err(RefusalCode::ImageUseWrong);
    }
    let live = account.grants.iter().filter(|grant| model.is_live(grant));
    let granting: Vec<_> = live.map(|grant| grant.operator).collect();
    let is_trusted = |image: &&Image| {
        let mut present = model.operators.iter().filter(|own| is_present(own));
        let by_operator = present.find(|own| own.first_key == image.publisher).map(|own| own.id);
        image.publisher == account.key
            || by_operator.is_some_and(|operator| granting.contains(&operator))
    };
    let offered = model.images.iter().filter(|image| image.status == ImageStatus::Offered);
    let same = offered.filter(is_trusted).filter(|image| image.digest == named.digest);
    let same: Vec<_> = same.collect();
    let as_named = (named.format, named.virtual_size_bytes);
    if same.iter().any(|image| (image.format, image.virtual_size_bytes) == as_named) {
        Ok(())
    } else if !same.is_empty() && !same.iter().any(|image| fitting.contains(&image.format)) {
        Err(RefusalCode::ImageUseWrong)
    } else {
        Err(RefusalCode::ImageUnknown)
    }
}
