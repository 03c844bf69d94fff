//! Which hosts have fallen silent, as far as the order itself shows.
//!
//! Owns how far each host's ordered events lag behind the committed leader, and since when. A
//! function of the ordered commits alone, so every judge knows the same; the state root takes it in
//! with every commit that has content, for it must not change by itself (see `decisions.md`). Never
//! looks at a clock. Called by the judge for every commit and by placement.

use dagger_payload::id::{HostId, LedgerTime, Round};
use dagger_payload::limits::{HOST_BEHIND_ROUNDS_MAX, HOST_SILENCE_MS_MAX};
use dagger_payload::release::OrderedCommit;

#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
struct Activity {
    #[n(0)]
    host: HostId,
    #[n(1)]
    newest: Round,
    #[n(2)]
    behind_since: Option<LedgerTime>,
}

/// What the order shows of each member.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub(crate) struct Silence {
    #[n(0)]
    members: Vec<Activity>,
}

impl Silence {
    /// Members in the order of the genesis.
    pub(crate) fn new(hosts: Vec<HostId>) -> Self {
        let quiet = |host| Activity { host, newest: Round(0), behind_since: None };
        Self { members: hosts.into_iter().map(quiet).collect() }
    }

    /// Takes in a commit.
    pub(crate) fn observe(&mut self, commit: &OrderedCommit) {
        for (author, round) in &commit.authors {
            if let Some(member) = self.members.get_mut(usize::from(author.0)) {
                member.newest = member.newest.max(*round);
            }
        }
        for member in &mut self.members {
            let lag = commit.leader_round.0.saturating_sub(member.newest.0);
            let behind = lag > HOST_BEHIND_ROUNDS_MAX;
            member.behind_since = behind.then(|| member.behind_since.unwrap_or(commit.ledger_time));
        }
    }

    /// The hosts that have been behind for too long to be offered a VM.
    pub(crate) fn silent(&self, now: LedgerTime) -> Vec<HostId> {
        let too_long = |since: LedgerTime| now.0.saturating_sub(since.0) > HOST_SILENCE_MS_MAX;
        let silent = self.members.iter().filter(|member| member.behind_since.is_some_and(too_long));
        silent.map(|member| member.host).collect()
    }
}
