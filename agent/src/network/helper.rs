//! The helper `dagger-net`, started for one request: as a unit where systemd runs the host, else as
//! a child of the agent.
//!
//! Owns how a request gets there and an answer back. The words are the helper's own, and the same
//! both ways. Called through [`Networks`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use dagger_net::request::{ANSWER_BYTES_MAX, Action, Answer, Card, Request};
use dagger_payload::id::{HostId, VmId};
use serde::{Deserialize, Serialize};

use super::limits::{ANSWER_LOOK_EVERY, HELPER_WAIT_MAX};
use super::{NetworkError, Networks};
use crate::controller::proof::DeleteProof;
use crate::service_manager;

/// Where requests and answers lie when the helper is a unit; it names the same directory.
const EXCHANGE: &str = "/run/dagger/net";

/// What the operator says about the helper.
#[derive(Debug, Clone)]
pub struct HelperConfiguration {
    /// The `dagger-net` program, where the agent starts it itself.
    pub program: PathBuf,
    /// Who starts it.
    pub supervision: Supervision,
}

/// Who starts the helper.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Supervision {
    /// systemd where it is PID 1, the agent elsewhere.
    #[default]
    Auto,
    /// systemd: an instance of `dagger-net@.service`.
    Systemd,
    /// The agent, which then needs CAP_NET_ADMIN itself.
    Direct,
}

/// The helper of one host.
pub struct Helper {
    host: HostId,
    way: Way,
}

enum Way {
    /// One unit at a time: an instance may have its next request only once it has ended.
    Unit(Mutex<()>),
    Child(PathBuf),
}

impl Helper {
    /// Prepares; nothing is started yet.
    pub fn new(host: HostId, configuration: HelperConfiguration) -> Self {
        let is_unit = match configuration.supervision {
            Supervision::Auto => service_manager::is_booted(),
            Supervision::Systemd => true,
            Supervision::Direct => false,
        };
        let way =
            if is_unit { Way::Unit(Mutex::new(())) } else { Way::Child(configuration.program) };
        Self { host, way }
    }

    fn ask(&self, instance: &str, action: Action) -> Result<Answer, NetworkError> {
        let request = Request::new(self.host, action);
        let answered = serde_json::to_vec(&request).map_err(io::Error::from).and_then(|request| {
            match &self.way {
                Way::Unit(turn) => {
                    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    ask_unit(Path::new(EXCHANGE), instance, &request)
                }
                Way::Child(program) => ask_child(program, &request),
            }
        });
        let failed = |error: io::Error| NetworkError::Failed(format!("network_failed: {error}"));
        let answer = answered.map_err(failed)?;
        match serde_json::from_slice(&answer).map_err(|error| failed(error.into()))? {
            Answer::Refused(why) => Err(NetworkError::Refused(why)),
            Answer::Failed(why) => Err(NetworkError::Failed(why)),
            answer => Ok(answer),
        }
    }
}

impl Networks for Helper {
    fn ensure(&self, card: Card) -> Result<(), NetworkError> {
        self.ask(&card.vm.to_string(), Action::Ensure(Box::new(card))).map(drop)
    }

    fn remove(&self, proof: &DeleteProof) -> Result<(), NetworkError> {
        let vm = proof.vm();
        self.ask(&vm.to_string(), Action::Remove(vm)).map(drop)
    }

    fn list(&self) -> Result<BTreeSet<VmId>, NetworkError> {
        match self.ask(&self.host.to_string(), Action::List)? {
            Answer::Cards(vms) => Ok(vms.into_iter().collect()),
            answer => Err(NetworkError::Failed(format!("network_failed: {answer:?} is no list"))),
        }
    }
}

/// The request goes into a file, since a unit has no standard input of ours, and the answer comes
/// in another.
fn ask_unit(exchange: &Path, instance: &str, request: &[u8]) -> io::Result<Vec<u8>> {
    let path = |ending: &str| exchange.join(format!("{instance}.{ending}"));
    let unit = format!("dagger-net@{instance}.service");
    let end = Instant::now() + HELPER_WAIT_MAX;
    // What was cut off may still run.
    wait_until(end, || Ok(has_ended(&unit)?.then_some(())))?;
    remove_file(&path("answer"))?;
    File::create(path("request"))?.write_all(request)?;
    service_manager::start(&unit)?;
    let answer = wait_until(end, || match fs::read(path("answer")) {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if service_manager::active_state(&unit)? == "failed" {
                return Err(io::Error::other(format!("it failed; see `journalctl -u {unit}`")));
            }
            Ok(None)
        }
        Err(error) => Err(error),
    })?;
    remove_file(&path("request"))?;
    remove_file(&path("answer"))?;
    Ok(answer)
}

fn has_ended(unit: &str) -> io::Result<bool> {
    Ok(matches!(service_manager::active_state(unit)?.as_str(), "inactive" | "failed"))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn ask_child(program: &Path, request: &[u8]) -> io::Result<Vec<u8>> {
    let started = Command::new(program)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn();
    let mut child = started
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let output = child.stdout.take();
    let answered = std::thread::scope(|scope| {
        // It may say more than a pipe holds before it ends.
        let reading = scope.spawn(move || {
            let mut answer = Vec::new();
            let read = output.map(|output| output.take(ANSWER_BYTES_MAX).read_to_end(&mut answer));
            read.unwrap_or(Ok(0)).map(|_| answer)
        });
        let told = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(request));
        let ended = told.and_then(|()| wait_end(&mut child));
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let answer = reading.join().map_err(|_| io::Error::other("reading its answer panicked"))?;
        ended.and(answer)
    });
    answered.map_err(|error| io::Error::new(error.kind(), format!("dagger-net: {error}")))
}

fn wait_end(child: &mut Child) -> io::Result<()> {
    let end = Instant::now() + HELPER_WAIT_MAX;
    let status = wait_until(end, || child.try_wait())?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended: {status}"))) }
}

/// Looks again and again until there is something, or it is too late.
fn wait_until<T>(end: Instant, mut look: impl FnMut() -> io::Result<Option<T>>) -> io::Result<T> {
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"));
        }
        std::thread::sleep(ANSWER_LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn helper(script: &str) -> (tempfile::TempDir, Helper) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("helper");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let configuration = HelperConfiguration { program, supervision: Supervision::Direct };
        (directory, Helper::new(HostId([1; 16]), configuration))
    }

    #[test]
    fn what_a_helper_refuses_is_final_and_what_fails_is_not() {
        let (_directory, refusing) = helper("cat >/dev/null; echo '{\"refused\":\"x: y\"}'");
        assert_eq!(refusing.list(), Err(NetworkError::Refused("x: y".to_owned())));
        let (_directory, failing) = helper("cat >/dev/null; exit 1");
        assert!(matches!(failing.list(), Err(NetworkError::Failed(why)) if why.contains("ended")));
        let (_directory, other) = helper("cat >/dev/null; echo '\"done\"'");
        assert!(
            matches!(other.list(), Err(NetworkError::Failed(_))),
            "no list is not an empty one"
        );
    }

    #[test]
    fn a_helper_that_is_missing_is_named() {
        let (directory, helper) = helper("");
        fs::remove_file(directory.path().join("helper")).unwrap();
        let Err(NetworkError::Failed(why)) = helper.list() else { panic!("it answered") };
        assert!(why.starts_with("network_failed:") && why.contains("/helper"), "{why}");
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
