//! Tries whether KVM can really start a machine here.
//!
//! Owns the trial: QEMU with KVM and the host's own CPU model, as libvirt runs it, must bring its
//! firmware to the end within a few seconds. A `/dev/kvm` that exists proves nothing: on nested
//! machines it may fail an assertion in QEMU, or emulate the guest instruction by instruction.
//! Called by `cluster::dev`.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::daemons::find_in_path;
use super::record::Accelerator;
use crate::limits::KVM_PROBE_MAX;
use crate::session::Pause;

/// What SeaBIOS says on its debug port once it has nothing left to try.
const FIRMWARE_DONE: &[u8] = b"No bootable device";

/// How QEMU should run guests here, and why.
pub(crate) async fn probe() -> (Accelerator, &'static str) {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if opened.is_err() {
        return (Accelerator::Tcg, "there is no usable /dev/kvm");
    }
    drop(opened);
    match boots_firmware().await {
        Ok(()) => (Accelerator::Kvm, "KVM works"),
        Err(why) => (Accelerator::Tcg, why),
    }
}

async fn boots_firmware() -> Result<(), &'static str> {
    let qemu = find_in_path("qemu-system-x86_64").ok_or("qemu-system-x86_64 is not installed")?;
    let output = tempfile::NamedTempFile::new().map_err(|_| "no temporary file for the trial")?;
    let mut child = Command::new(qemu)
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "q35", "-m", "64", "-nodefaults"])
        .args(["-no-user-config", "-display", "none", "-no-reboot", "-chardev"])
        .arg(format!("file,id=debug,path={}", output.path().display()))
        .args(["-device", "isa-debugcon,iobase=0x402,chardev=debug"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|_| "QEMU cannot be run")?;
    let deadline = Instant::now() + KVM_PROBE_MAX;
    let mut pause = Pause::new();
    let verdict = loop {
        let said = std::fs::read(output.path()).unwrap_or_default();
        if said.windows(FIRMWARE_DONE.len()).any(|window| window == FIRMWARE_DONE) {
            break Ok(());
        }
        if let Ok(Some(_)) = child.try_wait() {
            break Err("/dev/kvm exists, but QEMU fails with it");
        }
        if Instant::now() >= deadline {
            break Err("/dev/kvm exists, but is too slow to start a machine");
        }
        pause.wait().await;
    };
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    verdict
}
