//! Which registered files a new VM may be made of and boot.
//!
//! Owns that each is named for what it was registered as, and by whom it has to be published.
//! Called by the rules of VMs.

use dagger_payload::kind::{ImageFormat, ImageUse, VmCreate, VmImage};
use dagger_payload::object::Account;
use dagger_payload::refusal::{Refusal, RefusalCode};

use super::state::State;
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
    let trusted = || {
        let live = account.grants.iter().filter(|grant| state.is_live(grant, case.now));
        let granting = live.filter_map(|grant| state.operators.get(&grant.operator));
        granting.map(|operator| &operator.first_key).chain([&account.key])
    };
    if trusted().any(|publisher| state.offered.has(named, publisher)) {
        return Ok(());
    }
    let formats =
        || trusted().flat_map(|publisher| state.offered.formats(&named.digest, publisher));
    match formats().next() {
        // Whoever calls it otherwise than it was registered gets no further.
        Some(first) if formats().all(|format| format.use_of() != as_what) => wrong(first),
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
