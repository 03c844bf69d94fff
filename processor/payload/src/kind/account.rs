//! Bodies of `account.*`: what operators grant and take back, and who signs for an account.
//!
//! Owns their fields. Judged by `dagger-processor`'s rules of accounts.

use serde::{Deserialize, Serialize};

use super::Checked;
use super::capacity::Capacity;
use crate::id::{AccountId, Generation};
use crate::key::PublicKey;

/// `account.grant`, signed by an operator: the account may use this much on that operator's hosts.
/// Replaces the operator's earlier grant to the account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountGrant {
    /// The first key of the account, whether it still signs or not; one that no account has opens
    /// an account.
    pub key: PublicKey,
    /// How much in all.
    pub capacity: Capacity,
    /// How many VMs.
    pub vms: u32,
    /// Until when, in ledger time, milliseconds.
    pub until_ms: u64,
    /// Refuse with `conflict` unless the account is at this generation; 0 while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `account.revoke`, signed by an operator: takes back his grant. VMs that run stay and may be
/// stopped and deleted; nothing new is placed on his hosts, what is stopped there stays so, and an
/// offer that no host of his has accepted by then is accepted by none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountRevoke {
    /// Whose grant.
    pub account: AccountId,
    /// Refuse with `conflict` unless the account is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// What a key may do for its account.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum KeyRole {
    /// Everything, keys included.
    #[n(0)]
    Owner,
    /// Everything but keys.
    #[n(1)]
    Operate,
    /// Look, and change nothing.
    #[n(2)]
    Read,
}

/// `account.add_key`, signed with an owner's key: another key signs for the account. For a key that
/// it has, the role changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountAddKey {
    /// The key; one that signs for nobody else.
    pub key: PublicKey,
    /// What it may do.
    pub role: KeyRole,
    /// Refuse with `conflict` unless the account is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `account.remove_key`, signed with an owner's key or with the key itself: it signs for the
/// account no more. One owner must stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountRemoveKey {
    /// The key.
    pub key: PublicKey,
    /// Refuse with `conflict` unless the account is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

/// `account.rotate_key`, signed with an owner's old key: the new one takes its place at once. A key
/// with another role is replaced by an owner, who adds one and removes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountRotateKey {
    /// The key that comes; one that signs for nobody else.
    pub new_key: PublicKey,
    /// Refuse with `conflict` unless the account is at this generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_generation: Option<Generation>,
}

impl Checked for AccountGrant {}

impl Checked for AccountAddKey {}

impl Checked for AccountRemoveKey {}

impl Checked for AccountRotateKey {}

impl Checked for AccountRevoke {}
