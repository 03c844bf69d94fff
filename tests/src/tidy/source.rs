//! The texts that the rules read: every file that git knows or would take.
//!
//! Owns finding and reading them. Never judges. Called by the tidy tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// One text file.
#[derive(Debug, Clone)]
pub struct Source {
    /// Counted from the root of the workspace, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Source {
    /// For examples in tests.
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// Whether it is Rust.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the whole file serves tests: the tests package, and `tests` folders and files
    /// elsewhere.
    pub fn is_test(&self) -> bool {
        self.path.split('/').any(|part| part == "tests" || part == "tests.rs")
    }
}

/// Every text file below `root` that git tracks, or would if it were added.
///
/// # Errors
/// `root` is no working tree of git, or a file cannot be read.
pub fn read_all(root: &Path) -> anyhow::Result<Vec<Source>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"])
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(
        listed.status.success(),
        "git ls-files failed; the house rules read a git working tree: {}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let listed = String::from_utf8(listed.stdout).context("a file name is not UTF-8")?;
    let mut sources = Vec::new();
    for path in listed.split('\0').filter(|path| !path.is_empty()) {
        let bytes = match std::fs::read(root.join(path)) {
            Ok(bytes) => bytes,
            // Removed from the working tree, not yet from the index.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
        };
        // Test vectors and pictures may be binary: they are not for reading.
        if let Ok(text) = String::from_utf8(bytes) {
            sources.push(Source { path: path.to_owned(), text });
        }
    }
    Ok(sources)
}
