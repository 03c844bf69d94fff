//! The libvirt of a development cluster: the machine's own, or a private libvirtd in a mount
//! namespace where the directories of the cluster lie over libvirt's, so that neither sees the
//! other's domains, networks or caches.
//!
//! Owns that libvirtd. Never defines a domain: the agents do. Called by `cluster::dev`
//! and, for the hidden command that becomes libvirtd, by `main`.

use std::convert::Infallible;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::arguments::NamespaceArguments;
use super::daemons::{Process, find_in_path};
use super::record::{Accelerator, Directory, Libvirt, Record, make_private};
use crate::failure::Failure;
use crate::limits::LIBVIRT_START_MAX;
use crate::session::Pause;

/// What of libvirt lies where, and which of our directories lies over it.
const MOUNTS: [(&str, &str); 4] = [
    ("etc", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("log", "/var/log/libvirt"),
];
const RUN_MOUNT: &str = "/run/libvirt";
/// Directories that libvirt expects its package to have made.
const EXPECTED: [&str; 8] = [
    "etc/qemu/networks",
    "etc/hooks",
    "lib/dnsmasq",
    "lib/images",
    "lib/network",
    "lib/qemu",
    "cache/qemu",
    "log/qemu",
];

const QEMU_CONFIGURATION: &str = "\
# QEMU as root: guests' disks lie in the cluster's directory, which only its owner can enter.
user = \"root\"
group = \"root\"
dynamic_ownership = 1
remember_owner = 0
security_driver = \"none\"
namespaces = []
# The machine's cgroups may be mounted in ways that libvirt does not manage.
cgroup_controllers = []
# Without virtlogd.
stdio_handler = \"file\"
";

/// The process of the private libvirtd.
pub(crate) fn process(directory: &Directory) -> Process {
    Process { name: "libvirtd".to_owned(), configuration: directory.join("libvirt/libvirtd.conf") }
}

/// Whether the machine's own libvirt should be used: systemd runs it and it answers.
pub(crate) fn system_answers() -> bool {
    let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    first.trim() == "systemd"
        && Command::new("virsh")
            .args(["--connect", "qemu:///system", "version"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// What must be installed, as far as it is missing.
pub(crate) fn missing_programs(libvirt: Libvirt) -> Vec<&'static str> {
    let needed: &[&str] = match libvirt {
        Libvirt::Private => {
            &["libvirtd", "virsh", "qemu-system-x86_64", "qemu-img", "iptables", "ip", "nft"]
        }
        Libvirt::System => &["virsh", "qemu-img", "ip", "nft"],
        Libvirt::None => &[],
    };
    needed.iter().copied().filter(|name| find_in_path(name).is_none()).collect()
}

/// Starts the private libvirtd and waits until it answers.
pub(crate) async fn start(directory: &Directory, record: &Record) -> Result<Child, Failure> {
    let process = process(directory);
    let run_directory = directory.run_directory(record);
    prepare(directory, &run_directory)?;
    let own = std::env::current_exe()
        .map_err(|error| Failure::broken(format!("own path is unknown: {error}")))?;
    let accelerator = match record.accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    let mut command = Command::new(own);
    command
        .args(["cluster", "libvirt-namespace", "--accelerator", accelerator, "--configuration"])
        .arg(&process.configuration)
        .arg("--run-directory")
        .arg(&run_directory);
    let mut child = process.spawn(directory, &mut command)?;
    let socket = run_directory.join("libvirt/libvirt-sock");
    let deadline = Instant::now() + LIBVIRT_START_MAX;
    let mut pause = Pause::new();
    while UnixStream::connect(&socket).is_err() {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(process.failure(directory, &format!("ended at once ({status})")));
        }
        if Instant::now() >= deadline {
            return Err(process.failure(directory, "does not answer"));
        }
        pause.wait().await;
    }
    Ok(child)
}

fn prepare(directory: &Directory, run_directory: &Path) -> Result<(), Failure> {
    let base = directory.join("libvirt");
    make_private(&base)?;
    for name in EXPECTED {
        let path = base.join(name);
        std::fs::create_dir_all(&path).map_err(|error| Failure::file(&path, &error))?;
    }
    let sockets = run_directory.join("libvirt");
    make_private(&sockets)?;
    // Left over from one that was killed: it would look as if the new one answered.
    let _ = std::fs::remove_file(sockets.join("libvirt-sock"));
    let put = |name: &str, text: &str| {
        let path = base.join(name);
        std::fs::write(&path, text).map_err(|error| Failure::file(&path, &error))
    };
    put("etc/qemu.conf", QEMU_CONFIGURATION)?;
    let configuration = format!(
        "unix_sock_dir = \"{}\"\n\
         # Only root may enter the directory of the sockets.\n\
         auth_unix_ro = \"none\"\n\
         auth_unix_rw = \"none\"\n\
         unix_sock_ro_perms = \"0700\"\n\
         unix_sock_rw_perms = \"0700\"\n\
         unix_sock_admin_perms = \"0700\"\n\
         # Four agents and people with virsh.\n\
         max_client_requests = 16\n\
         log_outputs = \"3:stderr\"\n",
        sockets.display()
    );
    put("libvirtd.conf", &configuration)
}

/// Becomes libvirtd: leaves the mount namespace of the caller, lays the cluster's directories over
/// libvirt's, and runs it in place of this program.
pub(crate) fn enter_and_run(arguments: &NamespaceArguments) -> Result<(), Failure> {
    match try_enter_and_run(arguments) {
        Ok(never) => match never {},
        Err(what) => Err(Failure::refused(
            "libvirt_not_started",
            what,
            "Run as root, with libvirt-daemon installed; or use `--hypervisor test`.",
        )),
    }
}

fn try_enter_and_run(arguments: &NamespaceArguments) -> Result<Infallible, String> {
    let base = arguments.configuration.parent().ok_or("the configuration has no directory")?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("new mount namespace: {error}"))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .map_err(|error| format!("private mounts: {error}"))?;
    let run = arguments.run_directory.join("libvirt");
    let mounts = MOUNTS.into_iter().map(|(own, over)| (base.join(own), over));
    for (own, over) in mounts.chain([(run, RUN_MOUNT)]) {
        std::fs::create_dir_all(over).map_err(|error| format!("{over}: {error}"))?;
        bind(&own, Path::new(over))?;
    }
    let kvm = Path::new("/dev/kvm");
    if arguments.accelerator == Accelerator::Tcg && kvm.exists() {
        hide(kvm, &base.join("no-kvm"))?;
    }
    let libvirtd = find_in_path("libvirtd").ok_or("libvirtd is not installed")?;
    let error = Command::new(libvirtd)
        .arg("--config")
        .arg(&arguments.configuration)
        .arg("--pid-file")
        .arg(arguments.run_directory.join("libvirtd.pid"))
        .exec();
    Err(format!("libvirtd: {error}"))
}

fn bind(own: &Path, over: &Path) -> Result<(), String> {
    let none: Option<&str> = None;
    mount(Some(own), over, none, MsFlags::MS_BIND, none)
        .map_err(|error| format!("{} over {}: {error}", own.display(), over.display()))
}

/// Makes a device look absent. libvirt asks with access(2) whether it could open it for writing;
/// only a file on a read-only mount answers no to root. Any other answer makes it throw its
/// knowledge of QEMU away and probe anew, for half a minute, at each call.
fn hide(device: &Path, empty: &Path) -> Result<(), String> {
    std::fs::write(empty, "").map_err(|error| format!("{}: {error}", empty.display()))?;
    bind(empty, device)?;
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, device, none, flags, none).map_err(|error| format!("{}: {error}", device.display()))
}

/// Directories that a private libvirtd was mounted over and that exist only for that.
pub(crate) fn mount_points() -> impl Iterator<Item = PathBuf> {
    MOUNTS.into_iter().map(|(_, over)| over).chain([RUN_MOUNT]).map(PathBuf::from)
}
