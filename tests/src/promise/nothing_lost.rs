//! Nothing lost: a payload reported *received* is durable there and is ordered, once for each
//! submission (and once more where the host began from a snapshot in between); one reported
//! *ordered* stays on that host for ever. A host that loses its disk may lose what only it had.

use std::collections::{BTreeMap, BTreeSet};

use dagger_payload::id::{AuthorIndex, CommitIndex, PayloadDigest, PrefixHash};
use dagger_payload::release::OrderedCommit;

use super::{End, Observed, Promise};

/// See the module.
#[derive(Default)]
pub(super) struct NothingLost {
    received: BTreeMap<(AuthorIndex, PayloadDigest), usize>,
    /// Durable, but their users were not told.
    unsaid: BTreeMap<(AuthorIndex, PayloadDigest), usize>,
    /// How often a host began from another one's snapshot while they may have waited there.
    begun: BTreeMap<(AuthorIndex, PayloadDigest), usize>,
    /// Received by hosts that forgot something afterwards.
    forgiven: BTreeSet<(AuthorIndex, PayloadDigest)>,
    ordered: BTreeMap<(AuthorIndex, PayloadDigest), usize>,
    counted_to: CommitIndex,
    handed_on: BTreeMap<AuthorIndex, (CommitIndex, PrefixHash)>,
}

impl NothingLost {
    fn count(&mut self, commit: &OrderedCommit) {
        if commit.index <= self.counted_to {
            return;
        }
        self.counted_to = commit.index;
        for ordered in &commit.payloads {
            let key = (ordered.author, ordered.payload.digest());
            *self.ordered.entry(key).or_default() += 1;
        }
    }
}

impl Promise for NothingLost {
    fn name(&self) -> &'static str {
        "nothing_lost"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Received { digest } => {
                *self.received.entry((host, *digest)).or_default() += 1;
            }
            Observed::Ordered { commit, .. } => {
                self.count(commit);
                let newest = (commit.index, commit.prefix_hash);
                self.handed_on.insert(host, newest);
            }
            Observed::KeptUnsaid { digest } => {
                *self.unsaid.entry((host, *digest)).or_default() += 1;
            }
            Observed::Restarted { disk, .. } => {
                let Some((index, prefix_hash)) = self.handed_on.get(&host) else {
                    return Ok(());
                };
                if !disk.holds(*index, *prefix_hash) {
                    return Err(format!(
                        "commit {index} was handed on but did not survive a crash"
                    ));
                }
            }
            Observed::BeganFromSnapshot => {
                for key in self.received.keys().chain(self.unsaid.keys()) {
                    if key.0 == host {
                        *self.begun.entry(*key).or_default() += 1;
                    }
                }
            }
            Observed::EventLeaves { .. }
            | Observed::Keeps { .. }
            | Observed::Sends { .. }
            | Observed::Judged { .. }
            | Observed::EpochBegan { .. }
            | Observed::Halted { .. }
            | Observed::Holds { .. }
            | Observed::SilenceBegins => {}
        }
        Ok(())
    }

    fn check_end(&mut self, _: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        for (key, received) in &self.received {
            let ordered = self.ordered.get(key).copied().unwrap_or(0);
            let unsaid = self.unsaid.get(key).copied().unwrap_or(0);
            let begun = self.begun.get(key).copied().unwrap_or(0);
            let expected = *received..=*received + unsaid + begun;
            if !expected.contains(&ordered) && !self.forgiven.contains(key) {
                let (host, digest) = key;
                let detail =
                    format!("payload {digest} was received {received} times, ordered {ordered}");
                return Err((*host, detail));
            }
        }
        Ok(())
    }

    fn forgot(&mut self, host: AuthorIndex) {
        self.handed_on.remove(&host);
        self.forgiven.extend(self.received.keys().filter(|(author, _)| *author == host));
    }

    fn fell(&mut self, host: AuthorIndex) {
        self.received.retain(|(author, _), _| *author != host);
    }
}
