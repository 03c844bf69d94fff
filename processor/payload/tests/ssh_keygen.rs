//! Stock OpenSSH signs what this code accepts, and accepts what this code signs.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use dagger_payload::id::{ClusterId, LedgerTime, VmId};
use dagger_payload::key::SecretKey;
use dagger_payload::kind::{Body, VmChange};
use dagger_payload::payload::{Payload, SignatureKind, SignedPayload};
use dagger_payload::sshsig::{self, Namespace, SshSigError};

fn keygen(arguments: &[&str], directory: &Path, input: &[u8]) -> Output {
    let mut child = Command::new("ssh-keygen")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ssh-keygen is there");
    child.stdin.take().expect("piped").write_all(input).expect("read");
    child.wait_with_output().expect("ended")
}

fn document(key: &SecretKey) -> Payload {
    Payload {
        cluster: ClusterId([1; 32]),
        signer: key.public_key(),
        not_after: LedgerTime(1),
        body: Body::VmStop(VmChange { vm: VmId([2; 16]), expected_generation: None }.into()),
    }
}

#[test]
fn what_ssh_keygen_signs_is_accepted_in_both_of_its_written_forms() {
    let directory = tempfile::tempdir().expect("a directory");
    let made = keygen(&["-q", "-t", "ed25519", "-N", "", "-f", "key"], directory.path(), b"");
    assert!(made.status.success());
    let text = std::fs::read_to_string(directory.path().join("key")).expect("a key");
    let key = SecretKey::from_openssh(&text).expect("a plain key");
    let bytes = document(&key).to_bytes();
    std::fs::write(directory.path().join("payload.json"), &bytes).expect("written");
    let signed =
        keygen(&["-Y", "sign", "-n", "dagger", "-f", "key", "payload.json"], directory.path(), b"");
    assert!(signed.status.success());
    let armor = std::fs::read_to_string(directory.path().join("payload.json.sig")).expect("text");
    let read = sshsig::from_armor(&armor, Namespace::Payload).expect("a signature");
    let line: String = armor.lines().filter(|line| !line.starts_with('-')).collect();
    assert_eq!(sshsig::from_base64(&line, Namespace::Payload), Ok(read.clone()));
    let payload = SignedPayload {
        signature_kind: SignatureKind::SshEd25519,
        signature: read.signature,
        bytes: bytes.into(),
    };
    assert!(payload.is_signed_by(&read.signer));
    let elsewhere = sshsig::from_armor(&armor, Namespace::Genesis);
    assert_eq!(elsewhere, Err(SshSigError::WrongNamespace("dagger-genesis")));
}

#[test]
fn ssh_keygen_verifies_what_this_code_signs_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let key = SecretKey::from_seed(&[7; 32].into());
    let signed = SignedPayload::sign(&key, &document(&key));
    let armor = sshsig::to_armor(&key.public_key(), Namespace::Payload, &signed.signature);
    std::fs::write(directory.path().join("payload.sig"), armor).expect("written");
    let allowed = format!("me {}\n", key.public_key());
    std::fs::write(directory.path().join("allowed"), allowed).expect("written");
    let verify = |namespace: &str, bytes: &[u8]| {
        let arguments =
            ["-Y", "verify", "-f", "allowed", "-I", "me", "-n", namespace, "-s", "payload.sig"];
        keygen(&arguments, directory.path(), bytes).status.success()
    };
    assert!(verify("dagger", &signed.bytes));
    assert!(!verify("dagger-genesis", &signed.bytes));
    assert!(!verify("dagger", &signed.bytes[1..]));
}
