//! Promises about machines: oracles that watch a simulated run and speak up at the first event that
//! breaks one.
//!
//! Owns what each promise means, one file each. Never changes the run. Called by the world after
//! everything that happens, and once more at the end.

mod attested_only;
mod converges;
mod destroyed_only_when_asked;
mod intent_first;
mod no_orphans;
mod nothing_remade;
mod one_host;
mod one_writer;
mod quiet;
mod removed_after_retention;
mod strangers_untouched;
mod unknown_never_acts;

use dagger_controller::{Collection, Input};

use super::court::Court;
use super::host::Host;
use super::metal::Deed;
use super::work::Work;

/// What just happened at a host.
pub(super) enum Observed<'a> {
    /// An agent began its life.
    AgentBegan,
    /// The controller is told this now.
    Told(&'a Input),
    /// The controller wants this to be done.
    Begins(&'a Work),
    /// This is done now; what has to be durable is.
    Acts(&'a Work),
    /// This changed, by a step or by the collector.
    Did(&'a Deed, Option<&'a Work>),
    /// The controller wants this to be removed for ever.
    Collects(&'a Collection),
    /// The controller writes down, forgets or reports something.
    Says(&'static str),
    /// From now on nothing is left to do.
    QuietBegins,
}

/// What a promise may look at.
pub(super) struct Scene<'a> {
    pub(super) court: &'a Court,
    pub(super) hosts: &'a [Host],
    /// Where it happened.
    pub(super) host: usize,
    pub(super) now_ms: u64,
}

impl Scene<'_> {
    pub(super) fn here(&self) -> &Host {
        &self.hosts[self.host]
    }
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("promise {promise} is broken at host {host}: {detail}")]
pub struct Broken {
    /// Which.
    pub promise: &'static str,
    /// Where.
    pub host: usize,
    /// How.
    pub detail: String,
}

/// All of them.
pub(super) struct Promises {
    attested_only: attested_only::Watch,
    quiet: quiet::Watch,
    nothing_remade: nothing_remade::Watch,
    removed_after_retention: removed_after_retention::Watch,
    strangers_untouched: strangers_untouched::Watch,
    unknown_never_acts: unknown_never_acts::Watch,
    destroyed_only_when_asked: destroyed_only_when_asked::Watch,
}

impl Promises {
    pub(super) fn new(hosts: usize) -> Self {
        Self {
            attested_only: attested_only::Watch::new(hosts),
            quiet: quiet::Watch::default(),
            nothing_remade: nothing_remade::Watch::default(),
            removed_after_retention: removed_after_retention::Watch::new(hosts),
            strangers_untouched: strangers_untouched::Watch::new(hosts),
            unknown_never_acts: unknown_never_acts::Watch::new(hosts),
            destroyed_only_when_asked: destroyed_only_when_asked::Watch::default(),
        }
    }

    pub(super) fn watch(
        &mut self,
        observed: &Observed<'_>,
        scene: &Scene<'_>,
    ) -> Result<(), Broken> {
        let checks = [
            ("one_host", one_host::watch(observed, scene)),
            ("one_writer", one_writer::watch(observed, scene)),
            ("intent_first", intent_first::watch(observed, scene)),
            ("attested_only", self.attested_only.watch(observed, scene)),
            ("nothing_remade", self.nothing_remade.watch(observed, scene)),
            ("strangers_untouched", self.strangers_untouched.watch(observed, scene)),
            ("unknown_never_acts", self.unknown_never_acts.watch(observed, scene)),
            ("destroyed_only_when_asked", self.destroyed_only_when_asked.watch(observed, scene)),
            ("removed_after_retention", self.removed_after_retention.watch(observed, scene)),
            ("quiet", self.quiet.watch(observed, scene)),
        ];
        let broken = checks.into_iter().find_map(|(promise, check)| Some((promise, check.err()?)));
        match broken {
            Some((promise, detail)) => Err(Broken { promise, host: scene.host, detail }),
            None => Ok(()),
        }
    }

    /// What must hold once nothing is left to do.
    pub(super) fn check_end(scene: &Scene<'_>) -> Result<(), Broken> {
        let checks =
            [("converges", converges::check(scene)), ("no_orphans", no_orphans::check(scene))];
        let broken = checks.into_iter().find_map(|(promise, check)| Some((promise, check.err()?)));
        match broken {
            Some((promise, (host, detail))) => Err(Broken { promise, host, detail }),
            None => Ok(()),
        }
    }
}
