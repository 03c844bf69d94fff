//! What a VM boots directly: the arguments of `vm create`, and how it is shown.
//!
//! Owns the words. Called by `commands::vm`, `commands::vm_view` and `commands::vm_copy`.

use clap::Args;
use dagger_api::VmView;
use dagger_payload::kind::{ImageUse, VmBoot, VmImage};
use dagger_payload::name::{CommandLine, ImageName};

use super::{image, short};
use crate::failure::Failure;
use crate::session::Session;

/// What `vm create` says about booting.
#[derive(Debug, Clone, Args)]
pub(crate) struct BootWishes {
    /// Kernel that is started without a boot loader: publisher/name, or name alone, as with --image
    #[arg(long, value_name = "IMAGE")]
    kernel: Option<String>,
    /// Initial RAM disk of that kernel
    #[arg(long, value_name = "IMAGE", requires = "kernel")]
    initrd: Option<String>,
    /// What that kernel is told; PUBLIC like the rest of the request
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    command_line: Option<CommandLine>,
}

impl BootWishes {
    /// What stands in the order; names are looked up.
    pub(crate) async fn of_new(&self, session: &Session) -> Result<Option<VmBoot>, Failure> {
        let Some(kernel) = &self.kernel else { return Ok(None) };
        let kernel = image::resolve_for(session, kernel, ImageUse::Kernel).await?;
        let initrd = match &self.initrd {
            Some(name) => Some(image::resolve_for(session, name, ImageUse::InitialRamDisk).await?),
            None => None,
        };
        Ok(Some(VmBoot { kernel, initrd, command_line: self.command_line.clone() }))
    }
}

/// What a VM boots, in lines for people.
pub(crate) fn show(view: &VmView) -> [(&'static str, String); 3] {
    let Some(boot) = &view.vm.boot else {
        return ["kernel", "initrd", "command line"].map(|line| (line, String::new()));
    };
    let file = |image: &VmImage, name: &Option<ImageName>| {
        let digest = short(&image.digest);
        name.as_ref().map_or_else(|| digest.clone(), |name| format!("{name} {digest}"))
    };
    let initrd = boot.initrd.as_ref().map(|initrd| file(initrd, &view.initrd_name));
    let line = boot.command_line.as_ref().map(CommandLine::to_string);
    [
        ("kernel", file(&boot.kernel, &view.kernel_name)),
        ("initrd", initrd.unwrap_or_default()),
        ("command line", line.unwrap_or_default()),
    ]
}

/// What a VM from a file would boot has to be registered for the key's account, as it was where the
/// file was made.
pub(crate) async fn require_registered(
    boot: Option<&VmBoot>,
    session: &Session,
) -> Result<(), Failure> {
    let Some(boot) = boot else { return Ok(()) };
    let offered = image::offered(session).await?;
    let missing = boot.images().find(|image| {
        let named = (image.digest, image.format, image.virtual_size_bytes);
        let mut known = offered.iter();
        !known.any(|known| (known.digest, known.format, known.virtual_size_bytes) == named)
    });
    let Some(missing) = missing else { return Ok(()) };
    let (what, format) = (missing.format.use_of().word(), missing.format.word());
    Err(Failure::refused(
        "image_unknown",
        format!(
            "the VM boots a {what} that no image of yours or of an operator who granted you has: \
             {}, of {} bytes",
            missing.digest, missing.virtual_size_bytes
        ),
        format!("Register that file first: daggerctl image register FILE --format {format}."),
    ))
}
