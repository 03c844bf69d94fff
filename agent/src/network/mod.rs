//! What connects guests: one trait, and the helper behind it.
//!
//! Owns the words in which the rest of the agent speaks of network cards, and two kinds of failure.
//! Never decides who is connected, and has no capability itself. Every call blocks and may be
//! repeated. Called by the actuator (changes) and the inspection (looks).

mod helper;
mod limits;
mod responder;

use std::collections::BTreeSet;

use dagger_net::request::{BridgedCard, Card};
use dagger_payload::id::VmId;

use crate::controller::proof::DeleteProof;

pub use helper::Helper;
pub(crate) use responder::Responder;

/// Why a card is not as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// It will never be: the text begins with a code and a colon.
    #[error("{0}")]
    Refused(String),
    /// It did not work this time: the text begins with a code and a colon.
    #[error("{0}")]
    Failed(String),
}

/// The network cards of this host's guests.
pub trait Networks: Send + Sync + 'static {
    /// Gives a guest this card by NAT and these filters, and no others, whether it runs or not.
    ///
    /// # Errors
    /// `Refused` or `Failed`.
    fn ensure(&self, card: Card) -> Result<(), NetworkError>;

    /// Gives a guest this card on a bridge of the host and these filters, and no others, whether it
    /// runs or not.
    ///
    /// # Errors
    /// `Refused`, also where the operator's list does not name the bridge, or `Failed`.
    fn bridge(&self, card: BridgedCard) -> Result<(), NetworkError>;

    /// Removes all cards and filters of a guest, if there are any.
    ///
    /// # Errors
    /// `Refused` when something of somebody else's has the name, `Failed`.
    fn remove(&self, proof: &DeleteProof) -> Result<(), NetworkError>;

    /// The VMs of which any card or filters are there: complete or an error.
    ///
    /// # Errors
    /// `Failed`.
    fn list(&self) -> Result<BTreeSet<VmId>, NetworkError>;
}
