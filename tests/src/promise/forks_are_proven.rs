//! Forks are proven: who holds two events of one author and round holds the pair of signed headers
//! that proves it, and such a pair names none but who signed both.

use std::collections::BTreeSet;

use dagger_ledger_core::interface::Fork;
use dagger_payload::codec;
use dagger_payload::event::{Header, SignedHeader};
use dagger_payload::id::{AuthorIndex, Epoch, Round};

use super::{End, HostAtEnd, Observed, Promise, Setting};

/// See the module.
pub(super) struct ForksAreProven {
    liars: BTreeSet<AuthorIndex>,
}

impl ForksAreProven {
    pub(super) fn new(setting: &Setting) -> Self {
        Self { liars: setting.liars.iter().copied().collect() }
    }

    fn check_host(&self, at: &HostAtEnd<'_>) -> Result<(), String> {
        for fork in at.disk.forks.values() {
            if !self.liars.contains(&fork.author) || !proves(fork) {
                let Fork { author, round, .. } = fork;
                return Err(format!("keeps what does not prove a fork of {author} in {round}"));
            }
        }
        let proven: BTreeSet<_> = at.disk.forks.values().map(|fork| fork.author).collect();
        let mut places = BTreeSet::new();
        let forked = at.disk.events.keys().find(|(epoch, round, author, _)| {
            !places.insert((*epoch, *round, *author)) && !proven.contains(author)
        });
        match forked {
            None => Ok(()),
            Some((_, round, author, _)) => {
                Err(format!("has two events of {author} in {round}, and no proof of it"))
            }
        }
    }
}

/// Whether these are two events of the author and round that it names.
fn proves(fork: &Fork) -> bool {
    let place = |signed: &SignedHeader| -> Option<(Epoch, Round, AuthorIndex)> {
        let header: Header = codec::decode(&signed.header).ok()?;
        Some((header.epoch, header.round, header.author))
    };
    let (first, second) = (place(&fork.first), place(&fork.second));
    let named =
        first.is_some_and(|(_, round, author)| (round, author) == (fork.round, fork.author));
    named && first == second && fork.first.header != fork.second.header
}

impl Promise for ForksAreProven {
    fn name(&self) -> &'static str {
        "forks_are_proven"
    }

    fn check(&mut self, _: AuthorIndex, _: &Observed<'_>) -> Result<(), String> {
        Ok(())
    }

    fn fell(&mut self, host: AuthorIndex) {
        self.liars.insert(host);
    }

    fn check_end(&mut self, end: &End<'_>) -> Result<(), (AuthorIndex, String)> {
        for at in &end.hosts {
            self.check_host(at).map_err(|why| (at.host, why))?;
        }
        Ok(())
    }
}
