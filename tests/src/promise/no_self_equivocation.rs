//! No self-equivocation: of what leaves an honest host, no two own events share a round of
//! an epoch, ever.
//!
//! Where no host may lie, a host that lost its memory asks all others: then an event that nobody
//! else kept has never been, and its round may be signed again.

use std::collections::BTreeMap;

use dagger_payload::id::{AuthorIndex, Epoch, EventDigest, Round};

use super::{Observed, Promise, Setting};

/// Its name.
pub(super) const NAME: &str = "no_self_equivocation";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Left,
    Kept,
}

/// See the module.
pub(super) struct NoSelfEquivocation {
    liars_max: usize,
    sent: BTreeMap<(AuthorIndex, Epoch, Round), (EventDigest, Reach)>,
}

impl NoSelfEquivocation {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { liars_max: setting.faulty_max, sent: BTreeMap::new() }
    }
}

impl Promise for NoSelfEquivocation {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::EventLeaves { event, .. } if event.header.author == host => {
                let (epoch, round) = (event.header.epoch, event.header.round);
                let place = self.sent.entry((host, epoch, round));
                let (first, _) = place.or_insert((event.digest, Reach::Left));
                if *first == event.digest {
                    Ok(())
                } else {
                    Err(format!("two own events left for round {round}"))
                }
            }
            Observed::Keeps { event } => {
                let header = &event.header;
                if let Some((first, reach)) =
                    self.sent.get_mut(&(header.author, header.epoch, header.round))
                    && *first == event.digest
                {
                    *reach = Reach::Kept;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn forgot(&mut self, host: AuthorIndex) {
        if self.liars_max == 0 {
            self.sent.retain(|(author, ..), (_, reach)| *author != host || *reach == Reach::Kept);
        }
    }
}
