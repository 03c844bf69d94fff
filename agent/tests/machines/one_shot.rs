//! Helpers that the agent starts itself: one request, some words, and an end together.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dagger_agent::hypervisor::cloud_hypervisor::Supervision;
use dagger_agent::one_shot::{HelperConfiguration, OneShot};
use serde_json::{Value, json};

/// A helper that is a shell script; its socket is its standard input.
fn helper(directory: &Path, script: &str) -> OneShot {
    let program = directory.join("dagger-parrot");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let programs = Some(directory.to_owned());
    OneShot::new("parrot", &HelperConfiguration { supervision: Supervision::Direct, programs })
}

#[tokio::test]
async fn a_helper_gets_its_request_and_is_heard_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let script = "read -r line; echo \"$line\" >&0; echo '{\"end\":1}' >&0";
    let mut conversation =
        helper(directory.path(), script).begin(&json!({"say": "hello"}), &[]).unwrap();
    assert_eq!(conversation.next::<Value>().await.unwrap(), Some(json!({"say": "hello"})));
    assert_eq!(conversation.next::<Value>().await.unwrap(), Some(json!({"end": 1})));
    assert_eq!(conversation.next::<Value>().await.unwrap(), None);
}

#[tokio::test]
async fn a_helper_that_does_not_speak_in_form_is_an_error_and_so_is_one_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let nonsense = helper(directory.path(), "read -r line; echo nonsense >&0");
    let mut conversation = nonsense.begin(&json!({}), &[]).unwrap();
    assert!(conversation.next::<Value>().await.is_err());
    std::fs::remove_file(directory.path().join("dagger-parrot")).unwrap();
    assert!(nonsense.begin(&json!({}), &[]).is_err());
}
