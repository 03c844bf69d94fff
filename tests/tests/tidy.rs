//! The house rules, held against this tree.
//!
//! Setting: every file that git knows, and what cargo says of the workspace. Pinned: no finding of
//! any rule in `dagger_tests::tidy`. The rules' own tests, which show that they find, stand beside
//! them.

use std::path::Path;

use dagger_tests::tidy::arrows::{Metadata, Package, arrows, only_dependencies};
use dagger_tests::tidy::licences::licences;
use dagger_tests::tidy::source::{Source, read_all};
use dagger_tests::tidy::tokens::{Words, stale_exceptions};
use dagger_tests::tidy::{Finding, Rules, manifests, modules, root, text};

fn sources() -> Vec<Source> {
    let sources = read_all(&root()).expect("the tree can be read");
    assert!(sources.iter().filter(|source| source.is_rust()).count() > 50, "not the whole tree");
    sources
}

fn metadata() -> Metadata {
    Metadata::read(&root()).expect("cargo tells about the workspace")
}

fn rust_words(sources: &[Source]) -> Vec<Words> {
    let read = sources.iter().filter(|source| source.is_rust()).map(Words::of);
    read.collect::<Result<_, _>>().unwrap_or_else(|finding| panic!("{finding}"))
}

/// Fails with all findings at once.
#[track_caller]
fn none(found: Vec<Finding>) {
    let lines: Vec<_> = found.iter().map(Finding::to_string).collect();
    assert!(lines.is_empty(), "{} findings:\n{}", lines.len(), lines.join("\n"));
}

#[track_caller]
fn none_in_rust(rule: impl Fn(&Words) -> Vec<Finding>) {
    none(rust_words(&sources()).iter().flat_map(rule).collect());
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("ours stand in the workspace");
    path.to_str().expect("our names are UTF-8").to_owned()
}

#[test]
fn our_packages_depend_on_each_other_as_the_design_draws_it() {
    none(arrows(&metadata(), &Rules::of_this_tree()));
}

#[test]
fn packages_of_pure_logic_use_only_the_libraries_of_their_list() {
    none(only_dependencies(&metadata(), &Rules::of_this_tree()));
}

#[test]
fn pure_logic_names_no_clock_file_thread_socket_chance_float_or_hash_map() {
    none_in_rust(|words| words.purity(&Rules::of_this_tree()));
}

#[test]
fn a_library_that_one_place_may_name_is_named_only_there() {
    none_in_rust(|words| words.only_in(&Rules::of_this_tree()));
}

#[test]
fn files_and_lines_are_short_enough_to_be_read() {
    let size = Rules::of_this_tree().size;
    let sources = sources();
    let rust: Vec<_> = sources.iter().filter(|source| source.is_rust()).collect();
    let words = rust_words(&sources);
    let pairs = rust.iter().zip(&words);
    none(pairs.flat_map(|(source, words)| text::sizes(source, words, &size)).collect());
    let documents = sources.iter().filter(|source| size.documents.contains(&source.path));
    assert_eq!(documents.count(), size.documents.len(), "each is there");
    none(sources.iter().flat_map(|source| text::document_lines(source, &size)).collect());
}

#[test]
fn waits_queues_and_retries_have_their_bounds_in_a_limits_file() {
    none_in_rust(|words| words.bounds(&Rules::of_this_tree()));
}

#[test]
fn every_module_says_what_it_is() {
    none(sources().iter().flat_map(text::module_documentation).collect());
}

#[test]
fn no_text_promises_work() {
    let rules = Rules::of_this_tree();
    let sources = sources();
    // The list of the words itself.
    let read = sources.iter().filter(|source| source.path != "tests/src/tidy/rules.toml");
    none(read.flat_map(|source| text::words(source, &rules.words)).collect());
    none_in_rust(|words| words.promising_macros(&rules));
}

#[test]
fn unsafe_code_stands_only_where_c_is_called() {
    none_in_rust(|words| words.unsafe_code(&Rules::of_this_tree()));
}

#[test]
fn no_test_sleeps() {
    none_in_rust(|words| words.sleeping_tests(&Rules::of_this_tree()));
}

#[test]
fn every_exception_is_needed() {
    none(stale_exceptions(&rust_words(&sources()), &Rules::of_this_tree()));
}

#[test]
fn every_library_has_a_licence_of_the_list() {
    let metadata = metadata();
    assert!(metadata.others().count() > 100, "not the whole graph");
    none(licences(&metadata, &Rules::of_this_tree().licences));
}

#[test]
fn no_file_is_dead() {
    let (sources, metadata) = (sources(), metadata());
    let targets = metadata.ours().flat_map(|package| &package.targets);
    let roots: Vec<_> = targets.map(|target| relative(&target.src_path)).collect();
    none(modules::dead_files(&sources, &roots));
    none(text::dead_scripts(&sources));
}

#[test]
fn no_dependency_is_dead() {
    let (sources, metadata) = (sources(), metadata());
    let ours: Vec<&Package> = metadata.ours().collect();
    let mut found = Vec::new();
    for package in &ours {
        let folder = relative(package.manifest_path.parent().expect("a manifest has a folder"));
        let inner =
            ours.iter().map(|other| relative(other.manifest_path.parent().expect("it has")));
        let inner: Vec<_> =
            inner.filter(|other| other.starts_with(&format!("{folder}/"))).collect();
        let own: Vec<_> = sources
            .iter()
            .filter(|source| source.path.starts_with(&format!("{folder}/")))
            .filter(|source| !inner.iter().any(|at| source.path.starts_with(&format!("{at}/"))))
            .cloned()
            .collect();
        let words = rust_words(&own);
        found.extend(manifests::unused_dependencies(package, words.iter()));
    }
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("it is there");
    let manifest: toml::Table = manifest.parse().expect("cargo has read it");
    let listed = manifest["workspace"]["dependencies"].as_table().expect("it is a table");
    found.extend(manifests::unused_in_workspace(listed.keys().map(String::as_str), &ours));
    none(found);
}

#[test]
fn every_manifest_takes_what_is_common_from_the_workspace() {
    let metadata = metadata();
    let mut found = Vec::new();
    for package in metadata.ours() {
        let text = std::fs::read_to_string(&package.manifest_path).expect("cargo has read it");
        found.extend(manifests::common_lines(&relative(&package.manifest_path), &text));
    }
    none(found);
}
