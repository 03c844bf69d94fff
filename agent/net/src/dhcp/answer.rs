//! What a question is answered with.
//!
//! Owns the rules of RFC 2131, 4.3, for a server that gives each client one address and always the
//! same. Pure; called by [`super::serve`].

use std::net::Ipv4Addr;

use super::message::{Kind, Question, Wish};
use crate::offer::Offer;

/// An answer and where it goes, by the tap by which the question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Its kind.
    pub kind: Kind,
    /// Whoever hears it: on a tap that is one guest.
    pub to: Ipv4Addr,
}

/// What becomes of a question; nothing is said to one that asks another server, or for nothing.
pub fn answer(question: &Question, offer: &Offer) -> Option<Answer> {
    let own = offer.address;
    let kind = match question.wish {
        Wish::Nothing => return None,
        Wish::Discover => Kind::Offer,
        Wish::Inform => Kind::Information,
        Wish::Request => {
            if question.server.is_some_and(|server| server != offer.gateway()) {
                return None;
            }
            // A client that has an address goes on with it, and names no other.
            let wished = question.requested.unwrap_or(question.has);
            let has_another = !question.has.is_unspecified() && question.has != own;
            if wished.is_unspecified() {
                return None;
            }
            if wished == own && !has_another { Kind::Acknowledgement } else { Kind::Refusal }
        }
    };
    // Who has its address may hear nothing else. A refusal takes it away.
    let hears_its_own = question.has == own && kind != Kind::Refusal;
    Some(Answer { kind, to: if hears_its_own { own } else { Ipv4Addr::BROADCAST } })
}
