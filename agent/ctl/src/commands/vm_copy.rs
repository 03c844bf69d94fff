//! `daggerctl vm export` and `vm import`: a whole VM that is switched off as one file, and a VM
//! that begins with such a file.
//!
//! Owns the arguments and the files on this machine. An import orders nothing that people could not
//! order by hand: it registers the disk as an image and orders a VM with the size, the keys and the
//! labels that the file names. Called by `commands::vm`.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dagger_payload::kind::{Body, ImageFormat, VmImage};
use dagger_payload::name::{ImageName, Name};
use http_body_util::BodyExt;
use serde::Serialize;

use super::image::{self, RegisterArguments};
use super::vm::{CreateWait, VmName, find_host, order_new, vm_path};
use super::{ChangeOptions, Wait};
use crate::failure::Failure;
use crate::image_file::NamedFormat;
use crate::limits::{VM_FILE_PIECE_BYTES, VM_FILE_PIECE_WAIT_MAX};
use crate::output::facts;
use crate::progress::{Progress, say};
use crate::session::Session;
use crate::units::{self, show_bytes};
use crate::vm_file::{Reading, Whole};

pub(crate) const EXPORT_EXAMPLES: &str = "\
Examples:
  daggerctl vm stop web-1 --wait applied
  daggerctl vm export web-1 web-1.vm

Run it on the host that has the VM: a disk leaves a host only through its own socket. The file holds the disk, without the
image below it, and what orders the VM again; it says at its end whether it is whole. What is left out is printed: volumes
among others. Whoever has the file has everything on the disk, the guest's own keys too: two VMs that begin with it answer
with the same SSH host key.";

pub(crate) const IMPORT_EXAMPLES: &str = "\
Examples:
  daggerctl vm import web-1.vm --image 4f3c.../web-1 --wait applied
  daggerctl vm import web-1.vm --name web-2 --image acme/web-1 --host host3

The file is read to its end and checked before anything of it is used. Then its disk is registered as an image (under a name
of yours, as with `daggerctl image register`), handed to the hosts on this machine, and a VM with the size, the keys and the
labels that the file names is ordered. On a first boot cloud-init gives the guest its new address and name.";

/// Arguments of `vm export`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExportArguments {
    /// Which VM; it has to be switched off.
    #[command(flatten)]
    pub(crate) name: VmName,
    /// The file that is made; nothing may be there yet
    pub(crate) file: PathBuf,
}

/// Arguments of `vm import`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImportArguments {
    /// The file that `vm export` made
    pub(crate) file: PathBuf,
    /// Under which name its disk is registered as an image
    #[arg(long, value_name = "PUBLISHER/NAME")]
    pub(crate) image: ImageName,
    /// Name of the VM; the file's own, if not given
    #[arg(long)]
    pub(crate) name: Option<Name>,
    /// Only this host, by name
    #[arg(long)]
    pub(crate) host: Option<Name>,
    /// How far to wait
    #[arg(long, value_enum, default_value = "ordered")]
    pub(crate) wait: CreateWait,
    /// How long to wait at most
    #[arg(long, value_name = "SPAN", default_value = "600s", value_parser = units::span)]
    pub(crate) timeout: Duration,
}

/// What `vm export` shows.
#[derive(Serialize)]
struct Exported {
    file: String,
    digest: String,
    vm: String,
    generation: u64,
    disk_bytes: u64,
    left_out: Vec<String>,
}

/// Runs `vm export`.
pub(crate) async fn export(arguments: &ExportArguments, session: &Session) -> Result<(), Failure> {
    let path = vm_path(session, &arguments.name.vm, "/export").await?;
    let progress = Progress::new(session.output.format);
    progress.working("the host copies the disk");
    let partial = Making::begin(&arguments.file)?;
    let mut body = session.client.export(&path).await?;
    let (mut reading, mut bytes) = (Reading::new(), 0);
    let stopped = |why: &str| {
        let what = format!("the export stopped half-way: {why}");
        Failure::unavailable("export_torn", what, "Try again; nothing was kept.")
    };
    loop {
        let next = tokio::time::timeout(VM_FILE_PIECE_WAIT_MAX, body.frame()).await;
        let frame = match next {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(stopped(&error.to_string())),
            Ok(None) => break,
            Err(_) => return Err(stopped("nothing came any more")),
        };
        let Ok(piece) = frame.into_data() else { continue };
        reading.take(&piece)?;
        partial.write(&piece)?;
        bytes += piece.len() as u64;
        progress.working(format!("{} of the VM", show_bytes(bytes)));
    }
    let Whole { head, digest } = reading.end()?;
    partial.finish()?;
    drop(progress);
    let exported = Exported {
        file: arguments.file.display().to_string(),
        digest: blake3::Hash::from_bytes(digest).to_hex().to_string(),
        vm: head.vm.to_string(),
        generation: head.generation.0,
        disk_bytes: head.disk_bytes,
        left_out: head.left_out,
    };
    session.output.show(&exported, |exported| {
        let mut lines = vec![
            ("File", exported.file.clone()),
            ("Digest", exported.digest.clone()),
            ("VM", format!("{} in generation {}", exported.vm, exported.generation)),
            ("Disk", show_bytes(exported.disk_bytes)),
        ];
        lines.extend(exported.left_out.iter().map(|what| ("Left out", what.clone())));
        facts(lines)
    })
}

/// A file that is being made; without its end it is removed.
struct Making {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl Making {
    fn begin(path: &Path) -> Result<Self, Failure> {
        if path.exists() {
            let what = format!("{} is there already", path.display());
            return Err(Failure::usage(what, "Name a file that is not there."));
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".partial");
        let partial = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&partial);
        let file = file.map_err(|error| Failure::file(&partial, &error))?;
        // It holds all that is on a disk.
        let private = file.set_permissions(Permissions::from_mode(0o600));
        private.map_err(|error| Failure::file(&partial, &error))?;
        Ok(Self { file, partial, path: path.to_owned() })
    }

    fn write(&self, piece: &[u8]) -> Result<(), Failure> {
        (&self.file).write_all(piece).map_err(|error| Failure::file(&self.partial, &error))
    }

    fn finish(self) -> Result<(), Failure> {
        let done = self.file.sync_all().and_then(|()| std::fs::rename(&self.partial, &self.path));
        done.map_err(|error| Failure::file(&self.path, &error))
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        // Gone already when it was finished.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Runs `vm import`.
pub(crate) async fn import(arguments: &ImportArguments, session: &Session) -> Result<(), Failure> {
    let progress = Progress::new(session.output.format);
    let (whole, disk) = unpack(&arguments.file, &progress)?;
    let digest = blake3::Hash::from_bytes(whole.digest).to_hex();
    progress.done(format!("the file is whole: {digest}"));
    drop(progress);
    for what in &whole.head.left_out {
        say(&format!("not in the file: {what}"));
    }
    let register = RegisterArguments {
        file: disk.path().to_owned(),
        name: arguments.image.clone(),
        format: NamedFormat::Qcow2,
        source: Vec::new(),
    };
    let options = ChangeOptions { wait: Wait::Ordered, timeout: arguments.timeout };
    let image = image::register(&register, &options, session).await?.body;
    let host = match &arguments.host {
        Some(name) => Some(find_host(session, name).await?.id),
        None => None,
    };
    let mut create = whole.head.create;
    create.image = VmImage {
        digest: image.digest,
        format: ImageFormat::Qcow2,
        virtual_size_bytes: image.virtual_size_bytes,
    };
    create.host = host;
    if let Some(name) = &arguments.name {
        create.name = name.clone();
    }
    let body = Body::VmCreate(Box::new(create));
    order_new(body, arguments.wait, arguments.timeout, session).await
}

/// Reads the file to its end; the disk comes into a file beside it that is gone when it is dropped.
fn unpack(path: &Path, progress: &Progress) -> Result<(Whole, tempfile::NamedTempFile), Failure> {
    let failed = |error: std::io::Error| Failure::file(path, &error);
    let file = File::open(path).map_err(failed)?;
    let absolute = std::path::absolute(path).map_err(failed)?;
    let beside = absolute.parent().unwrap_or(Path::new("/"));
    let disk = tempfile::Builder::new().prefix(".vm-disk-").tempfile_in(beside);
    let disk = disk.map_err(|error| Failure::file(beside, &error))?;
    let mut from = BufReader::new(file);
    let (mut reading, mut bytes) = (Reading::new(), 0);
    let mut piece = vec![0; VM_FILE_PIECE_BYTES];
    loop {
        let count = from.read(&mut piece).map_err(failed)?;
        if count == 0 {
            break;
        }
        let of_disk = reading.take(&piece[..count])?;
        disk.as_file().write_all(of_disk).map_err(|error| Failure::file(disk.path(), &error))?;
        bytes += count as u64;
        progress.working(format!("reading the file: {}", show_bytes(bytes)));
    }
    let whole = reading.end()?;
    // The agents of this machine read it as an image that somebody registers.
    let public = disk.as_file().set_permissions(Permissions::from_mode(0o644));
    public.map_err(|error| Failure::file(disk.path(), &error))?;
    Ok((whole, disk))
}
