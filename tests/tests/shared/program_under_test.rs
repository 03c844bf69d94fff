//! Which Cloud Hypervisor is tried, and the guest that it runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use dagger_agent::hypervisor::cloud_hypervisor::{CloudHypervisorConfiguration, Supervision};

/// The one that behaves like it.
pub(crate) fn contract_program() -> PathBuf {
    env!("CARGO_BIN_EXE_cloud-hypervisor-contract").into()
}

/// The real one, where it is named.
pub(crate) fn real_program() -> Option<PathBuf> {
    std::env::var_os("DAGGER_CLOUD_HYPERVISOR").map(PathBuf::from)
}

/// The backend of this program, with its machines in this directory, started directly.
pub(crate) fn configuration(program: PathBuf, directory: &Path) -> CloudHypervisorConfiguration {
    CloudHypervisorConfiguration {
        program,
        firmware: directory.join("guest.elf"),
        run_directory: directory.join("vm"),
        supervision: Supervision::Direct,
    }
}

/// Makes the guest: a few hundred instructions, so that a machine starts in milliseconds.
pub(crate) fn firmware(directory: &Path) -> PathBuf {
    let path = |name: &str| directory.join(name);
    let file = path("guest.elf");
    std::fs::write(path("guest.S"), include_str!("guest.S")).unwrap();
    std::fs::write(path("guest.ld"), include_str!("guest.ld")).unwrap();
    run(Command::new("as").arg("--64").arg("-o").arg(path("guest.o")).arg(path("guest.S")));
    run(Command::new("ld")
        .args(["-m", "elf_x86_64", "-n", "-T"])
        .arg(path("guest.ld"))
        .arg("-o")
        .arg(&file)
        .arg(path("guest.o")));
    file
}

fn run(command: &mut Command) {
    let output = command.output().expect("the tool runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
