//! Where the workspace's programs are, as cargo built them for this test run, and guest images.
//!
//! Never builds programs: cargo must not run inside cargo's tests. Called by tests that start real
//! daemons.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The folder of the built programs, which holds all of ours.
///
/// # Errors
/// One of them is missing: `make build` has not run.
pub fn programs() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("this test has a file")?;
    // <target>/<profile>/deps/<test>
    let profile = test.ancestors().nth(2).context("cargo keeps tests below the programs")?;
    let daemons = ["dagger-agent", "dagger-ledger", "dagger-processor"];
    let helpers = ["dagger-console", "dagger-dhcp", "dagger-fetch", "dagger-net", "daggerctl"];
    for name in daemons.into_iter().chain(helpers) {
        let program = profile.join(name);
        ensure!(program.is_file(), "{} is missing; run `make build` first", program.display());
    }
    Ok(profile.to_owned())
}

/// The guest image of one recipe, made now unless it is in the cache.
///
/// # Panics
/// The recipe fails.
pub fn image(recipe: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cache = std::env::var_os("DAGGER_CACHE").map_or(root.join(".cache"), PathBuf::from);
    let script = root.join("images/recipes").join(recipe).join("build.sh");
    let output = Command::new(script).arg("--cache").arg(cache).output().expect("the recipe runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().last().expect("a path").into()
}
