//! The program and the kernel that machines rely on: which release, and what it can.
//!
//! Owns these two questions. Called by the implementation at its start and when it connects.

use std::path::Path;
use std::process::Command;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};

use super::shapes::Landlock;
use crate::hypervisor::HypervisorError;

/// The oldest release whose behaviour this was written for.
const RELEASE_MIN: u32 = 53;

/// Asks the program for its release; it has to be one whose behaviour is known.
pub(super) fn release(program: &Path) -> Result<String, HypervisorError> {
    let missing = |why: String| {
        HypervisorError::Unavailable(format!(
            "program_missing: {} does not run ({why}); install a release of Cloud Hypervisor, version \
             {RELEASE_MIN} or later, and name it in the configuration",
            program.display()
        ))
    };
    let output = Command::new(program)
        .arg("--version")
        .env_clear()
        .output()
        .map_err(|error| missing(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Its first line is its name and release; more lines may follow.
    let first = text.lines().next().unwrap_or_default();
    let release = first.split_whitespace().last().unwrap_or_default();
    let number = release.trim_start_matches('v').split('.').next().and_then(|n| n.parse().ok());
    match number {
        Some(number) if output.status.success() && RELEASE_MIN <= number => Ok(release.to_owned()),
        _ => Err(missing(format!("it calls itself {first:?}"))),
    }
}

/// Whether this kernel lets a process confine itself, asked by making a rule set that is never
/// used.
pub(super) fn find_landlock() -> Landlock {
    let made = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V3))
        .and_then(Ruleset::create);
    if made.is_ok() { Landlock::On } else { Landlock::Off }
}
