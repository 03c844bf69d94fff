//! What a proof shows: the bytes under a subject of the state, read as the object that they are.
//!
//! Owns which type stands under which subject, and which payloads an object names as its causes.
//! Never checks a proof. Called by whoever shows one to people.

use serde::Serialize;

use crate::codec::{self, CodecError};
use crate::membership::{Operator, Proposal};
use crate::object::{Account, Cause, Host, Image, Vm};
use crate::roster::{EpochMembers, Seat};
use crate::state_tree::{Judgement, Ordered, Subject};
use crate::usage::PastUsage;
use crate::volume::Volume;

/// An object of the judged state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Proven {
    /// Of [`Subject::Host`].
    Host(Box<Host>),
    /// Of [`Subject::Account`].
    Account(Box<Account>),
    /// Of [`Subject::Image`].
    Image(Box<Image>),
    /// Of [`Subject::Vm`].
    Vm(Box<Vm>),
    /// Of [`Subject::Volume`].
    Volume(Box<Volume>),
    /// Of [`Subject::Usage`].
    Usage(Box<PastUsage>),
    /// Of [`Subject::Payload`].
    Payload(Judgement),
    /// Of [`Subject::Seat`].
    Seat(Box<Seat>),
    /// Of [`Subject::Epoch`].
    Epoch(EpochMembers),
    /// Of [`Subject::Operator`].
    Operator(Box<Operator>),
    /// Of [`Subject::Proposal`].
    Proposal(Box<Proposal>),
    /// Of [`Subject::Order`].
    Order(Ordered),
}

impl Proven {
    /// Reads the bytes that stand under `subject`.
    ///
    /// # Errors
    /// They are no such object: made by another version.
    pub fn read(subject: &Subject, value: &[u8]) -> Result<Self, CodecError> {
        Ok(match subject {
            Subject::Host(_) => Self::Host(codec::decode(value)?),
            Subject::Account(_) => Self::Account(codec::decode(value)?),
            Subject::Image(_) => Self::Image(codec::decode(value)?),
            Subject::Vm(_) => Self::Vm(codec::decode(value)?),
            Subject::Volume(_) => Self::Volume(codec::decode(value)?),
            Subject::Usage(..) => Self::Usage(codec::decode(value)?),
            Subject::Payload(_) => Self::Payload(codec::decode(value)?),
            Subject::Seat(_) => Self::Seat(codec::decode(value)?),
            Subject::Epoch(_) => Self::Epoch(codec::decode(value)?),
            Subject::Operator(_) => Self::Operator(codec::decode(value)?),
            Subject::Proposal(_) => Self::Proposal(codec::decode(value)?),
            // Of a leaf that says more.
            Subject::Order => {
                Self::Order(minicbor::decode(value).map_err(|_| CodecError::Malformed)?)
            }
        })
    }

    /// The payloads that made it what it is, with what each did; one may stand there for several
    /// reasons.
    pub fn causes(&self, subject: &Subject) -> Vec<(&'static str, Cause)> {
        match self {
            Self::Host(host) => vec![("declared", host.cause)],
            Self::Image(image) => vec![("registered", image.cause)],
            // Position 0 is the founding: the genesis document shows that, not a payload.
            Self::Operator(operator) => {
                let changed = [("changed", operator.cause)].into_iter();
                changed.filter(|(_, cause)| cause.position.0 > 0).collect()
            }
            Self::Proposal(proposal) => vec![("changed", proposal.cause)],
            Self::Account(account) => {
                let grants = account.grants.iter().map(|grant| ("granted", grant.cause));
                let keys = account.keys.iter().map(|key| ("gave a key", key.cause));
                [("changed", account.cause)].into_iter().chain(grants).chain(keys).collect()
            }
            Self::Vm(vm) => {
                let reported = vm.reported.as_ref().map(|report| ("reported", report.cause));
                let made = [("created", vm.created), ("changed", vm.changed)];
                made.into_iter().chain(reported).collect()
            }
            Self::Volume(volume) => {
                let reported = volume.reported.as_ref().map(|report| ("reported", report.cause));
                let made = [("created", volume.created), ("changed", volume.changed)];
                let snapshots = volume.snapshots.iter();
                let kept = snapshots.map(|snapshot| ("asked for a snapshot", snapshot.created));
                made.into_iter().chain(reported).chain(kept).collect()
            }
            Self::Usage(_) | Self::Seat(_) | Self::Epoch(_) | Self::Order(_) => Vec::new(),
            Self::Payload(judgement) => {
                let Subject::Payload(digest) = subject else { return Vec::new() };
                let cause = Cause { digest: *digest, position: judgement.position };
                vec![("ordered", cause)]
            }
        }
    }
}
