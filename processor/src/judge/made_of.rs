//! Which registered files a new VM may be made of and boot.
//!
//! Owns that each is named for what it was registered as, and by whom it has to be published.
//! Called by the rules of VMs.

use dagger_payload::kind::{ImageFormat, ImageUse, VmCreate, VmImage};
use dagger_payload::object::{Account, Image, ImageStatus};
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::state::{State, is_live};
use super::{Case, refuse};

/// Its disk begins with a disk image, and what it boots directly is a kernel, with an initial RAM
/// disk or without: all of them the account's own or of an operator who granted it something.
pub(super) fn require_images(
    state: &State,
    case: &Case<'_>,
    account: &Account,
    body: &VmCreate,
) -> Result<(), Refusal> {
    require_image(state, case, account, (&body.image, ImageUse::Disk))?;
    let Some(boot) = &body.boot else { return Ok(()) };
    require_image(state, case, account, (&boot.kernel, ImageUse::Kernel))?;
    let Some(initrd) = &boot.initrd else { return Ok(()) };
    require_image(state, case, account, (initrd, ImageUse::InitialRamDisk))
}

fn require_image(
    state: &State,
    case: &Case<'_>,
    account: &Account,
    (named, as_what): (&VmImage, ImageUse),
) -> Result<(), Refusal> {
    let wrong = |format: ImageFormat| {
        let (registered, wanted) = (format.word(), as_what.word());
        let detail = format!("a file of the format {registered} is no {wanted}");
        refuse(RefusalCode::ImageUseWrong, detail)
    };
    if named.format.use_of() != as_what {
        return wrong(named.format);
    }
    let is_trusted = |image: &&Image| {
        let mut granting = account.grants.iter().filter(|grant| is_live(grant, case.now));
        let is_trusted = image.publisher == account.key
            || granting.any(|grant| state.publishes(&grant.operator, &image.publisher));
        is_trusted && image.status == ImageStatus::Offered
    };
    let mut registered = state.images_with(&named.digest).filter(is_trusted);
    let is_named = |image: &Image| {
        image.format == named.format && image.virtual_size_bytes == named.virtual_size_bytes
    };
    if registered.any(is_named) {
        return Ok(());
    }
    let registered: Vec<_> = state.images_with(&named.digest).filter(is_trusted).collect();
    match registered.first() {
        // Whoever calls it otherwise than it was registered gets no further.
        Some(first) if registered.iter().all(|image| image.format.use_of() != as_what) => {
            wrong(first.format)
        }
        _ => {
            let detail = format!(
                "{}: no image of yours or of an operator who granted you capacity has this digest, \
                 format and virtual size and is not retired",
                as_what.word()
            );
            refuse(RefusalCode::ImageUnknown, detail)
        }
    }
}
