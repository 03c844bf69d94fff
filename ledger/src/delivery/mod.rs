//! Delivery: hands ordered commits to the processor, keeps what it releases, and serves the agent.
//!
//! Owns the conversations with the processor (`judging`, `admission`, `beginning`) and with the
//! agent (`agent`, `stream`, `requests`), the payloads of this host's users that are not ordered
//! yet (`submissions`), where payloads were ordered (`places`), the newest releases (`recent`),
//! snapshots of the judged state (`snapshots`), proofs against its root (`proofs`), how long event
//! bodies are kept (`retention`), the evidence of a quorum (`evidence`), what hosts without a vote
//! hand to those that have one (`forwarding`, `handing`, and `pool` at a start), and what a cluster
//! without a judge does instead (`opaque`). Never orders and never judges. Called by the daemon.

pub mod admission;
pub mod agent;
mod beginning;
pub mod evidence;
pub mod forwarding;
pub mod handing;
pub mod judging;
mod judging_session;
pub mod opaque;
pub mod places;
pub mod pool;
pub mod proofs;
pub mod recent;
mod requests;
pub mod retention;
pub mod snapshots;
mod stream;
pub mod submissions;

use std::sync::Arc;

use dagger_bus::ledger::{ClockReference, Unavailable};
use dagger_ledger_core::{ClockDoubt, CoreStatus, Input, Phase};
use dagger_payload::committee::Committee;
use dagger_payload::genesis::Genesis;
use dagger_payload::id::{AuthorIndex, ClusterId, CommitIndex, PayloadDigest, ProtocolVersion};
use dagger_payload::key::PublicKey;
use dagger_payload::roster::SeatStanding;
use dagger_payload::snapshot::SealedAnchor;
use tokio::sync::{mpsc, watch};

use crate::configuration::Retention;
use crate::driver::commits::Commits;
use crate::exit::{Stop, StopHandle};
use crate::link::Links;
use crate::seats::{Contradiction, Seats};
use crate::store::StoreError;
use crate::store::pool::Pool;
use crate::store::records::Records;
use crate::store::writer::{WriterGone, WriterHandle};
use admission::Admissions;
use evidence::Evidence;
use forwarding::Forwarding;
use places::Places;
use recent::RecentReleases;
use snapshots::Snapshots;
use submissions::Submissions;

/// How far the processor's present life has come; what of it is durable here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Which life.
    pub seal_key: PublicKey,
    /// All releases up to this commit are stored.
    pub through: CommitIndex,
    /// The newest commit that was judged in any life: history ends there.
    pub history_end: CommitIndex,
    /// Where this life began; none at the founding.
    pub anchor: Option<Arc<SealedAnchor>>,
}

/// What all parts of delivery share.
pub struct Delivery {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its founders.
    pub genesis: Arc<Genesis>,
    /// This member's seat.
    pub me: AuthorIndex,
    /// All seats.
    pub seats: Arc<Seats>,
    /// For reading.
    pub records: Records,
    /// For writing.
    pub writer: WriterHandle,
    /// Durable commits.
    pub commits: Arc<Commits>,
    /// Attestations.
    pub evidence: Arc<Evidence>,
    /// Own payloads that are not ordered yet.
    pub submissions: Submissions,
    /// Those of them that members with a vote are to have ordered.
    pub forwarding: Forwarding,
    /// Where payloads were ordered.
    pub places: Places,
    /// What streams send next.
    pub recent: RecentReleases,
    /// What a processor may begin from.
    pub snapshots: Snapshots,
    /// The processor's door.
    pub admissions: Admissions,
    /// How many proofs are sought at the same time.
    pub proofs: proofs::Sought,
    /// Where payloads stand that are in no event yet.
    pub pool: Pool,
    /// The core's inputs.
    pub core: mpsc::Sender<Input>,
    /// The core's status; none before it runs.
    pub status: watch::Receiver<Option<CoreStatus>>,
    /// The links; none before the core runs.
    pub links: watch::Receiver<Option<Links>>,
    /// What is released; none while no processor has been seen.
    pub released: watch::Sender<Option<Released>>,
    /// The version of the rules that the processor lacks: judging waits until it is upgraded.
    pub upgrade_needed: watch::Sender<Option<ProtocolVersion>>,
    /// How long event bodies are kept.
    pub retention: Retention,
    /// For what is broken.
    pub stop: StopHandle,
}

/// Why a part of delivery ended its work on something.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The store or this host's state is broken.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The daemon stops.
    #[error(transparent)]
    Writer(#[from] WriterGone),
    /// The other daemon is gone or misbehaves: it is tried again.
    #[error(transparent)]
    Bus(#[from] dagger_bus::BusError),
    /// The processor has judged more, or less, than this store knows of it.
    #[error("the processor was asked for commit {asked} and expects {expected}")]
    OutOfStep {
        /// What was asked.
        asked: CommitIndex,
        /// What it would take.
        expected: CommitIndex,
    },
    /// No snapshot can be used, and what lies before them is pruned.
    #[error(
        "no snapshot of the judged state can be used, and the history before it is pruned: rename \
         the directory `store` in the state directory and start again; this host then begins from \
         another one's snapshot"
    )]
    NoBeginning,
    /// The processor contradicts itself or what was ordered.
    #[error("the processor is broken: {0}")]
    Judge(String),
    /// A seat has two keys.
    #[error(transparent)]
    Seats(#[from] Contradiction),
}

impl Released {
    /// The commit whose state this life began with: releases up to there have other seals.
    pub(crate) fn began(&self) -> CommitIndex {
        self.anchor.as_ref().map_or(CommitIndex(0), |anchor| anchor.anchor.end.index)
    }
}

impl Delivery {
    /// Names of the members that are not reached, and how many are, this one included.
    pub(crate) fn reach(&self) -> (usize, Vec<dagger_payload::name::Name>) {
        let links = self.links.borrow();
        let (committee, roster) = (self.committee(), self.seats.now());
        let missing: Vec<_> = committee
            .authors()
            .filter(|author| {
                let linked = links.as_ref().is_some_and(|links| links.is_connected(*author));
                *author != self.me && !linked
            })
            .filter_map(|author| roster.seat(author).map(|seat| seat.name.clone()))
            .collect();
        (committee.members() - missing.len(), missing)
    }

    /// Whether this host votes in the present epoch.
    pub(crate) fn votes(&self) -> bool {
        self.committee().contains(self.me)
    }

    /// Who votes in the present epoch.
    pub(crate) fn committee(&self) -> Committee {
        let status = self.status.borrow();
        status.as_ref().map_or_else(|| self.seats.voters(), |status| status.committee)
    }

    /// Whether this host is still a member.
    fn has_place(&self) -> bool {
        let roster = self.seats.now();
        roster.seat(self.me).is_some_and(|seat| seat.standing == SeatStanding::Present)
    }

    /// Payloads were ordered and judged: nobody needs to have them ordered any more.
    pub(crate) fn are_ordered(&self, digests: impl IntoIterator<Item = PayloadDigest>) {
        let ordered = digests.into_iter().inspect(|digest| self.forwarding.remove(digest));
        self.submissions.ordered(ordered);
    }

    /// Why no change can be taken now, if so.
    pub(crate) fn unavailable(&self) -> Option<Unavailable> {
        let need = self.committee().quorum();
        let (have, missing) = self.reach();
        if have < need {
            let count = |count: usize| u16::try_from(count).expect("at most 128 members");
            return Some(Unavailable::NoQuorum { have: count(have), need: count(need), missing });
        }
        if !self.admissions.is_connected() {
            return Some(Unavailable::NoProcessor {});
        }
        if let Some(needs) = *self.upgrade_needed.borrow() {
            return Some(Unavailable::UpgradeNeeded { needs });
        }
        // Before all that such a store may be the reason of: it cannot end its recovery either.
        if self.writer.is_full() {
            return Some(Unavailable::StoreFull {});
        }
        let doubt = self.status.borrow().as_ref().and_then(|status| status.clock_doubt);
        if let Some(doubt) = doubt {
            let (ahead_ms, compared_with) = match doubt {
                ClockDoubt::Jumped { by_ms } => (by_ms, ClockReference::OwnMonotonic),
                ClockDoubt::Differs { ahead_ms } => (ahead_ms, ClockReference::Peers),
            };
            return Some(Unavailable::ClockInDoubt { ahead_ms, compared_with });
        }
        let phase = self.status.borrow().as_ref().map(|status| status.phase);
        match phase {
            Some(Phase::Follower) if !self.has_place() => return Some(Unavailable::Follower {}),
            // Who has no vote hands what it takes to who has.
            Some(Phase::Member | Phase::Follower) => {}
            Some(Phase::Recovering | Phase::Halted) | None => {
                return Some(Unavailable::Recovering {});
            }
        }
        None
    }

    /// Ends the daemon for what cannot be repaired by trying again.
    pub(crate) fn is_fatal(&self, error: DeliveryError) -> Result<DeliveryError, ()> {
        match error {
            DeliveryError::Store(error) => self.stop.stop(Stop::Broken(Box::new(error))),
            error @ (DeliveryError::Judge(_)
            | DeliveryError::Seats(_)
            | DeliveryError::NoBeginning) => self.stop.stop(Stop::Broken(Box::new(error))),
            error @ DeliveryError::Writer(_) => self.stop.stop(Stop::Internal(Box::new(error))),
            error @ (DeliveryError::Bus(_) | DeliveryError::OutOfStep { .. }) => return Ok(error),
        }
        Err(())
    }
}
