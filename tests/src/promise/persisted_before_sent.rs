//! Persist, then send: when an own event leaves, it and every parent above the collection round are
//! on disk; when a commit is handed on, the disk can give it back.

use dagger_payload::id::AuthorIndex;

use dagger_payload::event::Event;
use dagger_payload::release::OrderedCommit;

use super::{Observed, Promise};
use crate::simulator::disk::Image;

/// See the module.
pub(super) struct PersistedBeforeSent;

impl Promise for PersistedBeforeSent {
    fn name(&self) -> &'static str {
        "persisted_before_sent"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::EventLeaves { event, disk } => check_event(host, event, disk),
            Observed::Ordered { commit, disk } => check_commit(commit, disk),
            _ => Ok(()),
        }
    }
}

fn check_commit(commit: &OrderedCommit, disk: &Image) -> Result<(), String> {
    if disk.commit(commit.index).as_ref() == Some(commit) {
        Ok(())
    } else {
        let index = commit.index;
        Err(format!("commit {index} was handed on before the disk could give it back"))
    }
}

fn check_event(host: AuthorIndex, event: &Event, disk: &Image) -> Result<(), String> {
    if event.header.author != host {
        return Ok(());
    }
    let round = event.header.round;
    if disk.event(&event.digest).is_none() {
        return Err(format!("own event of round {round} left before it was durable"));
    }
    let collected = disk.collection_round(event.header.epoch);
    let missing = event
        .header
        .parents
        .iter()
        .find(|parent| parent.round > collected && disk.event(&parent.digest).is_none());
    match missing {
        None => Ok(()),
        Some(parent) => Err(format!(
            "own event of round {round} left before its parent by {} of round {} was durable",
            parent.author, parent.round
        )),
    }
}
