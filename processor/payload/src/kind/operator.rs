//! Bodies of `operator.*`: how the operators change who takes part.
//!
//! Owns their fields and ranges. Judged by `dagger-processor`'s rules of members.

use serde::{Deserialize, Serialize};

use super::{Checked, require};
use crate::id::{Epoch, PayloadDigest};
use crate::key::PublicKey;
use crate::limits::MEMBERS_MAX;
use crate::membership::Change;
use crate::refusal::Refusal;

/// `operator.propose`, signed by an operator, who thereby approves: this should change. The digest
/// of this payload is the proposal's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorPropose {
    /// What.
    pub change: Change,
    /// The newest epoch that is decided, as the proposer knows it; refused if there is a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_epoch: Option<Epoch>,
}

/// `operator.approve` and `operator.withdraw`, signed by an operator: he approves, or no more. When
/// the proposer withdraws, the proposal ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProposalChange {
    /// Which proposal.
    pub proposal: PayloadDigest,
}

/// `operator.rotate_key`, signed with an operator's old key: the new one signs for him at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorRotateKey {
    /// The key that comes; one that has no other use in the cluster.
    pub new_key: PublicKey,
}

impl Checked for OperatorPropose {
    fn check(&self) -> Result<(), Refusal> {
        match &self.change {
            Change::Voters { add, remove } => {
                let mut hosts: Vec<_> = add.iter().chain(remove).collect();
                let named = hosts.len();
                require((1..=2 * MEMBERS_MAX).contains(&named), "change: 1 to 256 hosts")?;
                hosts.sort();
                hosts.dedup();
                require(hosts.len() == named, "change: no host twice")
            }
            Change::LedgerKey { .. } => {
                require(false, "change: a host's operator changes its key: host.rotate_ledger_key")
            }
            Change::AddOperator { .. }
            | Change::RemoveOperator { .. }
            | Change::Protocol { .. } => Ok(()),
        }
    }
}

impl Checked for ProposalChange {}

impl Checked for OperatorRotateKey {}
