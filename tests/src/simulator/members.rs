//! Who votes in a run: hosts leave and come back while faults last, and each change ends an epoch.
//!
//! Owns when a change is asked for. Never decides where an epoch ends: the hosts' judges do. Called
//! by the world.

use std::sync::Arc;

use dagger_payload::committee::Committee;
use dagger_payload::handover::Handover;
use dagger_payload::id::{AuthorIndex, Epoch};
use dagger_payload::peer::PeerMessage;

use super::settings::Change;
use super::world::{Happening, Step, World};
use crate::promise::Observed;

/// When the last change is asked for after faults have stopped, in microseconds: by then every
/// host runs.
const LAST_CHANGE_US: u64 = 2_000_000;

impl World {
    /// Draws when the changes of this run come.
    pub(super) fn plan_changes(&mut self) {
        for change in self.settings.changes.clone() {
            let at_us = self.returns.within((1_000_000, self.settings.faults_us));
            self.schedule.after_us(at_us, Happening::Change(change));
        }
    }

    /// In the end all vote, so that what waits where nobody votes is ordered, too.
    pub(super) fn bring_all_back(&mut self) {
        if !self.settings.changes.is_empty() {
            self.schedule.after_us(LAST_CHANGE_US, Happening::Change(Change::All));
        }
    }

    /// The operators ask for a change, at every host that they reach.
    pub(super) fn change(&mut self, change: Change) {
        let hosts = 0..self.hosts.len();
        let voting = hosts.filter(|host| change != Change::AllBut(*host));
        let voting = voting.map(|host| self.hosts[host].me).collect::<Vec<_>>();
        let committee = Committee::of(voting).expect("one host is left at least");
        let payload = self.users.change(committee);
        for host in self.honest_hosts() {
            self.submit_at(host, payload.clone());
        }
    }

    /// A host shows who is still in a closed epoch how that one ended.
    pub(super) fn serve_certificate(&mut self, host: usize, to: AuthorIndex, epoch: Epoch) -> Step {
        let handover = self.hosts[host].disk.durable.handovers.get(&epoch.next());
        let headers = handover.map(|handover| handover.headers.clone()).unwrap_or_default();
        for header in headers {
            let message = Arc::new(PeerMessage::Closing { header });
            self.send(host, usize::from(to.0), &message)?;
        }
        Ok(())
    }

    /// A host begins an epoch. The first one to do so makes it known, also to the liars.
    ///
    /// # Errors
    /// A broken promise.
    pub(super) fn epoch_began(&mut self, host: usize, handover: &Handover) -> Step {
        self.log.note(self.now(), host, "epoch", handover.epoch.0);
        self.observe(host, &Observed::EpochBegan { handover })?;
        if self.epochs.insert(handover.epoch, handover.committee).is_some() {
            return Ok(());
        }
        self.left += u64::from(handover.committee.members() < self.hosts.len());
        for liar in self.liars.values_mut() {
            liar.enter(handover);
        }
        Ok(())
    }
}
