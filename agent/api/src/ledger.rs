//! How a ledger is.
//!
//! Owns the shapes behind `GET /v1/ledger`. Called by the agent and by `daggerctl ledger`.

use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, EventDigest, HostId, LedgerTime, Position,
};
use dagger_payload::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{EpochView, HostLink, Vote};

/// `GET /v1/ledger`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerView {
    /// The cluster.
    pub cluster: ClusterId,
    /// Newest commit.
    pub committed: CommitIndex,
    /// Newest judged commit.
    pub judged: CommitIndex,
    /// Newest commit that a quorum attests.
    pub attested: CommitIndex,
    /// Position of the newest ordered payload.
    pub position: Position,
    /// Ledger time of the newest commit.
    pub ledger_time: LedgerTime,
    /// Highest round of this host's events.
    pub round: u64,
    /// The present epoch.
    pub epoch: EpochView,
    /// The next one, once it is decided where this one ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_epoch: Option<EpochView>,
    /// Voters that must be reached for a change.
    pub quorum: u16,
    /// Voters that are reached, this host included if it votes.
    pub reached: u16,
    /// Hosts that may crash or lie without harm, whoever owns them.
    pub faults_survived: u16,
    /// Operators that may be dishonest with all of their hosts, whichever they are.
    pub dishonest_operators_survived: u16,
    /// Payloads that wait here.
    pub waiting: u64,
    /// Bytes in the store.
    pub store_bytes: u64,
    /// Commit of the newest snapshot of the judged state, from which this host's processor begins
    /// after a restart; 0 for none.
    pub snapshot: CommitIndex,
    /// The ledger keeps only the signed headers of events up to this round of `pruned_epoch`, and
    /// of all epochs before it; 0 when it keeps all bodies.
    pub pruned_round: u64,
    /// See `pruned_round`.
    pub pruned_epoch: u64,
    /// Members, those that follow too.
    pub members: Vec<MemberView>,
    /// Members who signed two events for one round: each is a proof of a lie, or of a host that
    /// was started from a copy of itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forks: Vec<ForkView>,
    /// Members whose events carried payloads that no honest host takes in at its door: malformed,
    /// too large, or not signed by the key that they name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub junk: Vec<JunkView>,
    /// Why changes are not possible now, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unavailable: Option<String>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    /// Its name.
    pub name: Name,
    /// Its host id.
    pub host: HostId,
    /// Its seat: the number by which events name it.
    #[schema(value_type = u16)]
    pub seat: AuthorIndex,
    /// Whether it votes.
    pub vote: Vote,
    /// The link to it.
    pub link: HostLink,
    /// The highest round of its events here.
    pub highest_round: u64,
}

/// A member who carried what no honest host takes in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JunkView {
    /// Its name.
    pub name: Name,
    /// Its host id.
    pub host: HostId,
    /// Its seat.
    #[schema(value_type = u16)]
    pub seat: AuthorIndex,
    /// How many such payloads the answering host has judged.
    pub payloads: u64,
    /// Bytes of their documents.
    pub bytes: u64,
}

/// A member who signed two events for one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkView {
    /// Its name.
    pub name: Name,
    /// Its host id.
    pub host: HostId,
    /// The round, if the two signed headers are kept here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u64>,
    /// Digests of the two events, if their signed headers are kept here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventDigest>,
}
