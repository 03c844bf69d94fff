//! Who takes part, and how a host's ledger is: hosts, operators, proposals, epochs.

use dagger_payload::id::{
    AuthorIndex, ClusterId, CommitIndex, Epoch, HostId, LedgerTime, OperatorId, Position,
    ProtocolVersion,
};
use dagger_payload::key::PublicKey;
use dagger_payload::kind::Capacity;
use dagger_payload::membership::{OperatorStanding, Proposal};
use dagger_payload::name::Name;
use dagger_payload::object::Host;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/hosts` (a list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// Its id.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Its operator's name.
    pub operator: Name,
    /// The judged object; none before its operator declared it with `host.join`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// What its VMs take.
    pub used: Capacity,
    /// How many VMs it carries.
    pub vms: u32,
    /// How the answering host's ledger sees the link to it.
    pub link: HostLink,
    /// Its seat: the number by which events name it.
    #[schema(value_type = u16)]
    pub seat: AuthorIndex,
    /// Whether it votes.
    pub vote: Vote,
}

/// Whether a host votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// In this epoch, and in the next one if that is decided.
    Votes,
    /// In this epoch, no more in the next one.
    Ending,
    /// From the next epoch on.
    Coming,
    /// No: it verifies, runs VMs, and follows what others order.
    Follows,
}

/// `GET /v1/operators` (a list).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperatorView {
    /// Its id.
    pub id: OperatorId,
    /// Its name.
    pub name: Name,
    /// Signs what it asks for, and its grants.
    pub key: PublicKey,
    /// Whether it takes part.
    pub standing: OperatorStanding,
    /// Its hosts that vote.
    pub hosts: Vec<Name>,
    /// Its hosts that do not.
    pub followers: Vec<Name>,
}

/// `GET /v1/proposals` (a list): the pending ones, oldest first, then the newest of the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProposalView {
    /// The judged object.
    pub proposal: Proposal,
    /// What is to change, in words.
    pub summary: String,
    /// Who proposed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proposer_name: Option<Name>,
    /// Who approves.
    pub approved_by: Vec<Name>,
    /// The other present operators.
    pub not_approved_by: Vec<Name>,
    /// How many approvals it takes: more than two thirds of the present operators.
    pub approvals_needed: u16,
}

/// An epoch: who votes in it, by which rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EpochView {
    /// Which one.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// It begins after this commit.
    pub begins_after: CommitIndex,
    /// The rules that count in it.
    #[schema(value_type = u32)]
    pub protocol: ProtocolVersion,
    /// The hosts that vote.
    pub voters: Vec<Name>,
}

/// A link to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostLink {
    /// The answering host itself.
    Own,
    /// Connected.
    Connected,
    /// Not connected.
    Missing,
    /// The ledger cannot be asked.
    Unknown,
}

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
