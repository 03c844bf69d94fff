//! What the manifests say: common lints and licence in each, and no dependency that nothing names.
//!
//! Called by the tidy tests.

use std::collections::BTreeSet;

use super::Finding;
use super::arrows::{Dependency, Package};
use super::tokens::Words;

/// Lines that each of our manifests has, so that the rules of the workspace hold everywhere.
const COMMON_LINES: [&str; 6] = [
    "edition.workspace = true",
    "license.workspace = true",
    "publish.workspace = true",
    "rust-version.workspace = true",
    "version.workspace = true",
    "[lints]\nworkspace = true",
];

/// The manifest of one of our packages takes what is common from the workspace.
pub fn common_lines(path: &str, text: &str) -> Vec<Finding> {
    let missing = COMMON_LINES.iter().filter(|line| !text.contains(**line));
    missing.map(|line| Finding::about(path, format!("lacks `{line}`"))).collect()
}

/// Each dependency is named by the package's code. `words` are all of the package's own files.
pub fn unused_dependencies<'a>(
    package: &Package,
    words: impl Iterator<Item = &'a Words>,
) -> Vec<Finding> {
    let named: BTreeSet<&str> = words.flat_map(Words::identifiers).collect();
    let unused = package.dependencies.iter().filter(|each| !named.contains(&*in_code(each)));
    unused
        .map(|each| {
            Finding::about(&package.name, format!("depends on {}, which no file names", each.name))
        })
        .collect()
}

/// Libraries whose package and crate have different names.
fn in_code(dependency: &Dependency) -> String {
    let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
    match name.as_str() {
        "lmdb-rkv" => "lmdb".to_owned(),
        name => name.replace('-', "_"),
    }
}

/// Lines of the workspace's list of dependencies that no package takes.
pub fn unused_in_workspace<'a>(
    listed: impl Iterator<Item = &'a str>,
    packages: &[&Package],
) -> Vec<Finding> {
    let taken: BTreeSet<&str> = packages
        .iter()
        .flat_map(|package| &package.dependencies)
        .map(|dependency| dependency.name.as_str())
        .collect();
    let unused = listed.filter(|name| !taken.contains(name));
    unused
        .map(|name| Finding::about("Cargo.toml", format!("lists {name}, which no package takes")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source::Source;

    fn package(dependency: &str) -> Package {
        Package {
            name: "dagger-example".to_owned(),
            version: "1.0.0".to_owned(),
            id: String::new(),
            license: None,
            dependencies: vec![Dependency {
                name: dependency.to_owned(),
                kind: None,
                rename: None,
            }],
            targets: Vec::new(),
            manifest_path: "Cargo.toml".into(),
        }
    }

    #[test]
    fn a_manifest_without_the_common_lints_is_found() {
        let text = COMMON_LINES.join("\n");
        assert!(common_lines("a/Cargo.toml", &text).is_empty());
        let without = text.replace("[lints]", "[other]");
        assert_eq!(common_lines("a/Cargo.toml", &without).len(), 1);
    }

    #[test]
    fn a_dependency_that_no_file_names_is_found() {
        let file =
            Source::new("a/src/lib.rs", "use serde_json::Value;\nuse lmdb::Error;\n// tokio\n");
        let words = Words::of(&file).unwrap();
        let count = |name| unused_dependencies(&package(name), [&words].into_iter()).len();
        assert_eq!((count("serde-json"), count("lmdb-rkv"), count("tokio")), (0, 0, 1));
    }

    #[test]
    fn a_shared_line_that_no_package_takes_is_found() {
        let package = package("bytes");
        let found = unused_in_workspace(["bytes", "tokio"].into_iter(), &[&package]);
        assert_eq!(found.len(), 1);
        assert!(found[0].message.contains("tokio"));
    }
}
