//! The helper `dagger-net`, started for one request.
//!
//! Owns what is asked and how an answer reads. The words are the helper's own, and the same both
//! ways. Called through [`Networks`].

use std::collections::BTreeSet;
use std::io;

use dagger_net::request::{ANSWER_BYTES_MAX, Action, Answer, BridgedCard, Card, Request};
use dagger_payload::id::{HostId, VmId};

use super::limits::HELPER_WAIT_MAX;
use super::{NetworkError, Networks};
use crate::controller::proof::DeleteProof;
use crate::one_shot::{HelperConfiguration, OneShot};

/// The helper of one host.
pub struct Helper {
    host: HostId,
    helper: OneShot,
}

impl Helper {
    /// Prepares; nothing is started yet.
    pub fn new(host: HostId, configuration: &HelperConfiguration) -> Self {
        Self { host, helper: OneShot::new("net", configuration) }
    }

    fn ask(&self, action: Action) -> Result<Answer, NetworkError> {
        let request = Request::new(self.host, action);
        let failed = |error: io::Error| NetworkError::Failed(format!("network_failed: {error}"));
        match self.helper.ask(&request, (HELPER_WAIT_MAX, ANSWER_BYTES_MAX)).map_err(failed)? {
            Answer::Refused(why) => Err(NetworkError::Refused(why)),
            Answer::Failed(why) => Err(NetworkError::Failed(why)),
            answer => Ok(answer),
        }
    }
}

impl Networks for Helper {
    fn ensure(&self, card: Card) -> Result<(), NetworkError> {
        self.ask(Action::Ensure(Box::new(card))).map(drop)
    }

    fn bridge(&self, card: BridgedCard) -> Result<(), NetworkError> {
        self.ask(Action::Bridge(Box::new(card))).map(drop)
    }

    fn remove(&self, proof: &DeleteProof) -> Result<(), NetworkError> {
        self.ask(Action::Remove(proof.vm())).map(drop)
    }

    fn list(&self) -> Result<BTreeSet<VmId>, NetworkError> {
        match self.ask(Action::List)? {
            Answer::Cards(vms) => Ok(vms.into_iter().collect()),
            answer => Err(NetworkError::Failed(format!("network_failed: {answer:?} is no list"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::hypervisor::cloud_hypervisor::Supervision;

    fn helper(script: &str) -> (tempfile::TempDir, Helper) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("dagger-net");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let programs = Some(directory.path().to_owned());
        let configuration = HelperConfiguration { supervision: Supervision::Direct, programs };
        (directory, Helper::new(HostId([1; 16]), &configuration))
    }

    #[test]
    fn what_a_helper_refuses_is_final_and_what_fails_is_not() {
        let (_directory, refusing) = helper("cat >/dev/null; echo '{\"refused\":\"x: y\"}'");
        assert_eq!(refusing.list(), Err(NetworkError::Refused("x: y".to_owned())));
        let (_directory, failing) = helper("cat >/dev/null; exit 1");
        assert!(
            matches!(failing.list(), Err(NetworkError::Failed(why)) if why.contains("without a word"))
        );
        let (_directory, other) = helper("cat >/dev/null; echo '\"done\"'");
        assert!(
            matches!(other.list(), Err(NetworkError::Failed(_))),
            "no list is not an empty one"
        );
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let (directory, helper) = helper("");
        fs::remove_file(directory.path().join("dagger-net")).unwrap();
        let Err(NetworkError::Failed(why)) = helper.list() else { panic!("it answered") };
        assert!(why.starts_with("network_failed:") && why.contains("/dagger-net"), "{why}");
    }

    #[test]
    fn a_long_answer_is_read_to_its_end() {
        let vms: Vec<_> = (0..5000_u32)
            .map(|number| {
                let mut id = [0; 16];
                id[..4].copy_from_slice(&number.to_be_bytes());
                VmId(id)
            })
            .collect();
        let answer = serde_json::to_string(&Answer::Cards(vms)).unwrap();
        let (directory, helper) = helper("cat >/dev/null; cat \"$(dirname \"$0\")/answer\"");
        fs::write(directory.path().join("answer"), answer).unwrap();
        assert_eq!(helper.list().map(|vms| vms.len()), Ok(5000));
    }
}
