//! No self-equivocation: of what leaves an honest host, no two own events share a round, ever.

use std::collections::BTreeMap;

use dagger_payload::id::{AuthorIndex, EventDigest, Round};

use super::{Observed, Promise};

/// See the module.
#[derive(Default)]
pub(super) struct NoSelfEquivocation {
    sent: BTreeMap<(AuthorIndex, Round), EventDigest>,
}

impl Promise for NoSelfEquivocation {
    fn name(&self) -> &'static str {
        "no_self_equivocation"
    }

    fn check(&mut self, host: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        let Observed::EventLeaves { event, .. } = observed else {
            return Ok(());
        };
        let header = &event.header;
        if header.author != host {
            return Ok(());
        }
        let first = self.sent.entry((host, header.round)).or_insert(event.digest);
        if *first == event.digest {
            Ok(())
        } else {
            let round = header.round;
            Err(format!("two own events left for round {round}"))
        }
    }
}
