//! The two programs as somebody meets them who types their names.

use std::process::{Command, Output, Stdio};

const PROGRAMS: [&str; 2] = [env!("CARGO_BIN_EXE_dagger-net"), env!("CARGO_BIN_EXE_dagger-dhcp")];

fn run(program: &str, option: &str) -> Output {
    Command::new(program).arg(option).stdin(Stdio::null()).output().expect("runs")
}

#[test]
fn help_and_version_are_said_on_standard_output_and_are_no_failure() {
    for program in PROGRAMS {
        for (option, part) in
            [("--help", "Usage: dagger-"), ("--version", env!("CARGO_PKG_VERSION"))]
        {
            let output = run(program, option);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains(part), "{program} {option}: {said}");
        }
    }
}

#[test]
fn an_unknown_option_is_wrong_usage() {
    for program in PROGRAMS {
        let output = run(program, "--frobnicate");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{program}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: "), "{program}");
    }
}
