//! The helpers as somebody at a terminal meets them.
//!
//! Pinned: where help, version and complaints go, and the exit codes.

use std::process::{Command, Output, Stdio};

const PROGRAMS: [(&str, &str); 2] = [
    ("dagger-net", env!("CARGO_BIN_EXE_dagger-net")),
    ("dagger-dhcp", env!("CARGO_BIN_EXE_dagger-dhcp")),
];

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn help_and_version_are_said_on_standard_output_and_end_well() {
    for (name, program) in PROGRAMS {
        for option in ["--help", "-h"] {
            let output = run(program, &[option]);
            assert!(output.status.success(), "{name} {option}");
            assert!(text(&output.stdout).starts_with(&format!("Usage: {name}")), "{name}");
            assert!(output.stderr.is_empty(), "{name}");
        }
        let output = run(program, &["--version"]);
        assert!(output.status.success(), "{name}");
        let version = format!("{name} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(text(&output.stdout), version);
    }
}

#[test]
fn wrong_usage_ends_with_2_and_says_on_standard_error_what_is_right() {
    for (name, program) in PROGRAMS {
        let output = run(program, &["--nonsense"]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(output.stdout.is_empty(), "{name}");
        assert!(text(&output.stderr).contains("Usage:"), "{name}");
    }
    // Nobody asks it for anything.
    let output = run(PROGRAMS[0].1, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(text(&output.stderr).contains("no request"), "{}", text(&output.stderr));
}
