//! The configuration files that are installed as examples are the reference of all keys.
//!
//! Setting: `systemd/{agent,ledger,processor}.toml`, as they stand and with every comment that is a
//! line of TOML taken off. Pinned: each is read by its daemon, which asks next for the genesis; and
//! each table has every key that the daemon knows there, by the daemon's own words.

use std::collections::BTreeSet;
use std::path::Path;

use dagger_tests::tidy::root;

/// Reads a file as a daemon does at its start; the complaint in words.
type Read = fn(&Path) -> Result<(), String>;

fn in_words(error: &dyn std::error::Error) -> String {
    let source = error.source().map(in_words).unwrap_or_default();
    format!("{error}: {source}")
}

fn agent(path: &Path) -> Result<(), String> {
    let read = dagger_agent::configuration::Configuration::read(path);
    read.map(drop).map_err(|error| in_words(&error))
}

fn ledger(path: &Path) -> Result<(), String> {
    let read = dagger_ledger::configuration::Configuration::read(path);
    read.and_then(|read| read.prepare()).map(drop).map_err(|error| in_words(&error))
}

fn processor(path: &Path) -> Result<(), String> {
    let read = dagger_processor::configuration::Configuration::read(path);
    read.and_then(|read| read.read_genesis()).map(drop).map_err(|error| in_words(&error))
}

const DAEMONS: [(&str, Read); 3] = [("agent", agent), ("ledger", ledger), ("processor", processor)];
/// A key that no daemon knows.
const UNKNOWN: &str = "no_such_key";
/// Tables whose keys are names of the operator's choice.
const FREE: [&str; 1] = ["peers"];

fn example(daemon: &str) -> String {
    let path = root().join(format!("systemd/{daemon}.toml"));
    std::fs::read_to_string(path).expect("it is there")
}

/// With every comment taken off that is a line of TOML, and no sentence.
fn uncommented(text: &str) -> toml::Table {
    let is_setting = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| {
            key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
    };
    // What a comment repeats stands in the file already.
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(setting) if is_setting(setting) => setting,
        _ => line,
    });
    let lines: Vec<_> = lines.collect();
    toml::from_str(&lines.join("\n")).unwrap_or_else(|error| panic!("{error}"))
}

fn read(read: Read, text: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("example.toml");
    std::fs::write(&path, text).expect("written");
    read(&path)
}

/// The words in back quotes that follow "expected".
fn expected(complaint: &str) -> BTreeSet<String> {
    let (_, list) = complaint.split_once("expected").expect("it lists what it knows");
    list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn assert_whole(daemon: &str, read_as: Read, table: &toml::Table, at: Option<&str>) {
    let mut whole = uncommented(&example(daemon));
    let within = match at {
        None => &mut whole,
        Some(name) => whole[name].as_table_mut().expect("it is a table"),
    };
    within.insert(UNKNOWN.to_owned(), 1.into());
    let complaint = read(read_as, &whole.to_string()).expect_err("nobody knows that key");
    assert!(complaint.contains(UNKNOWN), "{daemon} {at:?}: {complaint}");
    let known = expected(&complaint);
    let shown: BTreeSet<_> = table.keys().cloned().collect();
    assert_eq!(shown, known, "{daemon}.toml {at:?}: shown, known");
}

#[test]
fn every_example_is_read_and_has_every_key_that_its_daemon_knows() {
    for (daemon, read_as) in DAEMONS {
        let table = uncommented(&example(daemon));
        for text in [example(daemon), table.to_string()] {
            let complaint = read(read_as, &text).expect_err("there is no genesis");
            assert!(complaint.contains("cannot read"), "{daemon}: {complaint}");
            assert!(complaint.contains("genesis.json"), "{daemon}: {complaint}");
        }
        assert_whole(daemon, read_as, &table, None);
        for (name, value) in &table {
            if let Some(inner) = value.as_table().filter(|_| !FREE.contains(&name.as_str())) {
                assert_whole(daemon, read_as, inner, Some(name));
            }
        }
    }
}

#[test]
fn a_missing_configuration_says_where_the_examples_are() {
    for (daemon, read_as) in DAEMONS {
        let complaint = read_as(Path::new("/nowhere/at.toml")).expect_err("it is not there");
        assert!(complaint.contains("/usr/share/dagger"), "{daemon}: {complaint}");
    }
}
