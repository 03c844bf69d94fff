//! Dead files: every file of Rust is a target's root, or some `mod` leads to it.
//!
//! Called by the tidy tests.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::source::Source;
use super::tokens::Words;

/// Files that no target reaches.
///
/// `roots` are the targets' own files (`lib.rs`, `main.rs`, tests, ...), counted from the root of
/// the workspace.
pub fn dead_files(sources: &[Source], roots: &[String]) -> Vec<Finding> {
    let rust: BTreeMap<&str, &Source> = sources
        .iter()
        .filter(|source| source.is_rust())
        .map(|source| (source.path.as_str(), source))
        .collect();
    let mut alive: BTreeSet<String> = BTreeSet::new();
    // Each with the folder in which its modules stand.
    let mut open: Vec<(String, String)> =
        roots.iter().map(|root| (root.clone(), folder(root).to_owned())).collect();
    while let Some((path, modules)) = open.pop() {
        let Some(source) = rust.get(path.as_str()) else { continue };
        if !alive.insert(path.clone()) {
            continue;
        }
        let Ok(words) = Words::of(source) else { continue };
        for module in declared(&words, &modules) {
            let [file, folder] = [format!("{module}.rs"), format!("{module}/mod.rs")];
            open.extend([(file, module.clone()), (folder, module)]);
        }
        for file in named(source) {
            let modules = file.trim_end_matches(".rs").to_owned();
            open.push((file, modules));
        }
    }
    let dead = rust.keys().filter(|path| !alive.contains(**path));
    dead.map(|path| Finding::about(path, "no `mod` leads to this file: delete it")).collect()
}

fn folder(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Files that a `path` attribute of this one names, which several targets may share.
fn named(source: &Source) -> Vec<String> {
    let lines = source.text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \""));
    let files = lines.filter_map(|rest| Some(rest.split_once('"')?.0));
    files.map(|file| resolved(folder(&source.path), file)).collect()
}

/// `file`, which may go up with `..`, counted from `below`.
fn resolved(below: &str, file: &str) -> String {
    let mut parts: Vec<&str> = below.split('/').collect();
    for part in file.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Paths, without `.rs`, of the modules that a file declares; `below` is the folder for the file's
/// own modules.
fn declared(words: &Words, below: &str) -> Vec<String> {
    let mut found = Vec::new();
    // Names of the inline modules that are open, and how many braces are open in each.
    let mut inline: Vec<(String, usize)> = Vec::new();
    let words = words.all();
    for (index, word) in words.iter().enumerate() {
        let next = |step: usize| words.get(index + step).map_or("", |word| word.text.as_str());
        match word.text.as_str() {
            "mod" if next(2) == ";" => {
                let folders = inline.iter().map(|(name, _)| name.as_str());
                let parts: Vec<_> = [below].into_iter().chain(folders).chain([next(1)]).collect();
                found.push(parts.join("/"));
            }
            "mod" if next(2) == "{" => inline.push((next(1).to_owned(), 0)),
            "{" => {
                if let Some((_, depth)) = inline.last_mut() {
                    *depth += 1;
                }
            }
            "}" => {
                if let Some((_, depth)) = inline.last_mut() {
                    *depth -= 1;
                    if *depth == 0 {
                        inline.pop();
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_dead_when_no_mod_leads_to_it() {
        let sources = [
            Source::new("a/src/lib.rs", "pub mod one;\nmod inline { mod deep; }\nmod two;\n"),
            Source::new("a/src/one.rs", "mod below;\n"),
            Source::new("a/src/one/below.rs", ""),
            Source::new("a/src/inline/deep.rs", ""),
            Source::new("a/src/two/mod.rs", "mod three;"),
            Source::new("a/src/two/three.rs", ""),
            Source::new("a/src/three.rs", "// mod three; stands elsewhere"),
            Source::new("a/tests/common/mod.rs", ""),
            Source::new("a/tests/b/main.rs", "#[path = \"../shared/one.rs\"]\nmod one;\n"),
            Source::new("a/tests/shared/one.rs", "mod deep;\n"),
            Source::new("a/tests/shared/one/deep.rs", ""),
        ];
        let dead = dead_files(&sources, &["a/src/lib.rs".into(), "a/tests/b/main.rs".into()]);
        let places: Vec<_> = dead.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["a/src/three.rs", "a/tests/common/mod.rs"]);
    }
}
