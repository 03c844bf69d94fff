//! Tries whether KVM can really start a machine here.
//!
//! Owns the trial: QEMU with KVM and the host's own CPU model, as libvirt runs it, must bring a
//! guest of one sector through its firmware into protected mode, through an interrupt and back,
//! within a few seconds. A `/dev/kvm` that exists proves nothing: on nested machines it may fail an
//! assertion in QEMU, or emulate the guest instruction by instruction, and then it cannot emulate
//! the return from an interrupt, which every boot loader needs.
//! Called by `cluster::dev`.

use std::process::{Command, Stdio};
use std::time::Instant;

use super::daemons::find_in_path;
use super::record::Accelerator;
use crate::limits::KVM_PROBE_MAX;
use crate::session::Pause;

/// What the guest says on the debug port once it has come back from its interrupt.
const GUEST_SAYS: &[u8] = b"guest!";

/// The sector that SeaBIOS loads at 7c00: `lgdt`, `lidt`, protected mode (`cr0`, a far jump, flat
/// segments), `int 0` to a handler that is one `iret`, `rep outsb` of [`GUEST_SAYS`] to port 402,
/// `hlt`; then that text, the two tables, and their pointers.
#[rustfmt::skip]
const GUEST: [u8; 126] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x0f, 0x01, 0x16, 0x60, 0x7c, 0x0f, 0x01, 0x1e, 0x6e,
    0x7c, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xea, 0x1c, 0x7c, 0x08, 0x00,
    0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x00,
    0x00, 0xcd, 0x00, 0xbe, 0x41, 0x7c, 0x00, 0x00, 0xb9, 0x06, 0x00, 0x00, 0x00, 0x66,
    0xba, 0x02, 0x04, 0xf3, 0x6e, 0xf4, 0xeb, 0xfd, 0xcf, 0x67, 0x75, 0x65, 0x73, 0x74,
    0x21, 0x90, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00,
    0x00, 0x9b, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00, 0x17, 0x00,
    0x48, 0x7c, 0x00, 0x00, 0x40, 0x7c, 0x08, 0x00, 0x00, 0x8e, 0x00, 0x00, 0x07, 0x00,
    0x66, 0x7c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// A sector that firmware takes for one to boot from.
fn boot_sector() -> [u8; 512] {
    let mut sector = [0; 512];
    sector[..GUEST.len()].copy_from_slice(&GUEST);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// How QEMU should run guests here, and why.
pub(crate) async fn probe() -> (Accelerator, &'static str) {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if opened.is_err() {
        return (Accelerator::Tcg, "there is no usable /dev/kvm");
    }
    drop(opened);
    match runs_a_guest().await {
        Ok(()) => (Accelerator::Kvm, "KVM works"),
        Err(why) => (Accelerator::Tcg, why),
    }
}

async fn runs_a_guest() -> Result<(), &'static str> {
    let qemu = find_in_path("qemu-system-x86_64").ok_or("qemu-system-x86_64 is not installed")?;
    let file = || tempfile::NamedTempFile::new().map_err(|_| "no temporary file for the trial");
    let (output, guest) = (file()?, file()?);
    std::fs::write(guest.path(), boot_sector()).map_err(|_| "the trial cannot be written")?;
    let mut child = Command::new(qemu)
        .args(["-accel", "kvm", "-cpu", "host", "-machine", "pc", "-m", "64", "-nodefaults"])
        .args(["-no-user-config", "-display", "none", "-no-reboot", "-chardev"])
        .arg(format!("file,id=debug,path={}", output.path().display()))
        .args(["-device", "isa-debugcon,iobase=0x402,chardev=debug", "-drive"])
        .arg(format!("file={},format=raw,if=floppy", guest.path().display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|_| "QEMU cannot be run")?;
    let deadline = Instant::now() + KVM_PROBE_MAX;
    let mut pause = Pause::new();
    let verdict = loop {
        let said = std::fs::read(output.path()).unwrap_or_default();
        if said.windows(GUEST_SAYS.len()).any(|window| window == GUEST_SAYS) {
            break Ok(());
        }
        if let Ok(Some(_)) = child.try_wait() {
            break Err("/dev/kvm exists, but QEMU fails with it");
        }
        if Instant::now() >= deadline {
            break Err("/dev/kvm exists, but no guest gets far with it");
        }
        pause.wait().await;
    };
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trials_guest_is_a_sector_that_firmware_boots_and_ends_with_its_tables() {
        let sector = boot_sector();
        assert_eq!(sector[510..], [0x55, 0xaa]);
        let text = GUEST.windows(GUEST_SAYS.len()).position(|window| window == GUEST_SAYS);
        // `mov esi, 7c41`: where the text begins.
        assert_eq!(text, Some(0x41));
        assert!(GUEST.windows(5).any(|code| code == [0xbe, 0x41, 0x7c, 0, 0]));
    }
}
