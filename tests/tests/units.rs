//! The units as text: how much each exposes, and lines that must stand whatever the sum is.
//!
//! Setting: the files in `systemd/`, scored by systemd's own judgement (systemd-analyze(1), written
//! against version 252). Pinned: the table in `systemd/exposure.toml`, and that sockets, groups and
//! directories fit together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dagger_tests::tidy::root;
use serde::Deserialize;

/// What `exposure.toml` says of one unit.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    exposure_tenths_max: u32,
    lines: Vec<String>,
}

fn folder() -> PathBuf {
    root().join("systemd")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn table() -> BTreeMap<String, Row> {
    toml::from_str(&read("exposure.toml")).expect("exposure.toml is in form")
}

/// Names of the files with this ending.
fn units(ending: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder()).expect("systemd/ can be read");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("our names are UTF-8"));
    names.filter(|name| name.ends_with(ending)).collect()
}

/// Values of one directive in a unit.
fn values<'a>(unit: &'a str, directive: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(directive)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).collect()
}

fn score(unit: &Path, exposure_tenths_max: u32) -> Output {
    Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={exposure_tenths_max}"))
        .arg(unit)
        .output()
        .expect("systemd-analyze runs; it is in Debian's package systemd")
}

#[test]
fn every_service_has_a_row_and_every_row_a_service() {
    assert_eq!(table().into_keys().collect::<BTreeSet<_>>(), units(".service"));
}

#[test]
fn no_service_exposes_more_than_its_row_allows() {
    for (name, row) in table() {
        let output = score(&folder().join(&name), row.exposure_tenths_max);
        let said = String::from_utf8_lossy(&output.stdout);
        let open = said.lines().filter(|line| !line.contains('✓')).collect::<Vec<_>>();
        assert!(output.status.success(), "{name}:\n{}", open.join("\n"));
    }
}

#[test]
fn a_service_that_loses_one_wall_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    for (name, row) in table() {
        let unit = read(&name);
        let wall = "CapabilityBoundingSet=";
        let is_wall = |line: &&str| line.starts_with(wall);
        assert!(unit.lines().any(|line| is_wall(&line)), "{name} has no {wall}");
        let path = folder.path().join(&name);
        let open: Vec<_> = unit.lines().filter(|line| !is_wall(line)).collect();
        std::fs::write(&path, open.join("\n")).unwrap();
        let output = score(&path, row.exposure_tenths_max);
        assert!(!output.status.success(), "{name} without {wall}");
    }
}

#[test]
fn named_lines_stand_in_their_services() {
    for (name, row) in table() {
        let unit = read(&name);
        for line in row.lines {
            assert!(unit.lines().any(|each| each == line), "{name} lacks {line}");
        }
    }
}

#[test]
fn each_socket_stands_in_a_directory_of_its_own_and_opens_for_one_caller() {
    let (directories, groups) = (read("tmpfiles.conf"), read("sysusers.conf"));
    let services: Vec<String> = units(".service").iter().map(|name| read(name)).collect();
    let mut seen = BTreeSet::new();
    for name in units(".socket") {
        let socket = read(&name);
        if values(&socket, "ListenDatagram") == ["0.0.0.0:67"] {
            // Where guests ask; whoever else does is not answered.
            continue;
        }
        let [path] = values(&socket, "ListenStream")[..] else { panic!("{name}: one address") };
        if ["127.0.0.1:7480", "7481"].contains(&path) {
            continue;
        }
        let [group] = values(&socket, "SocketGroup")[..] else { panic!("{name}: one group") };
        let directory = Path::new(path).parent().unwrap().display().to_string();
        assert!(seen.insert(directory.clone()), "{name} shares its directory");
        let line = format!("d {directory} 0750 root {group}");
        assert!(directories.lines().any(|each| each == line), "tmpfiles.conf lacks: {line}");
        assert!(groups.lines().any(|each| each == format!("g {group} -")), "no group {group}");
        assert_eq!(values(&socket, "SocketMode"), ["0660"], "{name}");
        assert_eq!(values(&socket, "SocketUser"), ["root"], "{name}");
        // The listener gets its socket handed and needs no group; the API's callers are people.
        let callers = services
            .iter()
            .filter(|service| values(service, "SupplementaryGroups").contains(&group))
            .count();
        let expected = usize::from(group != "dagger-api");
        assert_eq!(callers, expected, "{name}: services in group {group}");
    }
}

#[test]
fn the_memory_that_machines_may_fill_is_bounded_and_has_one_owner() {
    let mount = read("run-dagger-vm.mount");
    let options: BTreeSet<_> =
        values(&mount, "Options").into_iter().flat_map(|words| words.split(',')).collect();
    let directory = values(&mount, "Where")[0];
    let owner = |name: &str| options.iter().find_map(|option| option.strip_prefix(name));
    let line = format!(
        "d {directory} {} {} {}",
        owner("mode=").expect("a mode"),
        owner("uid=").expect("an owner"),
        owner("gid=").expect("a group")
    );
    assert!(read("tmpfiles.conf").lines().any(|each| each == line), "tmpfiles.conf lacks: {line}");
    assert!(owner("size=").is_some() && owner("nr_inodes=").is_some(), "{mount}");
    for directive in ["Wants", "After"] {
        let agent = read("dagger-agent.service");
        assert!(values(&agent, directive).contains(&"run-dagger-vm.mount"), "{directive}");
    }
    let machine = read("dagger-vm@.service");
    let started = machine.lines().find(|line| line.starts_with("ExecStart="));
    assert!(!started.expect("a program").contains("--log"), "a log file fills the memory of /run");
}

#[test]
fn every_group_and_user_that_a_service_names_is_made() {
    let made = read("sysusers.conf");
    let names: BTreeSet<_> =
        made.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    for name in units(".service") {
        let unit = read(&name);
        for directive in ["User", "Group", "SupplementaryGroups"] {
            for value in values(&unit, directive) {
                assert!(names.contains(value), "{name}: {directive}={value} is not made");
            }
        }
    }
}
