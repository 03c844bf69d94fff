//! Bodies of `account.*`: what operators grant and take back.
//!
//! Owns their fields. Judged by `dagger-processor`'s rules of accounts.

use serde::{Deserialize, Serialize};

use super::Checked;
use super::capacity::Capacity;
use crate::id::AccountId;
use crate::key::PublicKey;

/// `account.grant`, signed by an operator: the account may use this much on that operator's hosts.
/// Replaces the operator's earlier grant to the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountGrant {
    /// The account's key.
    pub key: PublicKey,
    /// How much in all.
    pub capacity: Capacity,
    /// How many VMs.
    pub vms: u32,
    /// Until when, in ledger time, milliseconds.
    pub until_ms: u64,
}

/// `account.revoke`, signed by an operator: takes back his grant. VMs that run stay and may be
/// stopped and deleted; nothing new is placed on his hosts, and what is stopped there stays so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountRevoke {
    /// Whose grant.
    pub account: AccountId,
}

impl Checked for AccountGrant {}

impl Checked for AccountRevoke {}
