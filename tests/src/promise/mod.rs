//! Promises: oracles that watch a simulated run and speak up at the first step that breaks one.
//!
//! Owns what each promise means, one file each. Never changes the run. Called by the simulator
//! after everything that an honest host does, and once more at the end.

mod agreement;
mod bounded;
mod certified_handover;
mod forks_are_proven;
mod heals;
mod no_self_equivocation;
mod no_skipped_round;
mod nothing_lost;
mod ordered_once;
mod persisted_before_sent;
mod returns_to_silence;
mod true_attestation;

use std::collections::BTreeSet;
use std::sync::Arc;

use dagger_ledger_core::Held;
use dagger_ledger_core::interface::Memory;
use dagger_payload::committee::Committee;
use dagger_payload::event::{CommitEnd, Event};
use dagger_payload::handover::{EpochEnd, Handover};
use dagger_payload::id::{AuthorIndex, ClusterId, PayloadDigest};
use dagger_payload::release::OrderedCommit;

use crate::simulator::disk::Image;

/// What an honest host just did.
pub enum Observed<'a> {
    /// It told a user that his payload is durable here.
    Received {
        /// Which payload.
        digest: PayloadDigest,
    },
    /// A payload is durable here, but its user was not told.
    KeptUnsaid {
        /// Which payload.
        digest: PayloadDigest,
    },
    /// An event of another host became durable here.
    Keeps {
        /// The event.
        event: &'a Event,
    },
    /// It sends an event, its own or another's.
    EventLeaves {
        /// The event.
        event: &'a Event,
        /// Its disk at this moment.
        disk: &'a Image,
    },
    /// It sends anything.
    Sends {
        /// Name of the message's kind.
        kind: &'static str,
        /// Size of the frame.
        bytes: usize,
    },
    /// It hands a durable commit on.
    Ordered {
        /// The commit.
        commit: &'a OrderedCommit,
        /// Its disk at this moment.
        disk: &'a Image,
    },
    /// Its judge reached a commit end.
    Judged {
        /// The end.
        end: &'a CommitEnd,
        /// Where the epoch ends, once that is decided.
        epoch_end: Option<EpochEnd>,
    },
    /// It goes on in the next epoch, durably.
    EpochBegan {
        /// Why, and how.
        handover: &'a Handover,
    },
    /// Store and judge go on from another host's snapshot. What of its payloads was ordered
    /// meanwhile it cannot tell: these may be ordered again, and the judge refuses the second copy.
    BeganFromSnapshot,
    /// It comes back after a crash, with this disk.
    Restarted {
        /// What survived.
        disk: &'a Image,
        /// Whether the host trusts it.
        memory: Memory,
    },
    /// Its core stopped for ever.
    Halted {
        /// Why.
        reason: String,
    },
    /// It has taken in something, and now holds this in memory.
    Holds {
        /// What it holds for others.
        held: &'a [Held],
    },
    /// Nothing; but from now on no work is left, and only the rare exchange of what each has may
    /// travel.
    SilenceBegins,
}

/// One honest host at the end of a run.
pub struct HostAtEnd<'a> {
    /// Which host.
    pub host: AuthorIndex,
    /// Its disk.
    pub disk: &'a Image,
    /// Its last judged commit end.
    pub judged: CommitEnd,
    /// Payloads that still wait there.
    pub waiting: usize,
    /// What it holds in memory for others.
    pub held: Vec<Held>,
    /// Its newest own event, if it made one.
    pub own_last: Option<&'a Arc<Event>>,
}

/// The end of a run, after all faults stopped and time to heal passed.
pub struct End<'a> {
    /// The honest hosts.
    pub hosts: Vec<HostAtEnd<'a>>,
}

/// What all promises know from the start.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The cluster.
    pub cluster: ClusterId,
    /// All hosts; they vote at the beginning and at the end, and at most one leaves in between.
    pub committee: Committee,
    /// f, in the smallest committee of the run.
    pub faulty_max: usize,
    /// The end before the first commit.
    pub founding: CommitEnd,
    /// Members who lie.
    pub liars: Vec<AuthorIndex>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("promise `{promise}` broken by host {host}: {detail}", host = .host.0)]
pub struct Broken {
    /// Which promise.
    pub promise: &'static str,
    /// By whom, as far as it can be said.
    pub host: AuthorIndex,
    /// What happened.
    pub detail: String,
}

/// One promise.
trait Promise {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Looks at one step of `host`.
    ///
    /// # Errors
    /// Says how the step breaks the promise.
    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String>;

    /// `host` lost its memory, or got an old one.
    fn forgot(&mut self, host: AuthorIndex) {
        let _ = host;
    }

    /// `host` turned into a liar without knowing it: from now on nothing is promised of it.
    fn fell(&mut self, host: AuthorIndex) {
        let _ = host;
    }

    /// Looks at the end.
    ///
    /// # Errors
    /// Says which host breaks the promise, and how.
    fn check_end(&mut self, end: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        let _ = end;
        Ok(())
    }
}

/// All promises.
pub struct Promises {
    promises: Vec<Box<dyn Promise>>,
    /// Hosts with an old memory that nobody can tell from a true one.
    may_fall: BTreeSet<AuthorIndex>,
    /// Those of them that signed twice.
    fallen: BTreeSet<AuthorIndex>,
}

impl Promises {
    /// Promises about a cluster of this setting.
    pub fn new(setting: Setting) -> Self {
        Self {
            promises: vec![
                Box::new(agreement::Agreement::new(&setting)),
                Box::new(nothing_lost::NothingLost::default()),
                Box::new(no_self_equivocation::NoSelfEquivocation::new(&setting)),
                Box::new(no_skipped_round::NoSkippedRound::default()),
                Box::new(ordered_once::OrderedOnce::default()),
                Box::new(persisted_before_sent::PersistedBeforeSent),
                Box::new(true_attestation::TrueAttestation::new(&setting)),
                Box::new(certified_handover::CertifiedHandover::new(&setting)),
                Box::new(bounded::Bounded),
                Box::new(forks_are_proven::ForksAreProven::new(&setting)),
                Box::new(heals::Heals::new(&setting)),
                Box::new(returns_to_silence::ReturnsToSilence::new(&setting)),
            ],
            may_fall: BTreeSet::new(),
            fallen: BTreeSet::new(),
        }
    }

    /// Shows a step of an honest host to all promises.
    ///
    /// # Errors
    /// The first promise that it breaks.
    pub fn observe(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), Broken> {
        if self.fallen.contains(&host) {
            return Ok(());
        }
        for promise in &mut self.promises {
            let name = promise.name();
            let Err(detail) = promise.check(host, observed) else {
                continue;
            };
            if name == no_self_equivocation::NAME && self.may_fall.contains(&host) {
                self.fallen.insert(host);
                self.promises.iter_mut().for_each(|promise| promise.fell(host));
                return Ok(());
            }
            return Err(Broken { promise: name, host, detail });
        }
        Ok(())
    }

    /// `host` lost its memory, or got an old one.
    pub fn forgot(&mut self, host: AuthorIndex) {
        self.promises.iter_mut().for_each(|promise| promise.forgot(host));
    }

    /// Store and witness of `host` are equally old: it cannot know, and may sign twice.
    pub fn may_fall(&mut self, host: AuthorIndex) {
        self.may_fall.insert(host);
    }

    /// Hosts that signed twice after they got an old memory.
    pub fn fallen(&self) -> &BTreeSet<AuthorIndex> {
        &self.fallen
    }

    /// Shows the end to all promises.
    ///
    /// # Errors
    /// The first promise that is broken.
    pub fn observe_end(&mut self, end: &End<'_>) -> Result<(), Broken> {
        for promise in &mut self.promises {
            promise.check_end(end).map_err(|(host, detail)| Broken {
                promise: promise.name(),
                host,
                detail,
            })?;
        }
        Ok(())
    }
}
