//! Where the workspace's programs are, as cargo built them for this test run.
//!
//! Never builds: cargo must not run inside cargo's tests. Called by tests that start real daemons.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The folder of the built programs, which holds all of ours.
///
/// # Errors
/// One of them is missing: `make build` has not run.
pub fn programs() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("this test has a file")?;
    // <target>/<profile>/deps/<test>
    let profile = test.ancestors().nth(2).context("cargo keeps tests below the programs")?;
    for name in ["dagger-agent", "dagger-ledger", "dagger-processor", "daggerctl"] {
        let program = profile.join(name);
        ensure!(program.is_file(), "{} is missing; run `make build` first", program.display());
    }
    Ok(profile.to_owned())
}
