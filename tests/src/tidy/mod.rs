//! The house rules as code: who may depend on whom, what pure logic may name, sizes, words,
//! licences, dead files.
//!
//! Owns the rules; the lists that they use are data in `rules.toml`. Every rule is a function from
//! what it reads to findings, so that a test can show that it finds. Never writes. Called by
//! `tests/tests/tidy.rs`.

pub mod arrows;
pub mod licences;
pub mod manifests;
pub mod modules;
pub mod source;
pub mod text;
pub mod tokens;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

/// One place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// File, counted from the root of the workspace, or a package.
    pub place: String,
    /// Line, from 1; 0 when the whole place is meant.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Finding {
    /// A finding at one line.
    pub fn at(place: &str, line: usize, message: impl Into<String>) -> Self {
        Self { place: place.to_owned(), line, message: message.into() }
    }

    /// A finding about the whole of `place`.
    pub fn about(place: &str, message: impl Into<String>) -> Self {
        Self::at(place, 0, message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(formatter, "{}: {}", self.place, self.message),
            line => write!(formatter, "{}:{line}: {}", self.place, self.message),
        }
    }
}

/// `rules.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Our packages, and which of our packages each may name.
    pub arrows: BTreeMap<String, BTreeSet<String>>,
    /// For some of our packages, the libraries that they may use.
    pub only_dependencies: BTreeMap<String, BTreeSet<String>>,
    /// A crate's name in code, and the files or folders (ending in `/`) that may name it.
    pub only_in: BTreeMap<String, Vec<String>>,
    /// Purity.
    pub pure: Pure,
    /// Sizes of files and lines.
    pub size: Size,
    /// Files with unsafe code, and why.
    pub unsafe_code: BTreeMap<String, String>,
    /// Files of tests that sleep, and why.
    pub sleeping_tests: BTreeMap<String, String>,
    /// Maxima that stand beside the format or algorithm of which they are a part: by file and name,
    /// and why.
    pub bounds_elsewhere: BTreeMap<String, BTreeMap<String, String>>,
    /// Banned words.
    pub words: Words,
    /// Licences.
    pub licences: Licences,
}

/// What pure logic may not name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pure {
    /// Files and folders (ending in `/`).
    pub paths: Vec<String>,
    /// Identifiers.
    pub forbidden: BTreeSet<String>,
}

/// Sizes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Lines of one file.
    pub file_lines_max: usize,
    /// Characters of one line.
    pub line_columns_max: usize,
    /// Characters of one line of a document.
    pub document_columns_max: usize,
    /// What people read first, in a terminal too.
    pub documents: Vec<String>,
}

/// Banned words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// Anywhere in any tracked text.
    pub comments: Vec<String>,
    /// As macros in Rust.
    pub macros: BTreeSet<String>,
}

/// Licences of the libraries that we build with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Licences {
    /// SPDX names that everyone may carry.
    pub allowed: BTreeSet<String>,
    /// Further ones, by package.
    pub exceptions: BTreeMap<String, String>,
}

impl Rules {
    /// The rules of this tree.
    ///
    /// # Panics
    /// `rules.toml` is not in form.
    pub fn of_this_tree() -> Self {
        toml::from_str(include_str!("rules.toml")).expect("rules.toml is in form")
    }
}

/// Where the workspace begins.
pub fn root() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.parent().expect("the package stands in the workspace").to_owned()
}

/// Whether `path` is one of `places`, or below one that ends in `/`.
pub(crate) fn within<'a>(path: &str, places: impl IntoIterator<Item = &'a String>) -> bool {
    places
        .into_iter()
        .any(|place| path == place || (place.ends_with('/') && path.starts_with(place.as_str())))
}
