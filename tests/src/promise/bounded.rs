//! Bounded: what a host holds in memory for others never exceeds its maxima, and after a silence
//! nothing waits for anything.

use dagger_ledger_core::Held;
use dagger_payload::id::AuthorIndex;

use super::{End, Observed, Promise};

/// See the module.
pub(super) struct Bounded;

fn check(held: &[Held]) -> Result<(), String> {
    match held.iter().find(|held| held.count > held.max) {
        None => Ok(()),
        Some(Held { what, count, max }) => Err(format!("holds {count} {what}, more than {max}")),
    }
}

impl Promise for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn check(&mut self, _: AuthorIndex, observed: &Observed<'_>) -> Result<(), String> {
        match observed {
            Observed::Holds { held } => check(held),
            _ => Ok(()),
        }
    }

    fn check_end(&mut self, end: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        for at in &end.hosts {
            let waited_for =
                at.held.iter().filter(|held| held.what == "events that are waited for");
            let waited_for: u64 = waited_for.map(|held| held.count).sum();
            if waited_for > 0 {
                return Err((at.host, format!("waits for {waited_for} events in the end")));
            }
        }
        Ok(())
    }
}
