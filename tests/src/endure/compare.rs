//! Comparing ledgers that have stopped, record by record.
//!
//! Owns what must be equal and what must not be there. Opens the stores that the ledgers have left;
//! changes nothing. Called at the end of a run.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use dagger_ledger::store::lmdb::LmdbStore;
use dagger_ledger::store::records::{EventKey, Records};
use dagger_ledger::store::{Direction, Store, Table};
use dagger_payload::id::{AuthorIndex, Epoch, EventDigest, Position, Round};

use crate::ledgers::Ledgers;

/// The same size as the ledgers were given.
const MAP_BYTES: usize = 1024 << 30;
/// Records read in one go.
const PAGE: usize = 1024;

/// What was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Compared {
    /// Commits that all ledgers hold, equal byte for byte.
    pub commits: u64,
    /// Events of all ledgers, each counted once: one per author and round.
    pub events: u64,
}

/// Compares the stores of all hosts, none of which runs. Every commit up to the last one that all
/// of them have is the same bytes, holds all payloads up to `position`, and no author has signed
/// two events for one round.
pub(super) fn stores(ledgers: &Ledgers, position: Position) -> anyhow::Result<Compared> {
    let mut stores = Vec::new();
    for host in ledgers.hosts() {
        let store = LmdbStore::open(&ledgers.store_directory(host), MAP_BYTES)
            .with_context(|| format!("the store of host{}", host + 1))?;
        stores.push(Arc::new(store));
    }
    let commits = equal_commits(&stores, position)?;
    let events = single_events(&stores)?;
    Ok(Compared { commits, events })
}

fn equal_commits(stores: &[Arc<LmdbStore>], position: Position) -> anyhow::Result<u64> {
    let mut common = u64::MAX;
    for store in stores {
        let last = Records::new(store.clone()).last_commit()?.context("there are commits")?;
        common = common.min(last.index.0);
        let end = last.last_position;
        ensure!(end == position, "a store ends at {end}, not at {position}");
    }
    let mut from = Vec::new();
    let mut count = 0;
    loop {
        let page = stores[0].page(Table::Commits, &from, Direction::Forward, PAGE)?;
        let Some((last, _)) = page.last() else {
            break;
        };
        from = [&last[..], &[0]].concat();
        for (key, value) in &page {
            let index = u64::from_be_bytes(key[..].try_into().context("an index")?);
            if index > common {
                return Ok(count);
            }
            for store in &stores[1..] {
                let other = store.get(Table::Commits, key)?;
                ensure!(other.as_ref() == Some(value), "commit {index} differs");
            }
            count += 1;
        }
    }
    Ok(count)
}

fn single_events(stores: &[Arc<LmdbStore>]) -> anyhow::Result<u64> {
    let mut seen: BTreeMap<(Epoch, Round, AuthorIndex), EventDigest> = BTreeMap::new();
    for store in stores {
        ensure!(store.first(Table::Forks)?.is_none(), "a ledger has evidence of a fork");
        let records = Records::new(store.clone());
        let (epoch, round, author) = (Epoch(0), Round(0), AuthorIndex(0));
        let mut next = Some(EventKey { epoch, round, author, digest: EventDigest::ZERO });
        while let Some(from) = next {
            let (events, following) = records.events(from)?;
            for event in events {
                let header = &event.header;
                let place = (header.epoch, header.round, header.author);
                let known = *seen.entry(place).or_insert(event.digest);
                ensure!(known == event.digest, "two events of one author in one round: {place:?}");
            }
            next = following;
        }
    }
    Ok(u64::try_from(seen.len())?)
}
