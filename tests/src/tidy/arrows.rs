//! Who depends on whom, as `cargo metadata` tells it.
//!
//! Owns the reading of the metadata. Called by the tidy tests.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::{Finding, Rules};

/// What of `cargo metadata` the rules read (cargo-metadata(1), format version 1).
#[derive(Debug, Deserialize)]
pub struct Metadata {
    /// All packages that are built on this kind of machine.
    pub packages: Vec<Package>,
    /// Identities of ours.
    pub workspace_members: BTreeSet<String>,
}

/// One package.
#[derive(Debug, Deserialize)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Identity.
    pub id: String,
    /// SPDX expression.
    pub license: Option<String>,
    /// As its manifest names them.
    pub dependencies: Vec<Dependency>,
    /// Libraries, programs, tests.
    pub targets: Vec<Target>,
    /// Its `Cargo.toml`.
    pub manifest_path: std::path::PathBuf,
}

/// One line of a manifest.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The package.
    pub name: String,
    /// None for an ordinary one, else `dev` or `build`.
    pub kind: Option<String>,
    /// Another name for it in code.
    pub rename: Option<String>,
}

/// One target.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// Its first file.
    pub src_path: std::path::PathBuf,
}

impl Metadata {
    /// Asks cargo about the workspace at `root`, as it is locked and as it is built here.
    ///
    /// # Errors
    /// cargo fails, for example because `Cargo.lock` does not fit the manifests.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let platform = "x86_64-unknown-linux-gnu";
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--locked", "--format-version=1", "--filter-platform", platform])
            .current_dir(root)
            .output()
            .context("cannot run cargo")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo metadata failed: {said}");
        serde_json::from_slice(&output.stdout).context("cargo metadata has another form")
    }

    /// Packages of this workspace.
    pub fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Packages of others.
    pub fn others(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| !self.workspace_members.contains(&package.id))
    }
}

/// Between our packages stand the arrows of the design and no others.
pub fn arrows(metadata: &Metadata, rules: &Rules) -> Vec<Finding> {
    let ours: BTreeSet<&str> = metadata.ours().map(|package| package.name.as_str()).collect();
    let mut found = Vec::new();
    for package in metadata.ours() {
        let Some(allowed) = rules.arrows.get(&package.name) else {
            found.push(Finding::about(&package.name, "rules.toml does not know this package"));
            continue;
        };
        let used = package.dependencies.iter().map(|dependency| dependency.name.as_str());
        for target in used.filter(|name| ours.contains(name) && !allowed.contains(*name)) {
            let message = format!("must not depend on {target}; see the design's arrows");
            found.push(Finding::about(&package.name, message));
        }
    }
    found
}

/// Packages of pure logic use only the libraries of their list; their tests may use more.
pub fn only_dependencies(metadata: &Metadata, rules: &Rules) -> Vec<Finding> {
    let ours: BTreeSet<&str> = metadata.ours().map(|package| package.name.as_str()).collect();
    let mut found = Vec::new();
    for package in metadata.ours() {
        let Some(allowed) = rules.only_dependencies.get(&package.name) else { continue };
        let shipped =
            package.dependencies.iter().filter(|each| each.kind.as_deref() != Some("dev"));
        for dependency in shipped {
            if !ours.contains(dependency.name.as_str()) && !allowed.contains(&dependency.name) {
                let message = format!("pure logic must not use {}", dependency.name);
                found.push(Finding::about(&package.name, message));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package's name, and the names and kinds of what it uses.
    type Example<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    fn metadata(packages: &[Example<'_>]) -> Metadata {
        let package = |(name, uses): &Example<'_>| Package {
            name: (*name).to_owned(),
            version: "1.0.0".to_owned(),
            id: (*name).to_owned(),
            license: None,
            dependencies: uses
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).to_owned(),
                    kind: kind.map(str::to_owned),
                    rename: None,
                })
                .collect(),
            targets: Vec::new(),
            manifest_path: "Cargo.toml".into(),
        };
        Metadata {
            packages: packages.iter().map(package).collect(),
            workspace_members: packages.iter().map(|(name, _)| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn an_arrow_against_the_design_is_found_whatever_its_kind() {
        let rules = Rules::of_this_tree();
        for kind in [None, Some("dev"), Some("build")] {
            let wrong = metadata(&[
                ("dagger-ledger", &[("dagger-payload", None), ("dagger-processor", kind)]),
                ("dagger-payload", &[]),
                ("dagger-processor", &[("dagger-payload", None)]),
            ]);
            let found = arrows(&wrong, &rules);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].message.contains("dagger-processor"));
        }
    }

    #[test]
    fn a_package_that_the_rules_do_not_know_is_found() {
        assert_eq!(arrows(&metadata(&[("dagger-new", &[])]), &Rules::of_this_tree()).len(), 1);
    }

    #[test]
    fn a_runtime_in_pure_logic_is_found_but_not_in_its_tests() {
        let rules = Rules::of_this_tree();
        let with = |kind| metadata(&[("dagger-ledger-core", &[("tokio", kind)])]);
        assert_eq!(only_dependencies(&with(None), &rules).len(), 1);
        assert_eq!(only_dependencies(&with(Some("build")), &rules).len(), 1);
        assert_eq!(only_dependencies(&with(Some("dev")), &rules).len(), 0);
    }
}
