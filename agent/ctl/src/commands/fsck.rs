//! `daggerctl host fsck`: shows what on a host has no owner, and which owner lacks what.
//!
//! Owns the words and the exit code. The host's agent looks and compares; nothing is changed.
//! Called by `commands::host`.

use dagger_api::{FsckKind, FsckView};

use crate::failure::Failure;
use crate::output::table;
use crate::session::Session;

/// Shown below the command's `--help`.
pub(super) const HELP: &str = "\
Looks at the host that --api names: over its Unix socket, or with an
operator's key. It changes nothing.

Exit codes: 0 all is in order, 4 something was found, 3 something could not be
seen.

Examples:
  daggerctl host fsck
  daggerctl host fsck --json | jq '.findings[]'";

/// Asks, shows, and ends with the code that says what was found.
pub(super) async fn run(session: &Session) -> Result<(), Failure> {
    let view: FsckView = session.client.get("/v1/fsck").await?;
    session.output.show(&view, text)?;
    if !view.findings.is_empty() {
        return Err(Failure::Found);
    }
    if !view.unknown.is_empty() {
        return Err(Failure::unavailable(
            "not_all_seen",
            "not everything could be seen",
            "Nothing is said about what is unknown; daggerctl host fsck again once it is there.",
        ));
    }
    Ok(())
}

fn text(view: &FsckView) -> String {
    let rows = view.findings.iter().map(|finding| {
        let vm = finding.vm.map(|vm| format!("VM {vm}"));
        let volume = finding.volume.map(|volume| format!("volume {volume}"));
        let about = vm.or(volume).unwrap_or_else(|| "-".to_owned());
        [kind_words(finding.kind).to_owned(), about, finding.detail.clone()]
    });
    let mut text = table(["FINDING", "ABOUT", "DETAIL"], rows, "Nothing was found.");
    for unknown in &view.unknown {
        text.push_str(&format!("\nunknown: {unknown}"));
    }
    let place = match &view.storage_directory {
        Some(directory) if view.quarantined > 0 => format!(" (`quarantine` below {directory})"),
        _ => String::new(),
    };
    text.push_str(&format!(
        "\nCompared {} VMs and volumes with {} machines and {} files; {} files are in quarantine{place}.",
        view.owners, view.machines, view.files, view.quarantined
    ));
    text
}

fn kind_words(kind: FsckKind) -> &'static str {
    match kind {
        FsckKind::CardWithoutOwner => "network card without owner",
        FsckKind::DiskWithoutOwner => "disk without owner",
        FsckKind::MachineWithoutOwner => "machine without owner",
        FsckKind::MachineForeign => "foreign machine under our name",
        FsckKind::OwnerWithoutDisk => "owner without disk",
        FsckKind::OwnerWithoutMachine => "owner without machine",
        FsckKind::FileForeign => "foreign file",
        FsckKind::MachineMisplaced => "machine misplaced",
        FsckKind::ConsoleWithoutOwner => "console without owner",
        FsckKind::ImageUnregistered => "image not registered",
        FsckKind::QuarantineWithoutProof => "quarantined without deletion",
    }
}
