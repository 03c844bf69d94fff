//! `daggerctl vm export` and `vm import`: a whole VM that is switched off as one file, and a VM
//! that begins with such a file.
//!
//! Owns the arguments and the files on this machine. An import orders nothing that people could not
//! order by hand: it registers the disk as an image and orders a VM with the size, the keys and the
//! labels that the file names. Called by `commands::vm`.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dagger_api::export::VmExport;
use dagger_payload::kind::{Body, ImageFormat, VmCreate, VmImage};
use dagger_payload::name::{ImageName, Name};
use dagger_payload::object::VmState;
use http_body_util::BodyExt;
use serde::Serialize;

use super::image::{self, RegisterArguments};
use super::lookup::{find, find_host, vm_path};
use super::vm::{CreateWait, VmName, order_new};
use super::{ChangeOptions, Wait, vm_boot};
use crate::endpoint::Endpoint;
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

Run it on the host that has the VM: a disk leaves a host only through its own
socket. The VM cannot start while it is copied. The file holds the whole disk,
which needs no image below it, and what orders the VM again; it tells at its
end whether it is damaged. What is left out is printed: volumes among others,
and the files of a kernel that the VM boots directly, which the file names by
their digests. Whoever has the file has everything on the disk, the guest's
own keys too: two VMs that begin with it answer with the same SSH host key.";

pub(crate) const IMPORT_EXAMPLES: &str = "\
Examples:
  daggerctl vm import web-1.vm --image 4f3c.../web-1 --wait applied
  daggerctl vm import web-1.vm --name web-2 --image acme/web-1 --host host3

It PUBLISHES THE DISK: an image can be read by every operator and every host
of the cluster. The file is read to its end and checked for damage before
anything of it is used; that you trust whoever made it, you have to know by
other means. Then its disk is registered as an image (under a name of yours,
as with `daggerctl image register`), handed to the hosts on this machine, and
a VM with the size, the keys, the labels and the public user-data that the
file names is ordered, as printed before. A kernel and an initial RAM disk
that the file names have to be registered already. On a first boot cloud-init
gives the guest its new address and name.";

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
        // It holds all that is on a disk: nobody else may read it from the beginning.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial);
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => Failure::usage(
                format!("{} is there: of an export that goes on or was killed", partial.display()),
                "Remove it if no export into this file goes on, or name another file.",
            ),
            _ => Failure::file(&partial, &error),
        })?;
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
    // All that can be known to fail is asked before anything is published.
    require_own_socket(session.client.endpoints())?;
    let host = match &arguments.host {
        Some(name) => Some(find_host(session, name).await?.id),
        None => None,
    };
    let progress = Progress::new(session.output.format);
    let (whole, disk) = unpack(&arguments.file, &progress)?;
    let digest = blake3::Hash::from_bytes(whole.digest).to_hex();
    progress.done(format!("the file is whole: {digest}"));
    drop(progress);
    require_room(&whole.head)?;
    let mut create = whole.head.create;
    create.host = host;
    if let Some(name) = &arguments.name {
        create.name = name.clone();
    }
    require_free(&create, session).await?;
    vm_boot::require_registered(create.boot.as_ref(), session).await?;
    for what in &whole.head.left_out {
        say(&format!("not in the file: {}", what.escape_debug()));
    }
    say(&told(&create));
    say(&format!(
        "its disk is published as image {}: every operator and host of the cluster can read it",
        arguments.image
    ));
    let image = register(arguments, &disk, session).await?;
    // The hosts have it; it can be as large as the VM's disk.
    drop(disk);
    create.image = image;
    let body = Body::VmCreate(Box::new(create));
    order_new(body, arguments.wait, arguments.timeout, session).await
}

/// Registers the disk, and has a host on this machine take it.
async fn register(
    arguments: &ImportArguments,
    disk: &tempfile::NamedTempFile,
    session: &Session,
) -> Result<VmImage, Failure> {
    let register = RegisterArguments {
        file: disk.path().to_owned(),
        name: arguments.image.clone(),
        format: NamedFormat::Qcow2,
        source: Vec::new(),
    };
    let options = ChangeOptions { wait: Wait::Ordered, timeout: arguments.timeout };
    let registered = image::register(&register, &options, session).await?;
    if registered.hosts == 0 {
        let what = format!("no host took the disk of image {}", arguments.image);
        let advice = "No VM was ordered. Repeat the import when a host on this machine answers.";
        return Err(Failure::unavailable("disk_not_taken", what, advice));
    }
    Ok(VmImage {
        digest: registered.body.digest,
        format: ImageFormat::Qcow2,
        virtual_size_bytes: registered.body.virtual_size_bytes,
    })
}

/// Only a host on this machine can take the disk out of a file here.
fn require_own_socket(endpoints: &[Endpoint]) -> Result<(), Failure> {
    if endpoints.iter().any(|endpoint| matches!(endpoint, Endpoint::Unix(_))) {
        return Ok(());
    }
    let what = "no host on this machine is named, and no other one can take the disk";
    Err(Failure::usage(what, "Run it on a host, with --api unix:/run/dagger/api.sock."))
}

/// A VM's disk has to be as large as the image that it begins with.
fn require_room(head: &VmExport) -> Result<(), Failure> {
    let wanted = u128::from(head.create.disk_gib) << 30;
    if wanted >= u128::from(head.disk_virtual_size_bytes) {
        return Ok(());
    }
    let what = format!(
        "the file would order {} GiB for a disk of {}",
        head.create.disk_gib,
        show_bytes(head.disk_virtual_size_bytes)
    );
    Err(Failure::refused("vm_file_refused", what, "Make it again with `daggerctl vm export`."))
}

/// The name has to be free.
async fn require_free(create: &VmCreate, session: &Session) -> Result<(), Failure> {
    match find(session, create.name.as_str()).await {
        Err(failure) if failure.has_code("not_found") => Ok(()),
        Err(failure) => Err(failure),
        Ok(view) if view.state == VmState::Deleted => Ok(()),
        Ok(_) => {
            let what = format!("a VM of yours is called {} already", create.name);
            Err(Failure::refused("already_exists", what, "Give another name with --name."))
        }
    }
}

/// What is about to be signed, in words: it comes out of a file that anybody may have edited.
fn told(create: &VmCreate) -> String {
    let keys: Vec<String> = create.ssh_keys.iter().map(ToString::to_string).collect();
    let keys = keys.iter().map(|key| format!("\n  {}", key.escape_debug())).collect::<String>();
    let data = match &create.public_user_data {
        Some(text) => format!("{} bytes of public user-data", text.len()),
        None => "no user-data".to_owned(),
    };
    let boot = create.boot.as_ref().map_or_else(String::new, |boot| {
        let files = boot.images().map(|image| format!("{} {}", image.format.word(), image.digest));
        let files = files.collect::<Vec<_>>().join(" and ");
        let line = boot.command_line.as_ref().map_or("nothing", |line| line.as_str());
        format!(", booting {files}, told {line:?}")
    });
    format!(
        "ordered is VM {}: {} CPUs, {} of memory, {} of disk, {} labels, {data}{boot}, {} keys that \
         may log in{keys}",
        create.name,
        create.cpus,
        show_bytes(create.memory_mib.saturating_mul(1 << 20)),
        show_bytes(create.disk_gib.saturating_mul(1 << 30)),
        create.labels.len(),
        create.ssh_keys.len(),
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_private_from_its_first_byte_and_a_leftover_says_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web-1.vm");
        let making = Making::begin(&path).expect("it begins");
        let mode = making.file.metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Making::begin(&path).err().expect("one goes on");
        assert!(second.to_text().contains("Remove it if no export"), "{}", second.to_text());
        making.finish().expect("finished");
        assert!(path.exists() && Making::begin(&path).is_err());
    }

    #[test]
    fn an_import_needs_a_host_on_this_machine() {
        let endpoint = |text: &str| text.parse::<Endpoint>().expect("an address");
        assert!(require_own_socket(&[endpoint("http://127.0.0.1:7480")]).is_err());
        let both = [endpoint("http://127.0.0.1:7480"), endpoint("unix:/run/dagger/api.sock")];
        assert!(require_own_socket(&both).is_ok());
    }
}
