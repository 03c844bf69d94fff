//! The built program, as people and scripts meet it: help, exit codes, pipes, keys. No agent runs
//! here.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt;
use dagger_payload::id::{ClusterId, LedgerTime, VmId};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::{Body, VmChange};
use dagger_payload::payload::Payload;

fn daggerctl(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("daggerctl").expect("built");
    for name in ["DAGGER_API", "DAGGER_KEY", "DAGGER_DIRECTORY"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    daggerctl(arguments).output().expect("runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn make_key(directory: &Path, passphrase: &str) -> PathBuf {
    let path = directory.join("key");
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", passphrase, "-f"])
        .arg(&path)
        .status()
        .expect("ssh-keygen runs");
    assert!(status.success());
    path
}

fn public_key(key: &Path) -> PublicKey {
    let line = std::fs::read_to_string(key.with_extension("pub")).expect("a public key");
    line.trim().parse().expect("an ed25519 key")
}

/// A document that asks to stop some VM.
fn write_document(directory: &Path, signer: PublicKey) -> PathBuf {
    let document = Payload {
        cluster: ClusterId([7; 32]),
        signer,
        not_after: LedgerTime(1_800_000_000_000),
        body: Body::VmStop(VmChange { vm: VmId([9; 16]), expected_generation: None }.into()),
    };
    let path = directory.join("request.json");
    std::fs::write(&path, document.to_bytes()).expect("writes");
    path
}

/// What `ssh-keygen -Y verify` says about FILE and FILE.sig.
fn openssh_verifies(directory: &Path, signer: &PublicKey, file: &Path) -> bool {
    let signers = directory.join("signers");
    std::fs::write(&signers, format!("me {signer}\n")).expect("writes");
    let document = std::fs::File::open(file).expect("a document");
    Command::new("ssh-keygen")
        .args(["-Y", "verify", "-n", "dagger", "-I", "me", "-f"])
        .arg(&signers)
        .arg("-s")
        .arg(file.with_extension("json.sig"))
        .stdin(document)
        .stdout(Stdio::null())
        .status()
        .expect("ssh-keygen runs")
        .success()
}

#[test]
fn every_command_has_help_and_those_that_do_something_show_an_example() {
    let groups = [
        "vm create",
        "vm ls",
        "vm show",
        "vm start",
        "vm stop",
        "vm delete",
        "vm history",
        "vm why",
        "volume create",
        "volume ls",
        "volume show",
        "volume attach",
        "volume detach",
        "volume grow",
        "volume delete",
        "volume snapshot",
        "volume restore",
        "volume clone",
        "volume delete-snapshot",
        "ssh",
        "image register",
        "image ls",
        "account grant",
        "account show",
        "account ls",
        "host ls",
        "host join",
        "operator ls",
        "host fsck",
        "ledger status",
        "ledger log",
        "ledger proof vm",
        "ledger proof account",
        "ledger proof payload",
        "ledger verify",
        "payload make",
        "payload sign",
        "payload send",
        "payload show",
        "payload digest",
        "events",
        "cluster dev",
        "cluster status",
        "cluster stop",
        "cluster start-daemon",
        "genesis make",
        "genesis sign",
        "genesis show",
        "completions",
    ];
    for group in groups {
        let mut arguments: Vec<_> = group.split(' ').collect();
        arguments.push("--help");
        let output = run(&arguments);
        assert!(output.status.success(), "{group}");
        let help = text(&output.stdout);
        assert!(help.contains("Example"), "{group} shows no example:\n{help}");
        assert!(help.contains("--json"), "{group}");
    }
    let top = text(&run(&["--help"]).stdout);
    assert!(top.contains("Exit codes"), "{top}");
}

#[test]
fn exit_codes_tell_wrong_usage_from_refusal_and_from_nobody_there() {
    assert_eq!(run(&["vm", "frobnicate"]).status.code(), Some(2));
    assert_eq!(run(&["host", "ls", "--api", "ftp://x"]).status.code(), Some(2));
    let nobody = run(&["host", "ls", "--api", "unix:/nonexistent/api.sock"]);
    assert_eq!(nobody.status.code(), Some(3));
    let said = text(&nobody.stderr);
    assert!(said.contains("[unreachable]") && said.contains("what to do:"), "{said}");
    let refused = run(&["cluster", "status", "--directory", "/nonexistent"]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn what_no_cluster_would_take_is_wrong_usage() {
    let told = |arguments: &[&str]| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        text(&output.stderr)
    };
    let long = told(&["vm", "ls", "--valid-for", "30d"]);
    assert!(long.contains("at most 24h"), "{long}");
    let nobody = told(&["operator", "propose", "voters"]);
    assert!(nobody.contains("--add") && nobody.contains("--remove"), "{nobody}");
    let nowhere = told(&["volume", "create", "data", "--size", "1GiB"]);
    assert!(nowhere.contains("--vm") && nowhere.contains("--host"), "{nowhere}");
    let unit = told(&["account", "grant", "x.pub", "--cpus", "1", "--memory", "512"]);
    assert!(unit.contains("512MiB"), "{unit}");
}

#[test]
fn what_is_not_signed_says_how_to_sign_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let document = write_document(directory.path(), public_key(&make_key(directory.path(), "")));
    let file = document.display().to_string();
    let unsigned = run(&["payload", "send", &file]);
    assert_eq!(unsigned.status.code(), Some(1));
    let said = text(&unsigned.stderr);
    assert!(said.contains(&format!("daggerctl payload sign {file}")), "{said}");
}

#[test]
fn problems_are_json_for_programs() {
    let output = run(&["--json", "host", "ls", "--api", "unix:/nonexistent/api.sock"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON");
    assert_eq!(said["code"], "unreachable");
    assert_eq!(said["detail"], said["error"], "as the API calls it");
    assert!(said["advice"].is_string(), "{said}");
    assert_eq!(said["exit_code"], 3);
    assert!(output.stdout.is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let mut child = daggerctl(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn completions_exist_for_the_usual_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        assert!(text(&output.stdout).contains("daggerctl"), "{shell}");
    }
}

#[test]
fn openssh_verifies_what_daggerctl_signed_and_not_a_changed_document() {
    let directory = tempfile::tempdir().expect("a directory");
    let key = make_key(directory.path(), "");
    let signer = public_key(&key);
    let document = write_document(directory.path(), signer.clone());
    let output = daggerctl(&["payload", "sign"]).arg(&document).arg("--key").arg(&key).output();
    let output = output.expect("runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(openssh_verifies(directory.path(), &signer, &document));
    let mut file = std::fs::OpenOptions::new().append(true).open(&document).expect("opens");
    file.write_all(b" ").expect("writes");
    assert!(!openssh_verifies(directory.path(), &signer, &document));
}

#[test]
fn a_document_that_names_another_signer_is_not_signed() {
    let directory = tempfile::tempdir().expect("a directory");
    let other = tempfile::tempdir().expect("a directory");
    let key = make_key(directory.path(), "");
    let stranger = public_key(&make_key(other.path(), ""));
    let document = write_document(directory.path(), stranger);
    let output = daggerctl(&["payload", "sign"]).arg(&document).arg("--key").arg(&key).output();
    let output = output.expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("[signer_differs]"));
    assert!(!document.with_extension("json.sig").exists());
}

/// An ssh-agent of the test's own; ends with it.
struct SshAgent {
    child: std::process::Child,
    socket: PathBuf,
}

impl SshAgent {
    fn start(directory: &Path) -> Self {
        let socket = directory.join("agent.sock");
        let child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .expect("ssh-agent runs");
        let started = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed().as_secs() < 10, "the ssh-agent does not listen");
            std::thread::yield_now();
        }
        Self { child, socket }
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_key_in_the_ssh_agent_signs_where_only_its_public_half_is_on_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let key = make_key(directory.path(), "");
    let agent = SshAgent::start(directory.path());
    let added = Command::new("ssh-add")
        .arg("-q")
        .arg(&key)
        .env("SSH_AUTH_SOCK", &agent.socket)
        .stderr(Stdio::null())
        .status()
        .expect("ssh-add runs");
    assert!(added.success());
    std::fs::remove_file(&key).expect("removes");
    let signer = public_key(&key);
    let document = write_document(directory.path(), signer.clone());
    let output = daggerctl(&["payload", "sign"])
        .arg(&document)
        .arg("--key")
        .arg(key.with_extension("pub"))
        .env("SSH_AUTH_SOCK", &agent.socket)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(openssh_verifies(directory.path(), &signer, &document));
}

#[test]
fn a_genesis_in_which_one_of_four_operators_can_break_the_cluster_is_not_made() {
    let places: Vec<_> = (0..9).map(|_| tempfile::tempdir().expect("a directory")).collect();
    let keys: Vec<_> = places.iter().map(|place| make_key(place.path(), "")).collect();
    let public = |key: usize| keys[key].with_extension("pub").display().to_string();
    let make = |owners: &[usize]| {
        let mut arguments: Vec<String> =
            ["genesis", "make", "--name", "north"].map(str::to_owned).into();
        for operator in 0..4 {
            let operator = format!("op{operator}={}", public(operator));
            arguments.extend(["--operator".to_owned(), operator]);
        }
        for (host, owner) in owners.iter().enumerate() {
            let key = public(4 + host);
            let host = format!("h{host}=op{owner},{key},127.0.0.1:{}", 7400 + host);
            arguments.extend(["--host".to_owned(), host]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        run(&arguments)
    };
    assert!(make(&[0, 1, 2, 3]).status.success());
    let refused = make(&[0, 1, 2, 3, 2]);
    assert_eq!(refused.status.code(), Some(1));
    let told = text(&refused.stderr);
    assert!(told.contains("operator op2 holds 2 of 5 votes"), "{told}");
    assert!(told.contains("votes_unbalanced"), "{told}");
}

#[test]
fn a_genesis_is_complete_only_with_every_operators_signature() {
    let places = ["one", "two"].map(|_| tempfile::tempdir().expect("a directory"));
    let keys = [0, 1].map(|index: usize| make_key(places[index].path(), ""));
    let ledgers = tempfile::tempdir().expect("a directory");
    let ledger = make_key(ledgers.path(), "");
    let public = |key: &Path| key.with_extension("pub").display().to_string();
    let output = run(&[
        "genesis",
        "make",
        "--name",
        "north",
        "--operator",
        &format!("acme={}", public(&keys[0])),
        "--operator",
        &format!("bolt={}", public(&keys[1])),
        "--host",
        &format!("a1=acme,{},127.0.0.1:7400", public(&ledger)),
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let file = ledgers.path().join("genesis.json");
    std::fs::write(&file, &output.stdout).expect("writes");
    let file = file.display().to_string();
    for key in &keys {
        let incomplete = run(&["genesis", "show", &file]);
        assert_eq!(incomplete.status.code(), Some(1));
        let signed = run(&["genesis", "sign", &file, "--key", &key.display().to_string()]);
        assert!(signed.status.success(), "{}", text(&signed.stderr));
    }
    assert!(run(&["genesis", "show", &file]).status.success());
    let stranger = run(&["genesis", "sign", &file, "--key", &ledger.display().to_string()]);
    assert_eq!(stranger.status.code(), Some(1));
}
