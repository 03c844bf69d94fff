//! Who takes part: hosts, operators, proposals, epochs.

use dagger_payload::id::{AuthorIndex, CommitIndex, Epoch, HostId, OperatorId, ProtocolVersion};
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
