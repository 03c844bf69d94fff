//! Short endurance runs of real ledgers.
//!
//! Setting: the program `endure`, as its users start it. Pinned: it fails unless all ledgers are
//! equal byte for byte, everything acknowledged was delivered by every host, and no author has
//! signed two events for one round; so its success is the test. Long runs belong to `make soak`.
//! Faults of the network need root, as `make test` has it.

use std::process::Command;

use serde_json::Value;

fn survived(arguments: &[&str]) -> Value {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("survived.json");
    let output = Command::new(env!("CARGO_BIN_EXE_endure"))
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(json).expect("figures");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn four_ledgers_in_networks_of_their_own_survive_a_short_storm_as_equals() {
    let survived = survived(&["storm", "--seconds", "12", "--faults", "14"]);
    assert!(survived["acknowledged"].as_u64() > Some(100), "{survived}");
    assert!(survived["compared"]["commits"].as_u64() > Some(20), "{survived}");
}

#[test]
fn a_ledger_that_is_killed_again_and_again_keeps_what_it_acknowledged() {
    let storm = ["storm", "--hosts", "1", "--kinds", "kill", "--seconds", "8", "--faults", "8"];
    let survived = survived(&storm);
    assert_eq!(survived["faults"]["Kill"].as_u64(), Some(8), "{survived}");
    assert!(survived["acknowledged"].as_u64() > Some(50), "{survived}");
}
