//! Certified handover: an epoch begins on all honest hosts with the same members and the same
//! founding, which a quorum of the epoch before attests and every honest judge reached.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::codec;
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Header};
use dagger_payload::handover::{Founding, Handover};
use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, LedgerTime};

use super::{Observed, Promise, Setting};

/// See the module.
pub(super) struct CertifiedHandover {
    epochs: BTreeMap<Epoch, (Committee, Founding)>,
    judged: BTreeMap<CommitIndex, CommitEnd>,
}

impl CertifiedHandover {
    pub(super) fn new(setting: &Setting) -> Self {
        let founding = Founding { end: setting.founding, ledger_time: LedgerTime(0) };
        let first = (setting.committee, founding);
        Self { epochs: BTreeMap::from([(Epoch(0), first)]), judged: BTreeMap::new() }
    }

    fn check_handover(&mut self, handover: &Handover) -> Result<(), String> {
        let epoch = handover.epoch;
        let begun = (handover.committee, handover.founding);
        let known = self.epochs.get(&epoch);
        if known.is_some_and(|known| *known != begun) {
            return Err(format!("epoch {epoch} begins otherwise than on another host"));
        }
        let Some((voters, _)) = self.epochs.range(..epoch).next_back().map(|(_, before)| before)
        else {
            return Err("the first epoch begins again".to_owned());
        };
        let end = handover.founding.end;
        let headers = handover.headers.iter();
        let headers = headers.filter_map(|signed| codec::decode::<Header>(&signed.header).ok());
        let attesting = headers.filter(|header| {
            header.epoch.next() == epoch
                && header.attestation.newest == end
                && voters.contains(header.author)
        });
        let attesting: BTreeSet<_> = attesting.map(|header| header.author).collect();
        if attesting.len() < voters.quorum() {
            return Err(format!("epoch {epoch} begins on the word of {}", attesting.len()));
        }
        if self.judged.get(&end.index) != Some(&end) {
            return Err(format!("epoch {epoch} begins with an end that no judge reached"));
        }
        self.epochs.insert(epoch, begun);
        Ok(())
    }
}

impl Promise for CertifiedHandover {
    fn name(&self) -> &'static str {
        "certified_handover"
    }

    fn check(&mut self, _: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Judged { end, .. } => {
                self.judged.entry(end.index).or_insert(**end);
                Ok(())
            }
            Observed::EpochBegan { handover } => self.check_handover(handover),
            _ => Ok(()),
        }
    }
}
