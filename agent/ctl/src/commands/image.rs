//! `daggerctl image`: registers images, hands their files to the hosts at hand, and resolves short
//! names.
//!
//! Owns the arguments of the group. Never judges whether an image is safe to boot: hosts do. Called
//! by `main`, `commands::vm` and `commands::payload`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use dagger_api::{AccountView, Held, ImageDownload, ImageImport, ImageView, PayloadView};
use dagger_payload::id::{ImageDigest, OperatorId};
use dagger_payload::kind::{Body, ImageRegister, ImageRetire, ImageUse, VmImage};
use dagger_payload::name::{ImageName, ImageSource};
use dagger_payload::object::{Image, ImageStatus};

use super::{ChangeOptions, Expected, short};
use crate::client::Client;
use crate::endpoint::Endpoint;
use crate::failure::Failure;
use crate::image_file::{self, NamedFormat};
use crate::output::table;
use crate::progress::Progress;
use crate::session::Session;
use crate::units::show_bytes;

const REGISTER_EXAMPLES: &str = "\
Examples:
  daggerctl image register debian-12.qcow2 --name acme/debian-12 \\
      --source https://images.example/debian-12.qcow2
  daggerctl image register disk.img --format raw --name acme/disk
  daggerctl image register /boot/vmlinuz-6.1.0-30-cloud-amd64 \\
      --format kernel --name acme/linux-6.1
  daggerctl image register /boot/initrd.img-6.1.0-30-cloud-amd64 \\
      --format initrd --name acme/initrd-6.1

An operator publishes under his own name, as `daggerctl operator ls` shows it;
an account under its id, as `daggerctl account show` shows it. No other name
is accepted.

The request names the file's BLAKE3 digest; hosts boot nothing else under that
name. Hosts on this machine (those in --api with a unix: address) take the
file at once, others fetch it from the sources.";

/// The group's commands.
#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Register an image under a name, and hand its file to the hosts on this machine
    #[command(after_help = REGISTER_EXAMPLES)]
    Register {
        /// What is registered.
        #[command(flatten)]
        register: RegisterArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// Let no new VM boot an image of yours; VMs that have it keep it, and the name stays yours
    #[command(after_help = "Example:\n  daggerctl image retire acme/debian-11")]
    Retire {
        /// Which image.
        #[command(flatten)]
        retire: RetireArguments,
        /// How far to wait.
        #[command(flatten)]
        options: ChangeOptions,
    },
    /// List registered images
    #[command(visible_alias = "list", after_help = "Example:\n  daggerctl image ls")]
    Ls,
}

/// What `image register` registers.
#[derive(Debug, Clone, Args)]
pub(crate) struct RegisterArguments {
    /// The image file
    pub(crate) file: PathBuf,
    /// What it is called: publisher/name
    #[arg(long, value_name = "PUBLISHER/NAME")]
    pub(crate) name: ImageName,
    /// Its format; never guessed from the bytes
    #[arg(long, value_enum, default_value = "qcow2")]
    pub(crate) format: NamedFormat,
    /// Where hosts may fetch it besides from each other: an https:// address; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) source: Vec<ImageSource>,
}

/// What `image retire` names.
#[derive(Debug, Clone, Args)]
pub(crate) struct RetireArguments {
    /// The image in full
    #[arg(value_name = "PUBLISHER/NAME")]
    pub(crate) name: ImageName,
    /// In which version.
    #[command(flatten)]
    pub(crate) expected: Expected,
}

impl RetireArguments {
    /// The body of `image.retire`.
    pub(crate) fn body(&self) -> Body {
        let expected_generation = self.expected.generation();
        Body::ImageRetire(ImageRetire { name: self.name.clone(), expected_generation })
    }
}

/// Runs a command of the group.
pub(crate) async fn run(command: ImageCommand, session: &Session) -> Result<(), Failure> {
    match command {
        ImageCommand::Register { register, options } => {
            run_register(&register, &options, session).await
        }
        ImageCommand::Retire { retire, options } => {
            let progress = Progress::new(session.output.format);
            let signed = session.sign(None, retire.body()).await?;
            let (until, deadline) = (options.until(), options.deadline());
            let view = session.submit(&signed, until, deadline, &progress).await?;
            drop(progress);
            session.output.show(&view, super::payload::show)
        }
        ImageCommand::Ls => {
            let images: Vec<ImageView> = session.client.get("/v1/images").await?;
            session.output.show(&images, |images| list(images))
        }
    }
}

/// The body of `image.register`.
pub(crate) fn register_body(
    arguments: &RegisterArguments,
    progress: &Progress,
) -> Result<ImageRegister, Failure> {
    let file = image_file::read(&arguments.file, arguments.format, progress)?;
    Ok(ImageRegister {
        name: arguments.name.clone(),
        digest: file.digest,
        format: file.format,
        size_bytes: file.size_bytes,
        virtual_size_bytes: file.virtual_size_bytes,
        sources: arguments.source.clone(),
    })
}

/// An image that is registered.
pub(crate) struct Registered {
    /// What stands in the request.
    pub(crate) body: ImageRegister,
    /// What came of it, unless it was registered already.
    view: Option<PayloadView>,
    /// How many hosts on this machine have its file now.
    pub(crate) hosts: usize,
}

async fn run_register(
    arguments: &RegisterArguments,
    options: &ChangeOptions,
    session: &Session,
) -> Result<(), Failure> {
    let registered = register(arguments, options, session).await?;
    match registered.view {
        Some(view) => session.output.show(&view, super::payload::show),
        None => {
            let import = import_of(&arguments.file, registered.body.digest)?;
            session.output.show(&import, |import| format!("image {}", import.digest))
        }
    }
}

/// What a host on this machine is asked to take.
fn import_of(file: &Path, digest: ImageDigest) -> Result<ImageImport, Failure> {
    let path = std::path::absolute(file).map_err(|error| Failure::file(file, &error))?;
    Ok(ImageImport { path: path.to_string_lossy().into_owned(), digest })
}

/// Registers an image, unless it is, and hands its file to the hosts on this machine.
pub(crate) async fn register(
    arguments: &RegisterArguments,
    options: &ChangeOptions,
    session: &Session,
) -> Result<Registered, Failure> {
    let deadline = options.deadline();
    let progress = Progress::new(session.output.format);
    let body = register_body(arguments, &progress)?;
    progress.done(format!("digest {}", body.digest));
    let signed = session.sign(None, Body::ImageRegister(body.clone())).await?;
    let view = match session.submit(&signed, options.until(), deadline, &progress).await {
        // The same file under the same name: its file may still be missing on a host.
        Err(failure) if failure.has_code("already_exists") => {
            progress.done("registered already");
            None
        }
        answered => Some(answered?),
    };
    let import = import_of(&arguments.file, body.digest)?;
    let on_this_machine =
        session.client.endpoints().iter().filter(|endpoint| matches!(endpoint, Endpoint::Unix(_)));
    let mut hosts = 0;
    for endpoint in on_this_machine {
        progress.working(format!("{endpoint} reads and checks the file"));
        match Client::import_image(endpoint, &import).await {
            Ok(()) => {
                hosts += 1;
                progress.done(format!("taken by {endpoint}"));
            }
            Err(failure) if failure.is_unavailable() => {
                progress.done(format!("NOT taken by {endpoint}: {}", failure.to_text()));
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(Registered { body, view, hosts })
}

/// Finds a registered image by its full name, or by its last part, among the images of the key's
/// account and of the operators who granted it: no other boots.
pub(crate) async fn resolve(session: &Session, name: &str) -> Result<Image, Failure> {
    choose(name, usable(session, name).await?)
}

/// The same among those that are for this; as it stands in an order.
pub(crate) async fn resolve_for(
    session: &Session,
    name: &str,
    as_what: ImageUse,
) -> Result<VmImage, Failure> {
    let found = usable(session, name).await?;
    let (fitting, others): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|image| image.format.use_of() == as_what);
    if let (true, Some(other)) = (fitting.is_empty(), others.first()) {
        let (format, wanted) = (other.format.word(), as_what.word());
        return Err(Failure::refused(
            "image_use_wrong",
            format!("{} is of the format {format}, and no {wanted}", other.name),
            "Name another one: `daggerctl image ls` shows the format of each.",
        ));
    }
    let Image { digest, format, virtual_size_bytes, .. } = choose(name, fitting)?;
    Ok(VmImage { digest, format, virtual_size_bytes })
}

/// Those that may be meant.
async fn usable(session: &Session, name: &str) -> Result<Vec<Image>, Failure> {
    let offered = offered(session).await?.into_iter();
    Ok(offered.filter(|image| is_called(image, name)).collect())
}

/// The images that VMs of the key's account may be made of.
pub(crate) async fn offered(session: &Session) -> Result<Vec<Image>, Failure> {
    let images: Vec<ImageView> = session.client.get("/v1/images").await?;
    let key = session.signing_key()?;
    let account = session.account().await?;
    let path = format!("/v1/accounts/{account}");
    let account = match session.client.get::<AccountView>(&path).await {
        Ok(view) => view.account,
        Err(failure) if failure.has_code("not_found") => {
            return Err(Failure::refused(
                "account_unknown",
                format!("no operator has granted your key ({}) anything", key.path().display()),
                "Ask an operator to run `daggerctl account grant` with your public key.",
            ));
        }
        Err(failure) => return Err(failure),
    };
    let trusted = |image: &Image| {
        let publisher = OperatorId::of(&image.publisher);
        image.publisher == account.key
            || account.grants.iter().any(|grant| grant.operator == publisher)
    };
    let images = images.into_iter().map(|view| view.image);
    let offered = images.filter(|image| image.status == ImageStatus::Offered && trusted(image));
    Ok(offered.collect())
}

/// Whether `name` is all of the image's name, or its last part.
fn is_called(image: &Image, name: &str) -> bool {
    let full = image.name.as_str();
    full == name || full.split_once('/').is_some_and(|(_, last)| last == name)
}

fn choose(name: &str, mut found: Vec<Image>) -> Result<Image, Failure> {
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Failure::refused(
            "image_unknown",
            format!("no image called {name} is yours or of an operator who granted you"),
            "See `daggerctl image ls`, or ask the operator who publishes it for a grant.",
        )),
        _ => {
            let names: Vec<_> = found.iter().map(|image| image.name.to_string()).collect();
            Err(Failure::refused(
                "image_ambiguous",
                format!("{name} may mean {}", names.join(" or ")),
                "Name the one you mean in full.",
            ))
        }
    }
}

/// How far an image has come.
pub(crate) fn show_download(download: &ImageDownload) -> String {
    format!("{} of {}", show_bytes(download.bytes_done), show_bytes(download.bytes_total))
}

fn list(images: &[ImageView]) -> String {
    let rows = images.iter().map(|view| {
        let image = &view.image;
        [
            image.name.to_string(),
            image.format.word().to_owned(),
            show_bytes(image.size_bytes),
            match image.format.use_of() {
                ImageUse::Disk => show_bytes(image.virtual_size_bytes),
                ImageUse::Kernel | ImageUse::InitialRamDisk => "-".to_owned(),
            },
            match (view.held, &view.download) {
                (Held::Yes, _) => "yes".to_owned(),
                (Held::No, Some(download)) => show_download(download),
                (Held::No, None) => "no".to_owned(),
            },
            match image.status {
                ImageStatus::Offered => "offered".to_owned(),
                ImageStatus::Retired => "retired".to_owned(),
            },
            short(&image.digest),
        ]
    });
    let header = ["NAME", "FORMAT", "SIZE", "DISK", "HELD HERE", "STATUS", "DIGEST"];
    table(header, rows, "No images. Register one with `daggerctl image register`.")
}
