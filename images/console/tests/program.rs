//! The helper as the agent meets it, and as somebody at a terminal does.
//!
//! Setting: the program itself, a socket as its standard input. Pinned: what it answers and what
//! lies beside the answer; where help, version and complaints go, and the exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use dagger_images::consoles::{ConsoleFileAnswer, ConsoleFileRequest, path_in};
use dagger_images::limits::CONSOLE_FILE_REQUEST_BYTES_MAX;
use dagger_payload::id::VmId;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

const PROGRAM: &str = env!("CARGO_BIN_EXE_dagger-console");
const VM: VmId = VmId([7; 16]);

/// What it answers to these words, and the files beside it.
fn asked(directory: &Path, words: &[u8]) -> (ConsoleFileAnswer, Vec<File>) {
    let (mut own, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new(PROGRAM)
        .arg("--directory")
        .arg(directory)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    own.write_all(words).unwrap();
    own.shutdown(Shutdown::Write).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; 4096];
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let received =
        rustix::net::recvmsg(&own, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(each) = message {
            files.extend(each.map(File::from));
        }
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(bytes[received.bytes - 1], b'\n');
    (serde_json::from_slice(&bytes[..received.bytes]).unwrap(), files)
}

fn request(vm: VmId) -> Vec<u8> {
    let mut line = serde_json::to_vec(&ConsoleFileRequest { vm }).unwrap();
    line.push(b'\n');
    line
}

#[test]
fn the_one_file_that_is_asked_for_comes_beside_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(path_in(directory.path(), VM), "login: ").unwrap();
    let (answer, mut files) = asked(directory.path(), &request(VM));
    assert_eq!((answer, files.len()), (ConsoleFileAnswer::Opened, 1));
    let mut said = String::new();
    files[0].read_to_string(&mut said).unwrap();
    assert_eq!(said, "login: ");
    let (answer, files) = asked(directory.path(), &request(VmId([8; 16])));
    assert_eq!((answer, files.len()), (ConsoleFileAnswer::Missing, 0));
}

#[test]
fn a_request_that_names_anything_but_a_vm_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(path_in(directory.path(), VM), "login: ").unwrap();
    let with_more = format!("{{\"vm\":\"{VM}\",\"directory\":\"/etc\"}}\n");
    let too_long = format!("{{\"vm\":\"{VM}\"{}}}\n", " ".repeat(CONSOLE_FILE_REQUEST_BYTES_MAX));
    let cut = format!("{{\"vm\":\"{VM}\"");
    let path = "{\"vm\":\"../../../../etc/passwd\"}\n".to_owned();
    for words in [with_more, too_long, cut, path, "\n".to_owned()] {
        let (answer, files) = asked(directory.path(), words.as_bytes());
        let ConsoleFileAnswer::Refused(why) = answer else { panic!("{words}: {answer:?}") };
        assert!(why.starts_with("request_malformed: ") && files.is_empty(), "{words}: {why}");
    }
}

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).stdin(Stdio::null()).output().expect("it starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn help_and_version_are_said_on_standard_output_and_end_well() {
    for option in ["--help", "-h"] {
        let output = run(&[option]);
        assert!(output.status.success() && output.stderr.is_empty());
        assert!(text(&output.stdout).starts_with("Usage: dagger-console"));
    }
    let output = run(&["--version"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout), concat!("dagger-console ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn wrong_usage_and_no_request_end_with_2_and_say_so_on_standard_error() {
    for (arguments, part) in [(&["--nonsense"][..], "Usage:"), (&[], "no request")] {
        let output = run(arguments);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
        assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
}
