//! Who runs the cluster together: operators, what they propose, and how it stands.
//!
//! Owns the shape of these objects and the founders' own. Never counts approvals nor decides what
//! comes of them: the judge does. Called by the judge (writes), the agent (folds and shows) and
//! `daggerctl` (asks and shows).

use serde::{Deserialize, Serialize};

use crate::genesis::Genesis;
use crate::id::{
    Generation, HostId, LedgerTime, OperatorId, PayloadDigest, Position, ProtocolVersion,
};
use crate::key::PublicKey;
use crate::name::Name;
use crate::object::{Cause, Effect};
use crate::roster::{EpochMembers, Roster};

/// Whether an operator takes part.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum OperatorStanding {
    /// He approves, grants, and brings hosts.
    #[n(0)]
    Present,
    /// He was removed; what he did stays.
    #[n(1)]
    Left,
}

/// Who owns hosts, grants their use, and has one voice when members change.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Operator {
    /// His id, from his first key; it stays when the key changes.
    #[n(0)]
    pub id: OperatorId,
    /// What he is called.
    #[n(1)]
    pub name: Name,
    /// Signs for him.
    #[n(2)]
    pub key: PublicKey,
    /// His first key, under which he publishes images; whether it still signs stands in `key`.
    #[n(3)]
    pub first_key: PublicKey,
    /// Whether he takes part.
    #[n(4)]
    pub standing: OperatorStanding,
    /// Version.
    #[n(5)]
    pub generation: Generation,
    /// What made this version; position 0 at the founding.
    #[n(6)]
    pub cause: Cause,
}

/// What more than two thirds of the operators may change together, and, with its own host's
/// operator alone, a voting host's ledger key.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Change {
    /// Another operator takes part.
    #[n(0)]
    AddOperator {
        /// What he is called: as no other operator is or was, and one who comes back as he was.
        #[n(0)]
        name: Name,
        /// His key; one that has no other use in the cluster.
        #[n(1)]
        key: PublicKey,
    },
    /// An operator takes part no more, whether he wants or not, and his hosts leave with him: at
    /// once if none of them votes, else at the end of the epoch that this ends. What they carry is
    /// lost to the cluster.
    #[n(1)]
    RemoveOperator {
        /// Who.
        #[n(0)]
        operator: OperatorId,
    },
    /// Other hosts vote, from the next epoch on. In one step, so that no operator holds too many
    /// votes in between.
    #[n(2)]
    Voters {
        /// Followers that are to vote.
        #[n(0)]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        add: Vec<HostId>,
        /// Voters that are to follow only.
        #[n(1)]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        remove: Vec<HostId>,
    },
    /// The next version of the rules counts, from the next epoch on.
    #[n(3)]
    Protocol {
        /// The one after the present one.
        #[n(0)]
        version: ProtocolVersion,
    },
    /// A voting host has another ledger key from the next epoch on. Never proposed: its operator
    /// says so with `host.rotate_ledger_key`.
    #[n(4)]
    LedgerKey {
        /// Which host.
        #[n(0)]
        host: HostId,
        /// The key that comes.
        #[n(1)]
        key: PublicKey,
    },
}

/// How a proposal stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[serde(rename_all = "snake_case")]
#[cbor(index_only)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum ProposalStanding {
    /// It waits for approvals.
    #[n(0)]
    Open,
    /// Enough have approved; it is executed when the next epoch is decided.
    #[n(1)]
    Passed,
    /// It is executed.
    #[n(2)]
    Done,
    /// Its proposer took it back.
    #[n(3)]
    Withdrawn,
    /// Too few approved in time.
    #[n(4)]
    Lapsed,
    /// It had passed, and could not be executed any more when its turn came.
    #[n(5)]
    Failed,
}

/// A change of members on its way. When its standing is neither `Open` nor `Passed` this is its
/// last version: the judge has forgotten it.
#[derive(
    Debug, Clone, PartialEq, Eq, Serialize, Deserialize, minicbor::Encode, minicbor::Decode,
)]
#[cbor(map)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Proposal {
    /// Its id: that of the payload that proposed it.
    #[n(0)]
    pub id: PayloadDigest,
    /// Who proposed it.
    #[n(1)]
    pub proposer: OperatorId,
    /// What is to change.
    #[n(2)]
    pub change: Change,
    /// The present operators who approve, by id.
    #[n(3)]
    pub approvals: Vec<OperatorId>,
    /// How it stands.
    #[n(4)]
    pub standing: ProposalStanding,
    /// When it lapses, if too few have approved by then.
    #[n(5)]
    pub expires: LedgerTime,
    /// What made this version; the payload before, where the order itself did.
    #[n(6)]
    pub cause: Cause,
}

impl ProposalStanding {
    /// Whether anything can still come of it.
    pub fn is_pending(self) -> bool {
        match self {
            Self::Open | Self::Passed => true,
            Self::Done | Self::Withdrawn | Self::Lapsed | Self::Failed => false,
        }
    }
}

/// The founding operators, in the order of the genesis document.
pub fn founding_operators(genesis: &Genesis) -> Vec<Operator> {
    let founders = genesis.operators.iter().map(|founder| Operator {
        id: founder.id(),
        name: founder.name.clone(),
        key: founder.key.clone(),
        first_key: founder.key.clone(),
        standing: OperatorStanding::Present,
        generation: Generation(1),
        cause: Cause { digest: PayloadDigest::ZERO, position: Position(0) },
    });
    founders.collect()
}

/// The objects with which a cluster begins: its operators, seats and first epoch. Judge and readers
/// begin with the same.
pub fn founding(genesis: &Genesis) -> Vec<Effect> {
    let operators = founding_operators(genesis).into_iter().map(Box::new).map(Effect::Operator);
    let seats: Vec<_> = Roster::founding(genesis).into();
    let seats = seats.into_iter().map(Box::new).map(Effect::Seat);
    let first = Effect::Epoch(Box::new(EpochMembers::founding(genesis)));
    operators.chain(seats).chain([first]).collect()
}
