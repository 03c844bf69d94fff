//! What is not made for an account that has too much in quarantine, and what is done all the same.

use std::sync::Arc;

use dagger_agent::actuator::Performer;
use dagger_agent::controller::{DiskRule, Outcome, VolumeAction, VolumeJob};
use dagger_agent::handover::AttestedVolume;
use dagger_agent::hypervisor::names::HostNames;
use dagger_agent::journal::Journal;
use dagger_agent::observation::Tickets;

use super::support::{FakeHost, Guest, HERE};
use super::volumes::{NextVolume, SNAPSHOT, volume};

/// How a step for the volume ends.
fn perform(performer: &Performer, version: &AttestedVolume, action: VolumeAction) -> Outcome {
    let volume = version.volume.clone();
    performer.perform_for_volume(&VolumeJob { volume, action }).outcome
}

#[test]
fn nothing_new_is_made_for_whom_the_quarantine_is_full_and_what_is_there_is_kept_and_found() {
    let directory = tempfile::tempdir().unwrap();
    let host = Arc::new(FakeHost::new(Guest::Obeys));
    let performer = Performer {
        hypervisor: Arc::clone(&host) as _,
        disks: Arc::clone(&host) as _,
        journal: Journal::open(directory.path().join("journal"), HERE).unwrap(),
        tickets: Tickets::default(),
        names: HostNames::of(HERE),
        networks: None,
        nameservers: Vec::new(),
        consoles: "/consoles".into(),
    };
    let make = || VolumeAction::Make(DiskRule::MayMake);
    let keep = || VolumeAction::Keep(SNAPSHOT, DiskRule::MayMake);
    let new = volume();
    let asked = new.asked_snapshot();
    let is_refused = |outcome| match outcome {
        Outcome::Retryable(reason) => reason.starts_with("quarantine_full: "),
        _ => false,
    };

    host.state().quarantine_full = true;
    assert!(is_refused(perform(&performer, &new, make())));
    assert_eq!(host.state().volumes_made, 0);
    host.state().quarantine_full = false;
    assert_eq!(perform(&performer, &new, make()), Outcome::Done);

    host.state().quarantine_full = true;
    // It was made before the agent could say so.
    assert_eq!(perform(&performer, &new, make()), Outcome::Done);
    assert!(is_refused(perform(&performer, &asked, keep())));
    assert!(!host.state().kept.has(SNAPSHOT));
    host.state().quarantine_full = false;
    assert_eq!(perform(&performer, &asked, keep()), Outcome::Done);
    host.state().quarantine_full = true;
    assert_eq!(perform(&performer, &asked, keep()), Outcome::Done);
}
