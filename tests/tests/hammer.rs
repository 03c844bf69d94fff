//! A short run of the load generator.
//!
//! Setting: four ledgers as processes, with real stores and links, under a small load. Pinned:
//! every payload that was received is delivered by every host, the ledgers are equal at the end
//! (the program fails otherwise), and the figures have their names. How large they are is not
//! asserted.

use std::process::Command;

use serde_json::Value;

/// Runs the program and reads its figures.
fn figures(rate: &str) -> Value {
    let directory = tempfile::tempdir().expect("a directory");
    let json = directory.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_hammer"))
        .args(["--opaque", "--hosts", "4", "--payload-bytes", "128", "--rate", rate])
        .args(["--seconds", "1", "--warm-up-seconds", "0.2", "--idle-seconds", "0.2"])
        .args(["--window", "64", "--json"])
        .arg(&json)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(json).expect("figures");
    serde_json::from_str(&text).expect("JSON")
}

fn all_are_there(figures: &Value) {
    let numbers = [
        "/offered_per_s",
        "/ordered_per_s",
        "/latency_ms/p50",
        "/latency_ms/p90",
        "/latency_ms/p99",
        "/latency_ms/max",
        "/cpu_cores",
        "/rss_mib_max",
        "/written_per_payload_byte",
        "/sent_per_payload_byte",
        "/bounds/verify_strict_per_s",
        "/bounds/blake3_gb_per_s",
        "/bounds/fsync_per_s",
        "/bounds/loopback_gb_per_s",
    ];
    for name in numbers {
        let value = figures.pointer(name).and_then(Value::as_f64);
        assert!(value.is_some_and(|value| value > 0.0), "{name}: {value:?}");
    }
}

#[test]
fn a_load_at_a_rate_is_ordered_everywhere_and_measured() {
    let figures = figures("400");
    all_are_there(&figures);
    assert_eq!(figures["turned_away"], 0);
    // 0.2 s of warm-up and one second, at 400/s.
    assert_eq!(figures["received"], 480);
    let end = figures["end"].as_str().expect("text");
    assert!(end.starts_with("480 "), "{end}");
}

#[test]
fn a_load_without_a_rate_keeps_a_window_on_its_way() {
    let figures = figures("max");
    all_are_there(&figures);
    let received = figures["received"].as_u64().expect("a count");
    assert!(received >= 256, "every host has had its window on the way at least once");
    let end = figures["end"].as_str().expect("text");
    assert!(end.starts_with(&format!("{received} ")), "{end}");
}
