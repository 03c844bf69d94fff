//! True attestations: what an honest host attests is what it judged, all honest judges agree, and
//! at the end a quorum (indeed every honest host) has attested the whole order.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::committee::Committee;
use dagger_payload::event::{Attestation, CHECKPOINT_COMMITS, CommitEnd};
use dagger_payload::id::{AuthorIndex, CommitIndex};

use super::{End, Observed, Promise, Setting};

/// See the module.
pub(super) struct TrueAttestation {
    founding: CommitEnd,
    committee: Committee,
    ends: BTreeMap<CommitIndex, CommitEnd>,
    attested: BTreeMap<AuthorIndex, Attestation>,
    /// Last commits of epochs: these are attested by themselves, and the next epoch begins with
    /// them.
    epoch_ends: BTreeSet<CommitIndex>,
}

impl TrueAttestation {
    pub(super) fn new(setting: &Setting) -> Self {
        Self {
            founding: setting.founding,
            committee: setting.committee,
            ends: BTreeMap::from([(CommitIndex(0), setting.founding)]),
            attested: BTreeMap::new(),
            epoch_ends: BTreeSet::new(),
        }
    }

    /// The end that stands for `index`: of consecutive equal ends of an epoch the first.
    fn canonical(&self, index: CommitIndex) -> Option<CommitEnd> {
        let mut found = *self.ends.get(&index)?;
        for (_, end) in self.ends.range(..index).rev() {
            let same = (end.position, end.state_root) == (found.position, found.state_root);
            if !same || self.epoch_ends.contains(&found.index) {
                break;
            }
            found = *end;
        }
        Some(found)
    }

    /// Every honest host can show its readers that a quorum attests the whole order.
    fn check_readers(
        &self,
        end: &End<'_>,
        newest: &CommitEnd,
    ) -> Result<(), (AuthorIndex, String)> {
        for host in &end.hosts {
            let events = host.disk.events.values();
            let attesting = events.filter(|event| event.header.attestation.newest == *newest);
            let authors: BTreeSet<_> = attesting.map(|event| event.header.author).collect();
            if newest.index > self.founding.index && authors.len() < self.committee.quorum() {
                let (held, position) = (authors.len(), newest.position);
                let detail = format!("holds {held} attestations of position {position}");
                return Err((host.host, detail));
            }
        }
        Ok(())
    }

    fn check_attestation(&self, attestation: &Attestation) -> Result<(), String> {
        let newest = attestation.newest;
        if self.canonical(newest.index) != Some(newest) {
            let index = newest.index;
            return Err(format!("attests commit {index} falsely, or not the first of equals"));
        }
        let Some(checkpoint) = attestation.checkpoint else {
            return Ok(());
        };
        let multiple =
            checkpoint.index.0 > 0 && checkpoint.index.0.is_multiple_of(CHECKPOINT_COMMITS);
        if multiple && self.ends.get(&checkpoint.index) == Some(&checkpoint) {
            Ok(())
        } else {
            Err(format!("attests checkpoint {} falsely", checkpoint.index))
        }
    }
}

impl Promise for TrueAttestation {
    fn name(&self) -> &'static str {
        "true_attestation"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Judged { end, epoch_end } => {
                self.epoch_ends.extend(epoch_end.map(|epoch_end| epoch_end.last));
                let reference = self.ends.entry(end.index).or_insert(**end);
                if reference != *end {
                    let index = end.index;
                    return Err(format!("judged commit {index} otherwise than another host"));
                }
            }
            Observed::EventLeaves { event, .. } if event.header.author == host => {
                let attestation = event.header.attestation;
                let before = self.attested.insert(host, attestation);
                if before != Some(attestation) {
                    self.check_attestation(&attestation)?;
                }
            }
            Observed::EventLeaves { .. }
            | Observed::Received { .. }
            | Observed::KeptUnsaid { .. }
            | Observed::Keeps { .. }
            | Observed::Sends { .. }
            | Observed::Ordered { .. }
            | Observed::EpochBegan { .. }
            | Observed::BeganFromSnapshot
            | Observed::Restarted { .. }
            | Observed::Halted { .. }
            | Observed::Holds { .. }
            | Observed::SilenceBegins => {}
        }
        Ok(())
    }

    fn check_end(&mut self, end: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        let Some((&last, _)) = self.ends.last_key_value() else {
            return Ok(());
        };
        let newest = self.canonical(last);
        let mut attesting = 0;
        for host in &end.hosts {
            let event = host.own_last.map(|event| event.header.attestation.newest);
            if event.unwrap_or(self.founding) == newest.unwrap_or(self.founding) {
                attesting += 1;
            } else {
                let detail = format!(
                    "newest own event attests {:?}, the end is {newest:?}",
                    event.map(|end| end.index)
                );
                return Err((host.host, detail));
            }
        }
        self.check_readers(end, &newest.unwrap_or(self.founding))?;
        if attesting < self.committee.quorum() {
            return Err((AuthorIndex(0), format!("only {attesting} attest the end")));
        }
        Ok(())
    }
}
