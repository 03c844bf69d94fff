//! A libvirtd of a test's own, in a mount namespace where one directory lies over all of libvirt's:
//! neither it nor the machine's own sees the other's domains.
//!
//! Owns that process and, at the end, whatever QEMU it left. It can be made to hang and be killed,
//! and starts again over the same files. It has no `/dev/kvm` there: what a nested one does to
//! libvirt's probing takes minutes. Never defines a domain. Called by tests and the benchmark.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long it may take to answer.
const START_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at whether it does.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Directories that libvirt expects its package to have made.
const EXPECTED: [&str; 9] = [
    "etc/qemu/networks",
    "etc/hooks",
    "lib/dnsmasq",
    "lib/images",
    "lib/network",
    "lib/qemu",
    "cache/qemu",
    "log/qemu",
    "run",
];

/// QEMU as root without its further walls; console files without virtlogd.
const QEMU_CONFIGURATION: &str = "\
user = \"root\"
group = \"root\"
dynamic_ownership = 1
remember_owner = 0
security_driver = \"none\"
namespaces = []
cgroup_controllers = []
stdio_handler = \"file\"
";

/// `$1` is the base directory. An empty file that cannot be written looks like no device at all.
const SCRIPT: &str = r#"set -eu
over() { mkdir -p "$2"; mount --bind "$base/$1" "$2"; }
base=$1
over etc /etc/libvirt
over lib /var/lib/libvirt
over cache /var/cache/libvirt
over log /var/log/libvirt
over run /run/libvirt
if test -e /dev/kvm; then
  : > "$base/no-kvm"
  mount --bind "$base/no-kvm" /dev/kvm
  mount -o remount,bind,ro /dev/kvm
fi
exec libvirtd --config "$base/libvirtd.conf" --pid-file "$base/pid"
"#;

/// A libvirtd that answers.
pub struct Libvirtd {
    base: PathBuf,
    child: Child,
}

impl Libvirtd {
    /// Starts one whose files lie in `base`, an empty directory with a short path.
    ///
    /// # Errors
    /// It does not come up: it is not installed, or this is not root.
    pub fn start(base: &Path) -> anyhow::Result<Self> {
        for name in EXPECTED {
            std::fs::create_dir_all(base.join(name)).context("cannot make its directories")?;
        }
        std::fs::write(base.join("etc/qemu.conf"), QEMU_CONFIGURATION)?;
        let sockets = base.join("run");
        let configuration = format!(
            "unix_sock_dir = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n\
             log_outputs = \"3:stderr\"\n",
            sockets.display()
        );
        std::fs::write(base.join("libvirtd.conf"), configuration)?;
        let mut libvirtd = Self { base: base.to_owned(), child: spawn(base)? };
        libvirtd.until_it_answers()?;
        Ok(libvirtd)
    }

    /// It hangs: its sockets stay, nobody answers.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// It goes on where it was paused.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// It ends at once; its machines go on.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// Another one in the place of one that was killed.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.child = spawn(&self.base)?;
        self.until_it_answers()
    }

    fn until_it_answers(&mut self) -> anyhow::Result<()> {
        let socket = self.base.join("run/libvirt-sock");
        let deadline = Instant::now() + START_MAX;
        while UnixStream::connect(&socket).is_err() {
            if self.child.try_wait()?.is_some() || Instant::now() >= deadline {
                bail!("libvirtd does not answer: {}", self.log());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Its own child: the number is nobody else's before it is waited for.
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw);
        let _ = pid.map(|pid| kill(pid, signal));
    }

    /// How it is reached.
    pub fn uri(&self) -> String {
        format!("qemu:///system?socket={}", self.base.join("run/libvirt-sock").display())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.base.join("libvirtd.log")).unwrap_or_default()
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("libvirtd said: {}", self.log());
        }
        // One that was killed and waited for has no number any more.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::SIGTERM);
            self.signal(Signal::SIGCONT);
            let _ = self.child.wait();
        }
        // Each QEMU has a directory below this one on its command line.
        let base = self.base.to_string_lossy().into_owned();
        for process in processes_with(&[&base, "qemu"]) {
            let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
        }
    }
}

fn spawn(base: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(base.join("libvirtd.log"))?;
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "libvirtd"])
        .arg(base)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("cannot run unshare")
}

/// Processes on whose command line all of these words stand.
pub fn processes_with(words: &[&str]) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_all = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        words.iter().all(|word| line.contains(word))
    };
    pids.filter(has_all).collect()
}
